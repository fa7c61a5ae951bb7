"""Rows and models in memory, and a trainer of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import tiny_model, tiny_tokenizer

from semalign import SemAlignConfig, SemAlignTrainer

WORDS = ("two", "three", "five", "blue", "green", "sky")
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"add {a} and {b}"},
            {"role": "assistant", "content": f"the answer is {a} {b}"},
        ]
    }
    for a in WORDS
    for b in WORDS
]
TRAIN, HELDOUT = ROWS[:20], ROWS[20:28]


def models() -> tuple[Any, Any]:
    """A student and a teacher in memory."""
    return tiny_model("llama", layers=3, wide=False, seed=1), tiny_model("llama", layers=5, wide=True, seed=2)


def arguments(folder: Path, **changes: Any) -> SemAlignConfig:
    """Few steps on a CPU."""
    return SemAlignConfig(
        str(folder),
        **{
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 4,
            "use_cpu": True,
            "disable_tqdm": True,
            "pairing": {"num_layers": 1},
            "cache": {"top_k": 8, "dtype": "float32"},
            "attribution": {"rows": 4},
        }
        | changes,
    )


def made(folder: Path, student: Any = None, teacher: Any = None, **options: Any) -> SemAlignTrainer:
    """A trainer on the tiny pair."""
    own, theirs = models()
    given = {"args": arguments(folder), "train_dataset": TRAIN, "eval_dataset": HELDOUT} | options
    return SemAlignTrainer(student or own, teacher or theirs, processing_class=tiny_tokenizer(), **given)
