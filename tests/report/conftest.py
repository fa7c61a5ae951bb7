"""A synthetic run folder with every file that the report reads, in the shape the steps write them, and a finished tiny run."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from semalign.cli import main
from semalign.run.digests import sealed
from semalign.run.files import find_json, write_atomic, write_json
from semalign.run.folder import save_result

RunMaker = Callable[..., Path]

CONFIG = """\
teacher:
  model_name_or_path: embedded:teacher
  dtype: float32
student:
  model_name_or_path: embedded:student
  dtype: float32
data:
  dataset_name: embedded:transfer
  heldout_rows: 64
pairing:
  selection: attribution
  num_layers: 2
recipe:
  name: aligned
  output_loss: topk_kl
  layer_loss: cosine
  map: ridge
  interface: block
train:
  num_train_epochs: 3.0
  per_device_train_batch_size: 16
evaluation:
  tasks: embedded:test
  baselines: [cosine, cross_entropy]
seed: 0
"""


def _result(accuracy: float, n: int) -> dict[str, float]:
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / n)
    return {
        "accuracy": accuracy,
        "low": max(0.0, accuracy - half),
        "high": min(1.0, accuracy + half),
        "extraction_failures": 0.0,
    }


def _task(
    n: int, teacher: float, before: float, after: float, cosine: float, cross_entropy: float
) -> dict[str, Any]:
    values = {
        "teacher": teacher,
        "before": before,
        "after": after,
        "cosine": cosine,
        "cross_entropy": cross_entropy,
    }
    return {"n": n} | {key: _result(value, n) for key, value in values.items()}


def metrics(teacher_layers: int, student_layers: int, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """metrics.json with plausible values."""
    rng = random.Random(0)

    def cka(gain: float) -> list[list[float]]:
        return [
            [
                round(min(0.99, 0.93 - 0.5 * abs(t / teacher_layers - s / student_layers) + gain * s / student_layers)
                      - rng.random() * 0.06, 4)
                for s in range(1, student_layers + 1)
            ]
            for t in range(1, teacher_layers + 1)
        ]  # fmt: skip

    samples = [
        ("knowledge", "Which metal is the main part of brass?", "copper", ("copper", "iron", "copper")),
        (
            "arithmetic",
            "Tom has 3 bags of 14 apples and eats 5 apples.\nHow many are left?",
            "37",
            ("37", "42", "37"),
        ),
        ("arithmetic", "What is 17 * 6 - 9?", "93", ("93", "93", "91")),
    ]
    return {
        "accuracy_gap_closed": 0.61,
        "kl_gap_closed": 0.72,
        "wall_seconds": 214.6,
        "peak_rss_bytes": 1_840_000_000,
        "recipe": "aligned",
        "baselines": {
            "cosine": {"accuracy_gap_closed": -0.06, "kl_gap_closed": -0.11, "train_seconds": 16.9},
            "cross_entropy": {"accuracy_gap_closed": 0.44, "kl_gap_closed": 0.18, "train_seconds": 14.2},
        },
        "tasks": {
            "knowledge": _task(150, 0.86, 0.42, 0.74, 0.40, 0.66),
            "arithmetic": _task(150, 0.71, 0.38, 0.55, 0.34, 0.52),
            "format": _task(100, 0.97, 0.81, 0.95, 0.80, 0.93),
            "retention": _task(120, 0.64, 0.58, 0.56, 0.57, 0.49),
        },
        "closeness": {
            "rows": 64,
            "tokens": 2816,
            "before": {"kl": 0.284, "top1_agreement": 0.842, "nll": 1.377},
            "after": {"kl": 0.0795, "top1_agreement": 0.922, "nll": 1.141},
            "cosine": {"kl": 0.316, "top1_agreement": 0.838, "nll": 1.449},
            "cross_entropy": {"kl": 0.233, "top1_agreement": 0.855, "nll": 0.963},
            "teacher": {"nll": 0.91},
        },
        "alignment": [
            {"teacher": p["teacher"], "student": p["student"], "interface": "block",
             "before": 0.05 + 0.2 * rng.random(), "after": 0.6 + 0.3 * rng.random()}
            for p in pairs
        ],
        "cka": {"before": cka(0.0), "after": cka(0.08)},
        "harness": [
            {"task": "gsm8k", "metric": "exact_match", "filter": "strict-match", "n": 200,
             "before": {"value": 0.21, "low": 0.15, "high": 0.27}, "after": {"value": 0.34, "low": 0.27, "high": 0.41},
             "teacher": {"value": 0.52, "low": 0.45, "high": 0.59}},
            {"task": "mmlu", "metric": "acc", "filter": "none", "n": 400,
             "before": {"value": 0.441, "low": None, "high": None}, "after": {"value": 0.438, "low": None, "high": None},
             "teacher": {"value": 0.6, "low": None, "high": None}},
        ],
        "tokens": [token_row(student_layers, n) for n in range(2)],
        "movement": [{"layer": p["student"], "relative_change": 0.02 + 0.05 * rng.random()} for p in pairs],
        "steps": [
            {"name": "attribute", "seconds": 6.2, "peak_rss_bytes": 1_210_000_000},
            {"name": "pair", "seconds": 0.02, "peak_rss_bytes": 610_000_000},
            {"name": "cache", "seconds": 41.8, "peak_rss_bytes": 1_840_000_000},
            {"name": "train", "seconds": 18.3, "peak_rss_bytes": 1_050_000_000},
            {"name": "evaluate", "seconds": 146.0, "peak_rss_bytes": 1_420_000_000},
        ],
        "samples": [
            {"task": task, "prompt": prompt, "gold": gold, "teacher": t, "before": b, "after": a,
             "correct": {"teacher": t == gold, "before": b == gold, "after": a == gold}}
            for task, prompt, gold, (t, b, a) in samples
        ],
    }  # fmt: skip


def token_row(layers: int, number: int) -> dict[str, Any]:
    """The token view of one row: the untouched student misses every third token, the trained one every sixth."""
    expected = [" the", " answer", " is", " ", "4", "2", "\n", "<|end|>"] * 2
    wrong = [" a"] * len(expected)

    def student(every: int) -> dict[str, Any]:
        top = [w if n % every == 0 else t for n, (t, w) in enumerate(zip(expected, wrong, strict=True))]
        lens = [wrong if layer < layers - 1 else top for layer in range(layers)]
        return {
            "top": top,
            "kl": [2.5 if n % every == 0 else 0.01 for n in range(len(expected))],
            "lens": lens,
        }

    teacher = {"top": expected, "p": [0.9] * len(expected)}
    row = {"id": f"row-{number}", "prompt": "What is <b>6 * 7</b>?", "expected": expected}
    return row | {"teacher": teacher, "before": student(3), "after": student(6)}


@pytest.fixture
def row() -> Callable[[int, int], dict[str, Any]]:
    """Makes the token view of one row, from layers and a number."""
    return token_row


def _log(steps: int, start: float, end: float, parts: bool) -> str:
    rng, lines = random.Random(steps), []
    for step in range(1, steps + 1):
        loss = end + (start - end) * math.exp(-4 * step / steps) * (1 + 0.08 * rng.uniform(-1, 1))
        layer = 0.35 * loss if parts else 0.0
        row = {"step": step, "epoch": round(3 * step / steps, 4), "loss": loss, "loss_output": loss - layer,
               "loss_layer": layer, "learning_rate": 1e-3, "grad_norm": 1.0}  # fmt: skip
        lines.append(json.dumps(row))
    return "\n".join(lines) + "\n"


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text(value, encoding="utf-8")
        save_result(path.with_suffix(".json"), {}, {}, [path])
    elif isinstance(value, str):
        write_atomic(path, sealed(value.encode(errors="replace"), path.suffix))
    else:
        write_json(path, value)


def write_run(
    folder: Path, *, teacher_layers: int = 6, student_layers: int = 4, trained: int = 2, steps: int = 90
) -> Path:
    """Write a whole run folder; the deepest `trained` student layers are paired, with blends where depths differ."""
    students = list(range(student_layers - trained + 1, student_layers + 1))
    pairs = []
    for k in students:
        depth = teacher_layers * k / student_layers
        floor = max(1, min(int(depth), teacher_layers - 1))
        pairs.append({"teacher": floor, "student": k, "fraction": min(1.0, depth - floor)})
    critical = [teacher_layers - 2, teacher_layers]
    scores = [
        0.04 + 0.5 * math.exp(-((n - critical[n % 2]) ** 2) / (teacher_layers / 2))
        for n in range(1, teacher_layers + 1)
    ]
    environment = {
        "python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0", "semalign": "0.1.0", "platform": "Linux",
        "cpu": "Example CPU", "cores": 2, "memory_bytes": 16e9, "command": "semalign run example.yaml",
        "started": "2026-05-11 09:30",
    }  # fmt: skip
    _write(folder / "config.yaml", CONFIG)
    _write(folder / "environment.json", environment)
    layers = [{"layer": n, "score": score} for n, score in enumerate(scores, start=1)]
    _write(folder / "scores.json", {"layers": layers, "rows": 64, "aggregate": "abs", "seconds": 6.2})
    plan = {"teacher_layers": teacher_layers, "student_layers": student_layers, "interface": "block", "pairs": pairs,
            "trained_layers": students, "critical_layers": critical, "selection": "attribution"}  # fmt: skip
    _write(folder / "pairs.json", plan)
    fits = [
        {
            "teacher": p["teacher"],
            "student": p["student"],
            "interface": "block",
            "map": "ridge",
            "cosine": 0.88,
        }
        for p in pairs
    ]
    manifest = {
        "bytes": 12_400_000,
        "samples": 480,
        "supervised_tokens": 9120,
        "top_k": 32,
        "alignment": fits,
    }
    _write(folder / "targets" / "manifest.json", manifest)
    _write(folder / "train.jsonl", _log(steps, 2.6, 0.05, True))
    _write(folder / "baselines" / "cosine" / "train.jsonl", _log(steps, 1.7, 1.1, True))
    _write(folder / "baselines" / "cross_entropy" / "train.jsonl", _log(steps, 1.6, 0.7, False))
    _write(folder / "metrics.json", metrics(teacher_layers, student_layers, pairs))
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> RunMaker:
    """Writes a run folder below the test's own folder; keywords as in write_run."""

    def make(**options: int) -> Path:
        return write_run(tmp_path / "run", **options)

    return make


@pytest.fixture
def edit_json() -> Callable[[Path, Callable[[Any], None]], None]:
    """Changes a JSON file in place."""

    def edit(path: Path, change: Callable[[Any], None]) -> None:
        value = find_json(path)
        change(value)
        write_json(path, value)

    return edit


@pytest.fixture(scope="module")
def done(tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose student has a card and a licence file of its own."""
    root = tmp_path_factory.mktemp("secret place")
    student = root / "small-model"
    shutil.copytree(tiny_pair[1], student)
    (student / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n\n# Small\n")
    (student / "LICENSE").write_text("MIT License, as it stands.\n")
    values = {
        "teacher": {"model_name_or_path": str(tiny_pair[0])},
        "student": {"model_name_or_path": str(student)},
        "data": {"dataset_name": str(rows_file), "heldout_rows": 4, "max_length": 64},
        "output_dir": str(root / "my-run"),
        "pairing": {"num_layers": 2},
        "train": {"num_train_epochs": 1, "per_device_train_batch_size": 8},
        "evaluation": {"baselines": ["cross_entropy"]},
    }
    (root / "run.yaml").write_text(yaml.safe_dump(values))
    assert main(["transfer", str(root / "run.yaml"), "--quiet", "--json"]) == 0
    return root / "my-run"
