"""Reads the files of a run folder that the report is made from; no model, no network, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semalign.errors import CacheError
from semalign.run import results
from semalign.run.files import find_json, read_lines, read_sealed
from semalign.run.folder import verified
from semalign.run.metrics import Metrics

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
    data: Json = field(default_factory=dict)
    """data.json: rows and tokens that the run started from."""
    train: Sequence[Json] = ()
    """Lines of train.jsonl, in order."""
    baseline_train: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    """Lines of baselines/<name>/train.jsonl by name."""


def read_run(run_dir: Path) -> RunFiles:
    """Everything the report needs from `run_dir`.

    Raises CacheError when metrics.json is missing or a file is damaged.
    """
    metrics = find_json(run_dir / "metrics.json", Metrics, "evaluate")
    if not (run_dir / "metrics.json").is_file():
        raise CacheError(
            f"The report needs metrics.json in {run_dir}, and there is none; run the evaluate step for this folder first."
        )
    measured = measured_student(metrics)
    if measured and measured != find_json(run_dir / "train.json", step="train").get("fingerprint"):
        raise CacheError(
            f"{run_dir / 'metrics.json'}: of an earlier student than the one that lies there; run `semalign evaluate` again."
        )
    config = run_dir / "config.yaml"
    names = [path.parent.name for path in sorted(run_dir.glob("baselines/*/train.jsonl"))]
    # In the order in which the other sections have them, and colour them.
    order = list(metrics.get("baselines") or {})
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    logs = {name: _log(run_dir / "baselines" / name) for name in names}
    return RunFiles(
        name=run_dir.resolve().name,
        metrics=metrics,
        config_text=read_sealed(config, "transfer") if config.is_file() else None,
        environment=find_json(run_dir / "environment.json", results.Environment) or None,
        scores=find_json(run_dir / "scores.json", results.Scores, "attribute") or None,
        pairs=find_json(run_dir / "pairs.json", results.Plan, "pair", may_be_edited=True) or None,
        manifest=find_json(run_dir / "targets" / "manifest.json", results.Manifest, "cache") or None,
        data=find_json(run_dir / "data.json"),
        train=_log(run_dir),
        baseline_train={name: lines for name, lines in logs.items() if lines},
    )


def measured_student(metrics: Json) -> Any:
    """What tells the training of the student that was measured from others; None where metrics.json does not say."""
    students = (metrics.get("fingerprint") or {}).get("students")
    return students.get("after") if isinstance(students, Mapping) else None


def _log(training: Path) -> Sequence[Json]:
    """The lines of a training's log, none where there is no training."""
    if not (training / "train.jsonl").is_file():
        return ()
    return read_lines(verified(training / "train.json", "train.jsonl", "train"), "train", results.LogLine)
