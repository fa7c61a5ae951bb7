"""A comparison on the embedded pair with a handful of steps, and a pool without processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from semalign.comparison.pool import Done, Job
from semalign.errors import SemAlignError

TASKS = ("knowledge", "arithmetic")
METHODS: dict[str, Any] = {"aligned": {"data.variants": 1}, "cross_entropy": {}}


def task_of(name: str) -> dict[str, str]:
    """A task of the embedded pair in a comparison's file."""
    return {"data.dataset_name": f"embedded:transfer/{name}", "data.heldout_name": f"embedded:test/{name}"}


def write(folder: Path, **changes: Any) -> Path:
    values = {
        "output_dir": str(folder / "out"),
        "seeds": 2,
        "default": "aligned",
        "workers": 2,
        "retention_items": 3,
        "base": {
            "teacher": {"model_name_or_path": "embedded:teacher", "dtype": "float32"},
            "student": {"model_name_or_path": "embedded:student", "dtype": "float32"},
            "data": {
                "dataset_name": "embedded:transfer",
                "max_rows": 12,
                "heldout_rows": 4,
                "max_length": 256,
            },
            "train": {
                "num_train_epochs": 2,
                "per_device_train_batch_size": 8,
                "lora_r": 0,
                "learning_rate": 1e-3,
            },
            "evaluation": {"tasks": "embedded:test", "max_items": 6, "max_new_tokens": 24},
        },
        "tasks": {t: task_of(t) for t in TASKS},
        "methods": METHODS,
    }
    folder.mkdir(exist_ok=True)
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False))
    return path


def here(jobs: Mapping[str, Job], workers: int, done: Done) -> dict[str, str]:
    """The pool's rules without its processes, for tests that look inside."""
    failures: dict[str, str] = {}
    for name, job in jobs.items():
        assert {*job.needs, *job.after} <= set(list(jobs)[: list(jobs).index(name)]), (
            "written in an order that works"
        )
        try:
            if not set(job.needs) & set(failures):
                job.call(job.argument)
        except SemAlignError as error:
            failures[name] = str(error)
        done(name, failures.get(name))
    return failures


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
