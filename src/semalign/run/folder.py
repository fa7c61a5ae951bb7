"""The run folder: where each file is, who owns it now, and which results are still valid."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semalign.config import differences
from semalign.errors import CacheError
from semalign.run import ranks
from semalign.run.digests import damage, record
from semalign.run.files import NOT_AS_WRITTEN, read_json, say_once, write_json
from semalign.run.lock import locked
from semalign.run.results import Result


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. Data flows from top to bottom; a step reads only what an earlier one wrote."""

    root: Path
    memory: Path | None = None
    """Folder that keeps the digests of models; None: the run's own."""

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, machine and command."""
        return self.root / "environment.json"

    @property
    def digests(self) -> Path:
        """Digests of the models' files, kept so that they are hashed once."""
        return (self.memory or self.root) / "digests.json"

    @property
    def models(self) -> Path:
        """Names and licences of teacher and student."""
        return self.root / "models.json"

    @property
    def data(self) -> Path:
        """How many rows each dataset gave."""
        return self.root / "data.json"

    def about(self) -> tuple[Path, ...]:
        """What says how the run was made: its config, machine, rows and models."""
        return self.config, self.environment, self.data, self.models

    @property
    def scores(self) -> Path:
        """Attribution scores of the teacher's layers."""
        return self.root / "scores.json"

    @property
    def pairs(self) -> Path:
        """The plan: pairs and trained layers; may be edited."""
        return self.root / "pairs.json"

    @property
    def rows(self) -> Path:
        """Training rows with the teacher's answers."""
        return self.root / "rows.jsonl"

    @property
    def heldout(self) -> Path:
        """Held-out rows, the teacher's answers where they had none."""
        return self.root / "heldout.jsonl"

    @property
    def generated(self) -> Path:
        """How many rows the teacher answered."""
        return self.root / "rows.json"

    @property
    def targets(self) -> Path:
        """Cached signals."""
        return self.root / "targets"

    @property
    def manifest(self) -> Path:
        """What the cache holds."""
        return self.targets / "manifest.json"

    @property
    def metrics(self) -> Path:
        """What was measured."""
        return self.root / "metrics.json"

    @property
    def answers(self) -> Path:
        """Every model's answer to every item, with its verdict."""
        return self.root / "answers.jsonl"

    @property
    def report(self) -> Path:
        """The page."""
        return self.root / "report.html"

    def training(self, baseline: str | None = None) -> Path:
        """Folder that holds student/, train.jsonl and train.json of the run's own or a baseline's training."""
        return self.root if baseline is None else self.root / "baselines" / baseline

    @contextmanager
    def lock(self, patience: float = 0.0) -> Iterator[None]:
        """Own the folder (see `locked`). Of several processes of one run the main one owns it."""
        if not ranks.is_main():
            yield
            return
        with locked(self.root, patience):
            yield

    @contextmanager
    def lock_cache(self) -> Iterator[None]:
        """Own the cache too where it lies in a folder that several runs may link to; only who fills it needs to."""
        with ExitStack() as stack:
            if ranks.is_main() and self.targets.is_symlink():
                stack.enter_context(locked(self.targets.resolve()))
            # Only after the sweep may others write there.
            ranks.wait()
            yield


def fingerprint(**parts: Any) -> dict[str, Any]:
    """Plain JSON of everything a result depends on; kept readable so that a difference can be named."""
    return json.loads(json.dumps(parts, default=list))


def is_done(
    path: Path,
    wanted: Mapping[str, Any],
    names: Collection[str] | None = None,
    *,
    doing: str | None = "it is made again",
) -> bool:
    """Whether a result is whole, made from the same inputs, and all files that it records are as they were written.

    Why one that is there has to be made again is said in one sentence, and what is done.

    Args:
        names: the recorded files to look at; None: all.
        doing: the end of that sentence; None says nothing.
    """
    reason = _reason(path, wanted, names) if path.exists() else None
    if reason is not None and doing is not None:
        say_once(f"{path}: {reason}; {doing}")
    return path.exists() and reason is None


def _reason(path: Path, wanted: Mapping[str, Any], names: Collection[str] | None) -> str | None:
    try:
        found = read_json(path, "", Result)
    except CacheError:
        return NOT_AS_WRITTEN
    known = found.get("fingerprint")
    if known != wanted:
        changed = differences(known, dict(wanted)) if isinstance(known, dict) else ["no fingerprint"]
        return f"stale ({'; '.join(changed)[:300]})"
    files = found.get("files", {})
    return damage(path.parent, {n: f for n, f in files.items() if names is None or n in names})


def save_result(
    path: Path, wanted: Mapping[str, Any], result: Mapping[str, Any], files: Iterable[Path] = ()
) -> None:
    """Write a result with the fingerprint that makes it valid and the digests of the files that belong to it.

    Args:
        files: files, or folders for all files in them, below the result's own folder.
    """
    recorded = record(path.parent, files)
    write_json(path, {**result, "fingerprint": wanted, **({"files": recorded} if recorded else {})})


def check_files(result: Path, step: str, names: Collection[str] | None = None) -> dict[str, Any]:
    """A result, once the files that it records are known to be as they were written.

    Args:
        step: what makes it again.
        names: the recorded files to look at; None: all.

    Raises:
        CacheError: one is not, or the result itself.
    """
    found = read_json(result, step)
    files = found.get("files", {})
    missing = [f"{name} is not recorded" for name in names or () if name not in files]
    wrong = damage(result.parent, {n: f for n, f in files.items() if names is None or n in names})
    if wrong := next(iter(missing), wrong):
        raise CacheError(f"{result.parent}: {wrong}; run `semalign {step}` again, which makes it again.")
    return dict(found)


def verified(result: Path, name: str, step: str) -> Path:
    """The path of one file that a result records, checked as `check_files` does."""
    check_files(result, step, [name])
    return result.parent / name
