"""A run of every step on tiny models, and a process to fork for its commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .commands import Commands, Strike, commands


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """A process to fork."""
    with commands(tmp_path_factory.mktemp("logs")) as made:
        yield made


@pytest.fixture(scope="session")
def config(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Every step has something to do, and training several checkpoints."""
    values: dict[str, Any] = {
        "teacher": {"model_name_or_path": str(talking_pair[0])},
        "student": {"model_name_or_path": str(talking_pair[1])},
        "data": {
            "dataset_name": str(rows_file),
            "heldout_rows": 4,
            "max_length": 128,
            "completions": "teacher",
            "max_new_tokens": 24,
            "max_dropped": 1.0,
        },
        "pairing": {"num_layers": 1},
        "train": {"num_train_epochs": 3, "per_device_train_batch_size": 8, "save_steps": 1},
        "cache": {"shard_rows": 8},
        "evaluation": {"batch_size": 4},
    }
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="session")
def straight(ready: Commands, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without any attack; the file `changes` beside it has how often it changed a file."""
    run = tmp_path_factory.mktemp("straight") / "run"
    ended = ready.run(["transfer", config, "--output_dir", run], Strike(run, 0))
    assert ended.code == 0, ended
    return run
