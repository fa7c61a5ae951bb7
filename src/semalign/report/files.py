"""Reads the files of a run folder that the report is made from; no model, no network, nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semalign.errors import CacheError

Json = Mapping[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds, parsed; an optional file that is missing is None or empty."""

    name: str
    """Name of the run folder."""
    metrics: Json
    """metrics.json of the evaluate step."""
    config_text: str | None = None
    """config.yaml as it was written."""
    environment: Json | None = None
    """environment.json: versions, machine, command."""
    scores: Json | None = None
    """scores.json of the attribute step."""
    pairs: Json | None = None
    """pairs.json of the pair step."""
    manifest: Json | None = None
    """targets/manifest.json of the cache step."""
    train: Sequence[Json] = ()
    """Lines of train.jsonl, in order."""
    baseline_train: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    """Lines of baselines/<name>/train.jsonl by name."""


def read_run(run_dir: Path) -> RunFiles:
    """Everything the report needs from `run_dir`.

    Raises CacheError when metrics.json is missing or a file is damaged.
    """
    metrics = _json(run_dir / "metrics.json")
    if metrics is None:
        raise CacheError(
            f"The report needs metrics.json in {run_dir}, and there is none; run the evaluate step for this folder first."
        )
    config = run_dir / "config.yaml"
    logs = {path.parent.name: _lines(path) for path in sorted(run_dir.glob("baselines/*/train.jsonl"))}
    return RunFiles(
        name=run_dir.resolve().name,
        metrics=metrics,
        config_text=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else None,
        environment=_json(run_dir / "environment.json"),
        scores=_json(run_dir / "scores.json"),
        pairs=_json(run_dir / "pairs.json"),
        manifest=_json(run_dir / "targets" / "manifest.json"),
        train=_lines(run_dir / "train.jsonl"),
        baseline_train={name: lines for name, lines in logs.items() if lines},
    )


def _json(path: Path) -> Json | None:
    """A JSON object, or None when the file is missing."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON and UTF-8 errors are both ValueErrors
        raise CacheError(
            f"{path} should hold a JSON object, but {error}; run the step that writes it again."
        ) from error
    if not isinstance(value, dict):
        raise CacheError(
            f"{path} should hold a JSON object, got a {type(value).__name__}; run the step that writes it again."
        )
    return value


def _lines(path: Path) -> list[Json]:
    """JSON lines; a last line cut off by an interrupted run is left out, any other bad line is an error."""
    if not path.is_file():
        return []
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
    rows: list[Json] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise CacheError(
                f"{path}:{number} should be one JSON object, but {error}; run the train step again."
            ) from error
        if isinstance(row, dict):
            rows.append(row)
    return rows
