"""What a benchmark trains on, the product's config for it, and SemAlign behind a few methods that say what they cost."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from semalign.config import TransferConfig
from semalign.config.parsing import build_config
from semalign.data.inputs import load_inputs
from semalign.run.folder import RunFolder
from semalign.run.meter import free_memory
from semalign.signals.prepared import Prepared
from semalign.steps.attribute import attribute
from semalign.steps.cache import cache
from semalign.steps.pair import pair
from semalign.steps.pipeline import open_run
from semalign.steps.train import train


@dataclass(frozen=True)
class Task:
    """A pair, rows, and how both sides train on them."""

    teacher: str
    student: str
    rows: str
    heldout: str | None = None
    heldout_rows: int = 0
    max_rows: int | None = None
    max_length: int = 320
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    batch: int = 8
    layers: int = 1
    epochs: int = 3
    lora_r: int = 16
    lora_alpha: int = 16
    """SemAlign's; the peer's is 16."""
    learning_rate: float = 1e-3
    peer_learning_rate: float | None = None
    peer_batch: int | None = None
    peer_rows: int | None = None
    """Of the peer's: None is the same as SemAlign's."""
    recipe: str = "aligned"
    seed: int = 0
    attribution_rows: int = 8

    @property
    def name(self) -> str:
        """For tables."""
        return "embedded pair" if self.teacher.startswith("embedded") else Path(self.teacher).name

    def of_peer(self) -> Task:
        """What the peer trains on: its own rate, batch and rows where they are said. Held-out rows are the same."""
        return replace(
            self,
            learning_rate=self.peer_learning_rate or self.learning_rate,
            batch=self.peer_batch or self.batch,
            max_rows=self.peer_rows or self.max_rows,
        )


EMBEDDED = Task(
    "embedded:teacher",
    "embedded:student",
    "embedded:transfer",
    heldout="embedded:validation",
    max_rows=512,
    dtype="float32",
    batch=32,
    attribution_rows=64,
)


def config_of(task: Task, folder: str | Path, **changes: Any) -> TransferConfig:
    """The product's config for a task; `changes` are whole groups of fields."""
    values: dict[str, Any] = {
        "teacher": {"model_name_or_path": task.teacher, "dtype": task.dtype},
        "student": {"model_name_or_path": task.student, "dtype": task.dtype},
        "data": {
            "dataset_name": task.rows,
            "heldout_name": task.heldout,
            "heldout_rows": task.heldout_rows,
            "max_rows": task.max_rows,
            "max_length": task.max_length,
        },
        "output_dir": str(folder),
        "seed": task.seed,
        "attribution": {"rows": task.attribution_rows, "batch_size": 2},
        "pairing": {"selection": "last", "num_layers": task.layers},
        "recipe": {"name": task.recipe, "learning_rate": task.learning_rate},
        "cache": {"batch_size": 8, "shard_rows": 32},
        "train": {
            "num_train_epochs": task.epochs,
            "per_device_train_batch_size": task.batch,
            "lora_r": task.lora_r,
            "lora_alpha": task.lora_alpha,
            "bf16": task.dtype == "bfloat16",
            "logging_steps": 50,
            "save_steps": 100_000,
        },
        "evaluation": {"cka_rows": 0},
    }
    for group, fields in changes.items():
        values[group] = {**values[group], **fields}
    return build_config(values, Path())


class SemAlign:
    """This product, through its own steps."""

    def __init__(self, task: Task, changes: dict[str, Any] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="semalign-bench-"))
        self.config = config_of(task, self.folder, **(changes or {}))
        self.run: RunFolder = open_run(self.config)
        self.inputs = load_inputs(self.config)

    def prepare(self) -> dict[str, float]:
        """Attribution, pairing and caching; seconds of each, loading included."""
        steps: dict[str, Callable[[], None]] = {
            "attribute": lambda: attribute(self.config, self.run, self.inputs),
            "pair": lambda: pair(self.config, self.run, self.inputs),
            "cache": lambda: cache(Prepared.read(self.config, self.run, self.inputs)),
        }
        spent = {}
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            spent[name] = time.perf_counter() - start
        free_memory()
        return spent

    def epoch(self) -> float:
        """Seconds of one epoch's training."""
        return self._train(1)["train_seconds"]

    def _train(self, epochs: float) -> dict[str, Any]:
        (self.folder / "train.json").unlink(missing_ok=True)
        config = replace(self.config, train=replace(self.config.train, num_train_epochs=epochs))
        train(Prepared.read(config, self.run, self.inputs))
        free_memory()
        return json.loads((self.folder / "train.json").read_text())

    def last_loss(self) -> float:
        """Mean loss of the last training."""
        return json.loads((self.folder / "train.json").read_text())["loss"]

    def whole_training(self, epochs: float | None = None) -> float:
        """Seconds of a schedule (none: of the planned epochs), with loading, merging and saving."""
        start = time.perf_counter()
        self._train(epochs or self.config.train.num_train_epochs)
        return time.perf_counter() - start

    def student(self) -> str:
        """Folder of the trained student."""
        return str(self.folder / "student")

    def tokens(self) -> int:
        """Tokens of the training rows."""
        return sum(len(s.input_ids) for s in self.inputs.train)

    def close(self) -> None:
        """Remove the run folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
