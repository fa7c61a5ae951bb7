"""What users do wrong, or suffer from, and the one sentence or behaviour that answers it."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import full_weights

from semalign.config import DataConfig, ModelConfig, PairingConfig, RecipeConfig, TransferConfig
from semalign.errors import CacheError
from semalign.steps.pipeline import transfer


def config_of(teacher: Path, student: Path, rows: Path, out: Path, **changes: Any) -> TransferConfig:
    config = TransferConfig(
        teacher=ModelConfig(str(teacher)),
        student=ModelConfig(str(student)),
        data=DataConfig(str(rows), max_length=64),
        output_dir=str(out),
        train=full_weights(num_train_epochs=1, per_device_train_batch_size=8),
    )
    return replace(config, **changes)


def test_no_network_is_needed_after_the_start(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    run = transfer(
        config_of(
            *tiny_pair,
            rows_file,
            tmp_path / "run",
            data=DataConfig(str(rows_file), heldout_rows=4, max_length=64),
        )
    )
    assert run.report.exists()


def test_spaces_and_other_scripts_in_paths_and_rows(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "mine größer 模型"
    folder.mkdir()
    rows = folder / "zeilen ä.jsonl"
    lines = [{"prompt": f"Wie heißt {i}? ", "completion": f"ответ {i} – 答え"} for i in range(6)]
    rows.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    train = full_weights(num_train_epochs=2, per_device_train_batch_size=2)
    run = transfer(
        config_of(*tiny_pair, rows, folder / "lauf 1", train=train), ("attribute", "pair", "cache", "train")
    )
    assert (run.root / "student" / "model.safetensors").exists()


def test_an_output_folder_that_cannot_be_written_is_found_before_loading(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("semalign.steps.pipeline.load_inputs", lambda *_: pytest.fail("rows were read first"))
    with pytest.raises(CacheError, match="cannot be written"):
        transfer(config_of(*tiny_pair, rows_file, tmp_path / "file" / "run"))


def test_losses_that_explode_stop_the_run(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    wild = config_of(
        *tiny_pair, rows_file, tmp_path / "run", recipe=RecipeConfig(learning_rate=1e30),
        train=full_weights(num_train_epochs=9, per_device_train_batch_size=4, max_grad_norm=0.0), pairing=PairingConfig(num_layers=3),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"step \d+: loss_\w+ is (nan|inf)"):
        transfer(wild, ("attribute", "pair", "cache", "train"))
    assert not (tmp_path / "run" / "student").exists()
