"""Runs whose teacher answers prompts, or makes new ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import full_weights

from semalign.config import (
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    PairingConfig,
    TransferConfig,
)
from semalign.run.folder import RunFolder

LIMIT = 24


def config_of(pair: tuple[Path, Path], rows: Path, out: Path, **data: object) -> TransferConfig:
    return TransferConfig(
        teacher=ModelConfig(str(pair[0])),
        student=ModelConfig(str(pair[1])),
        data=replace(DataConfig(str(rows), heldout_rows=4, max_length=128, max_new_tokens=LIMIT), **data),
        output_dir=str(out),
        pairing=PairingConfig(num_layers=1),
        train=full_weights(num_train_epochs=1, per_device_train_batch_size=8),
        evaluation=EvaluationConfig(batch_size=4),
    )


def written(run: RunFolder) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in run.rows.read_text().splitlines()]


def stop_at(patch: pytest.MonkeyPatch, calls: list[str], name: str, module: object, limit: int) -> None:
    """Interrupt the `limit`-th call of a module's function; all are counted in `calls`."""
    original = getattr(module, name)

    def stopping(*arguments: object, **options: object) -> object:
        calls.append(name)
        if calls.count(name) == limit:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    patch.setattr(module, name, stopping)
