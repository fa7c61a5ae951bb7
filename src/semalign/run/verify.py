"""What a folder's own records say of its files: of a run, a comparison, or a student alone."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from semalign.errors import CacheError
from semalign.run.digests import Files, damage, seal_of
from semalign.run.journal import read_journal
from semalign.run.sums import SUMS, read_sums

# In the order in which they are written: where one of them is, those before it must be too.
RUN = (
    "config.yaml", "environment.json", "data.json", "models.json", "scores.json", "pairs.json", "targets/manifest.json",
    "train.json", "metrics.json", "report.html",
)  # fmt: skip
SOURCE = ("scores.json", "pairs.json", "targets/manifest.json")
COMPARISON = ("environment.json", "compare.yaml", "figures.json", "page.html")
SEALED = re.compile(
    r"(config|compare)\.yaml|(report|page)\.html|(environment|data|models|digests|rows|scores|pairs|train|training|start|stage"
    r"|metrics|cell|figures|manifest|index|files|shard-\d+)\.json"
)
"""Names of files that end with a seal."""
THIRD = ("student", "adapter")
"""Folders of files in other libraries' forms."""


@dataclass
class Verdict:
    """Files by their place below the folder."""

    whole: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    """Not as they were written, be it by accident or by an edit."""
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """No record speaks of them: nothing reads them, or a step was stopped before it had written its record."""

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged or missing."""
        return not (self.damaged or self.missing)

    def lines(self) -> Iterator[str]:
        """A line for every file that is not whole, and one of counts."""
        counts = []
        for name, files in vars(self).items():
            counts.append(f"{len(files)} {name}")
            yield from (f"{name}: {file}" for file in files if name != "whole")
        yield f"files: {', '.join(counts)}"


def verify(folder: Path) -> Verdict:
    """Read every file below a folder and compare it with what was recorded when it was written.

    Raises:
        CacheError: there is no such folder, or it holds no record.
    """
    if not folder.is_dir():
        raise CacheError(f"{folder}: expected the folder of a run, a comparison or a student, found none.")
    files = {p.relative_to(folder).as_posix(): p for p in _walk(folder)}
    seals = {name: _is_sealed(path) for name, path in files.items() if _has_seal(name)}
    by_results, by_sums, needed = Files(), Files(), set[str]()
    for name, path in files.items():
        if seals.get(name) and path.suffix == ".json":
            result = json.loads(path.read_bytes())
            by_results |= _placed(name, result.get("files", {}))
            needed |= _placed(name, dict.fromkeys(_named(path.name, result))).keys()
        elif path.name == SUMS:
            by_sums |= _placed(name, _listed(path.parent))
    if not (seals or by_sums):
        raise CacheError(
            f"{folder}: expected a run, a comparison or a student, found no record of any file; check the path."
        )
    recorded = by_sums | by_results  # a result is sealed, a list of sums is not
    found = Verdict(missing=sorted((needed | recorded.keys() | set(_implied(files.keys()))) - files.keys()))
    for name, path in sorted(files.items()):
        is_whole = seals.get(name, True) and _is_recorded(folder, name, recorded) is not False
        if path.suffix == ".part":
            is_known, is_whole = True, _is_whole_part(path)
        elif path.name == SUMS:
            is_known, is_whole = True, _agrees(name, files, by_results)
        else:
            is_known = name in seals or name in recorded
        (found.unknown if not is_known else found.whole if is_whole else found.damaged).append(name)
    return found


def _is_whole_part(path: Path) -> bool:
    """Of what a stopped step has left: its seconds are a sealed result, all else are journals."""
    if path.stem.endswith("seconds"):
        return seal_of(path.read_bytes(), ".json") == "whole"
    return not read_journal(path)[1]


def _walk(folder: Path) -> Iterator[Path]:
    """All files but the lock; the cache may be a link to another folder."""
    for place, _, names in os.walk(folder, followlinks=True):
        yield from (Path(place) / name for name in names if name != ".lock")


def _has_seal(name: str) -> bool:
    *folders, file = PurePosixPath(name).parts
    is_third = (
        not {*folders}.isdisjoint(THIRD) and "targets" not in folders
    )  # the cache has a part named student too
    return bool(SEALED.fullmatch(file)) and not is_third


def _is_sealed(path: Path) -> bool:
    return seal_of(path.read_bytes(), path.suffix) == "whole"


def _placed(record: str, names: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of files beside it, by their place below the folder that is verified."""
    return {(PurePosixPath(record).parent / name).as_posix(): entry for name, entry in names.items()}


def _listed(folder: Path) -> Files:
    """SHA256SUMS in the form of other records; it says nothing of sizes."""
    sizes = {n: (folder / n).stat().st_size for n in read_sums(folder) if (folder / n).is_file()}
    return {name: {"bytes": sizes.get(name), "sha256": sha} for name, sha in read_sums(folder).items()}


def _named(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    """Files with records of their own that a result needs beside it."""
    if name == "metrics.json":
        yield from (f"baselines/{baseline}/train.json" for baseline in result.get("baselines", {}))
    if name == "train.json" and any(file.startswith("student/") for file in result.get("files", {})):
        yield f"student/{SUMS}"


def _implied(names: Any) -> Iterator[str]:
    """Files that must be there because a later one is."""
    for name in names:
        place = PurePosixPath(name)
        if place.parent.name.startswith("checkpoint-"):
            yield (place.parent / "files.json").as_posix()
        if place.name in ("rows.jsonl", "heldout.jsonl"):
            yield (place.parent / "rows.json").as_posix()
    roots = {n.removesuffix(last) for n in names for last in (*SOURCE, *COMPARISON, *RUN) if _ends(n, last)}
    for root in roots:
        is_there = {n.removeprefix(root) for n in names if n.startswith(root)}
        chain: tuple[str, ...] = ()
        if is_there & {"compare.yaml", "figures.json"}:
            chain = COMPARISON
        elif is_there & {*RUN[:4]}:
            chain = RUN
        elif is_there & {*SOURCE}:
            # A round has its plan from the run, and no scores of its own.
            chain = SOURCE[1:] if PurePosixPath(root).parent.name == "rounds" else SOURCE
        reached = [n for n, last in enumerate(chain) if last in is_there]
        if "training.json" in is_there and chain == RUN:
            reached.append(RUN.index("train.json"))
        yield from (root + before for before in chain[: max(reached, default=0)])


def _ends(name: str, last: str) -> bool:
    return _has_seal(name) and (name == last or name.endswith(f"/{last}"))


def _is_recorded(folder: Path, name: str, recorded: Files) -> bool | None:
    """Whether a file is as its record says; None where there is no record."""
    return damage(folder, {name: recorded[name]}) is None if name in recorded else None


def _agrees(name: str, files: Mapping[str, Path], by_results: Files) -> bool:
    """Whether SHA256SUMS lists exactly the files beside it, in lines of its form, and as results record them."""
    listed = read_sums(files[name].parent)
    text = "".join(f"{sha}  {file}\n" for file, sha in listed.items())
    beside = {n.removeprefix(name.removesuffix(SUMS)) for n in files if n.startswith(name.removesuffix(SUMS))}
    placed = _placed(name, listed)
    is_same = all(by_results[n]["sha256"] == sha for n, sha in placed.items() if n in by_results)
    return is_same and files[name].read_bytes() == text.encode() and set(listed) == beside - {SUMS}
