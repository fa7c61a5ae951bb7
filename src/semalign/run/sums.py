"""Digests that outlive a command: SHA256SUMS in a folder that is copied alone, and those of a model's files, which take long to make."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from semalign.run.digests import digest, is_racy, seal_of, stamp_of
from semalign.run.files import IS_TEMPORARY, write_atomic, write_json

SUMS = "SHA256SUMS"
"""As coreutils write it: `sha256sum -c` reads it too."""


def digests(paths: Iterable[Path], memory: Path | None = None) -> list[str]:
    """SHA-256 of files; with a `memory`, a file that keeps them, only those that changed since are read.

    As git does, it trusts size, inode and times of a file: who changes bytes and sets all of these back is not noticed.
    """
    known, found = _remembered(memory), []
    kept: dict[str, Any] = {}
    for path in paths:
        key, stamp = os.path.abspath(path), stamp_of(path)
        entry = known.get(key)
        is_known = isinstance(entry, dict) and entry.get("stamp") == stamp
        found.append(entry["sha256"] if isinstance(entry, dict) and is_known else digest(path))
        if not is_racy(stamp):
            kept[key] = {"stamp": stamp, "sha256": found[-1]}
    if memory is not None and memory.parent.is_dir() and not kept.items() <= known.items():
        write_json(memory, {key: e for key, e in (known | kept).items() if os.path.exists(key)})
    return found


def _remembered(memory: Path | None) -> dict[str, Any]:
    try:
        data = memory.read_bytes() if memory is not None else b""
    except OSError:
        return {}
    # A damaged one is no loss.
    return json.loads(data) if seal_of(data, ".json") == "whole" else {}


def write_sums(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Write SHA256SUMS for all files in a folder; `known` digests are taken as they are, the others made."""
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and p != folder / SUMS and not IS_TEMPORARY.fullmatch(p.name)
    )
    names = {p.relative_to(folder).as_posix(): p for p in files}
    lines = [f"{(known or {}).get(name) or digest(path)}  {name}\n" for name, path in names.items()]
    write_atomic(folder / SUMS, "".join(lines))


def read_sums(folder: Path) -> dict[str, str]:
    """Digest by name of what SHA256SUMS lists; empty where there is none, and lines of another form are left out."""
    path = folder / SUMS
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    parts = [line.split("  ", 1) for line in lines]
    return {part[1]: part[0] for part in parts if len(part) == 2 and len(part[0]) == 64}


def agrees_with_sums(folder: Path) -> bool:
    """Whether SHA256SUMS is there and every file that it lists is whole."""
    sums = read_sums(folder)
    return bool(sums) and all((folder / n).is_file() and digest(folder / n) == sha for n, sha in sums.items())
