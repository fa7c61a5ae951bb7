"""The run folder: where each file is, who owns it now, and which results are still valid."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semalign.errors import CacheError
from semalign.run import ranks
from semalign.run.files import read_json, write_json
from semalign.run.lock import locked
from semalign.run.results import Result


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. Data flows from top to bottom; a step reads only what an earlier one wrote."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, machine and command."""
        return self.root / "environment.json"

    @property
    def models(self) -> Path:
        """Names and licences of teacher and student."""
        return self.root / "models.json"

    @property
    def data(self) -> Path:
        """How many rows each dataset gave."""
        return self.root / "data.json"

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


def is_done(path: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a result file exists and was made from the same inputs."""
    if not path.exists():
        return False
    try:
        return read_json(path, "", Result)["fingerprint"] == wanted
    except (CacheError, KeyError, TypeError):
        return False


def save_result(path: Path, wanted: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Write a result with the fingerprint that makes it valid."""
    write_json(path, {**result, "fingerprint": wanted})
