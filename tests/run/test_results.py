"""Every file that a run writes is what its shape declares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from semalign.config.parsing import load_config
from semalign.reading import check_shape
from semalign.run import results
from semalign.run.metrics import Metrics
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
    "metrics.json": Metrics,
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
