"""Every file that a run writes is what its shape declares, and a wrong value in one is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from semalign.parsing import load_config
from semalign.reading import UnreadableError, check_shape
from semalign.run import results
from semalign.steps.pipeline import transfer

KINDS = {
    "environment.json": results.Environment,
    "models.json": results.Origins,
    "data.json": results.Data,
    "scores.json": results.Scores,
    "pairs.json": results.Plan,
    "targets/manifest.json": results.Cached,
    "targets/teacher/index.json": results.Index,
    "targets/teacher/shard-00000.json": results.Shard,
    "train.json": results.Trained,
    "metrics.json": results.Metrics,
}


@pytest.fixture
def run(config_file: Path) -> Path:
    items = config_file.with_name("items.jsonl")
    turns = [{"role": "user", "content": "add"}, {"role": "assistant", "content": "2"}]
    items.write_text(json.dumps({"task": "sum", "messages": turns, "check": {"kind": "number", "answer": 2}}))
    evaluation = {"tasks": str(items), "max_new_tokens": 4, "baselines": ["kl"], "cka_rows": 2}
    return transfer(load_config(config_file, evaluation=evaluation)).root


def test_what_a_run_writes_is_of_its_shape_and_holds_each_declared_field(run: Path) -> None:
    for name, kind in KINDS.items():
        value = json.loads((run / name).read_text())
        check_shape(kind, value, name)
        declared = set(kind.model_fields) - {"peak_gpu_bytes", "shards"}
        optional = {"fingerprint", "files", "steps", "loss", "trained_parameters", "tokens"}
        assert declared - optional <= set(value), f"{name}: a field that is declared and never written"
    for line in (run / "train.jsonl").read_text().splitlines():
        check_shape(results.LogLine, json.loads(line))


def metrics(**changes: Any) -> dict[str, Any]:
    student = {"top": ["a"], "kl": [0.1], "lens": [["a"]]}
    row = {"prompt": "p", "expected": ["a"], "teacher": {"top": ["a"], "p": [0.5]}, "before": student}
    return {"tokens": [row], "cka": {"before": [[0.1, 0.2]], "after": [[0.1, None]]}} | changes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cka": {"before": [[0.1, 0.2]], "after": [[0.1], [0.2]]}}, "cka: .*of one size"),
        ({"cka": {"before": [[0.1] * 2000]}}, "cka: .*at most 1000"),
        ({"tokens": [metrics()["tokens"][0] | {"expected": ["a", "b"]}]}, "tokens.0: .*expected 2 tokens"),
        ({"tasks": {"sum": {"n": 1, "before": 5}}}, "tasks.sum.before: expected an object, got 5"),
        ({"tasks": {"sum": {"n": 1e308}}}, "tasks.sum.n: expected a whole number"),
        ({"closeness": {"before": {"kl": "small"}}}, "closeness.before.kl: expected a number, got 'small'"),
        ({"harness": [{"task": "x"}]}, "harness.0.metric: found nothing there"),
        ({"alignment": [{"teacher": 4.5, "student": 1, "fraction": 0.5}]}, "alignment.0: .*once"),
        ({"wall_seconds": float("inf")}, "wall_seconds"),
        ({"movement": [{"layer": 0}]}, "movement.0.layer: expected at least 1, got 0"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(changes: dict[str, Any], said: str) -> None:
    check_shape(results.Metrics, metrics())
    with pytest.raises(UnreadableError, match=said):
        check_shape(results.Metrics, metrics(**changes))
