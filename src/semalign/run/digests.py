"""How it is known that a file is as it was written.

A small file of text ends with a seal: the SHA-256 of every byte before it. Digests of other files stand in the sealed result of the step
that wrote them, under `files`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

Files = dict[str, dict[str, Any]]
"""Bytes and sha256 of files by their place below a folder."""
# What stands before the seal and behind it, by the ending of the file's name.
_SEALS = {
    ".json": (b'"seal": "', b'"\n}\n'),
    ".yaml": (b"# seal: ", b"\n"),
    ".html": (b"<!-- seal: ", b" -->\n"),
}
_RACY = 2.0  # seconds; a file may change again within the grain of the file system's clock
_hashed: dict[str, tuple[list[int], str]] = {}  # what this process has hashed, by path


def sealed(text: bytes, kind: str) -> bytes:
    """Text with its seal at the end; `kind` is the ending of the file's name."""
    before, after = _SEALS[kind]
    if kind == ".json":
        text = text.rstrip()[:-1].rstrip()
        text += b"\n " if text == b"{" else b",\n "
    text += before
    return text + hashlib.sha256(text).hexdigest().encode() + after


def seal_of(data: bytes, kind: str) -> Literal["whole", "broken", "none"]:
    """Whether a file's bytes are those that were sealed; `none`: there is no seal where one would be."""
    before, after = _SEALS[kind]
    start, end = len(data) - len(after) - 64, len(data) - len(after)
    if start < 0 or data[end:] != after or data[max(0, start - len(before)) : start] != before:
        return "broken" if before in data else "none"
    return "whole" if hashlib.sha256(data[:start]).hexdigest().encode() == data[start:end] else "broken"


def unsealed(data: bytes, kind: str) -> bytes:
    """The text without the seal that stands at its end."""
    before, after = _SEALS[kind]
    return data[: -len(before) - 64 - len(after)]


def stamp_of(path: Path) -> list[int]:
    """What the system says of a file: device, inode, size, times of the last change."""
    s = path.stat()
    return [s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns]


def digest(path: Path) -> str:
    """SHA-256 of a file; read once a process, as long as the system reports neither another size nor a later change."""
    stamp, key = stamp_of(path), os.path.abspath(path)
    if key in _hashed and _hashed[key][0] == stamp:
        return _hashed[key][1]
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    _hashed.pop(key, None)
    if stamp_of(path) == stamp and not is_racy(stamp):
        _hashed[key] = stamp, found
    return found


def is_racy(stamp: list[int]) -> bool:
    """Whether a file changed so lately that a later change may leave the same stamp."""
    return time.time() - max(stamp[3:]) / 1e9 < _RACY


def record(folder: Path, paths: Iterable[Path]) -> Files:
    """Size and digest of files below a folder; a path that is a folder stands for all files in it."""
    every = sorted(
        {p for path in paths for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file()}
    )
    return {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": digest(p)} for p in every}


def damage(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What is wrong with the first recorded file that is not as it was written."""
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != entry["bytes"]:
            return f"{name} has {size} bytes instead of {entry['bytes']}"
        if digest(path) != entry["sha256"]:
            return f"{name} is damaged (its SHA-256 is not the one that was recorded)"
    return None
