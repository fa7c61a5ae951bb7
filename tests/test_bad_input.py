"""What users do wrong, or suffer from, and the one sentence or behaviour that answers it."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_model, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from semalign.config import DataConfig, ModelConfig, PairingConfig, RecipeConfig, TrainConfig, TransferConfig
from semalign.data import prepare
from semalign.errors import CacheError, ConfigError, DataError, ModelError
from semalign.models.decoder import Decoder
from semalign.signals.passes import student_signals
from semalign.signals.request import Request
from semalign.steps.pipeline import transfer


def config_of(teacher: Path, student: Path, rows: Path, out: Path, **changes: Any) -> TransferConfig:
    config = TransferConfig(
        teacher=ModelConfig(str(teacher)),
        student=ModelConfig(str(student)),
        data=DataConfig(str(rows), max_length=64),
        output_dir=str(out),
        train=TrainConfig(num_train_epochs=1, per_device_train_batch_size=8),
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
    train = TrainConfig(num_train_epochs=2, per_device_train_batch_size=2)
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


def test_held_out_rows_among_the_training_rows_are_refused(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    line = json.dumps({"prompt": "add two", "completion": " five"})
    rows.write_text("\n".join([line, line, line]))
    with pytest.raises(DataError, match="held-out prompts are among the training rows"):
        transfer(config_of(*tiny_pair, rows, tmp_path / "run", data=DataConfig(str(rows), heldout_rows=1)))


def test_padded_heads_are_sliced_to_the_shared_ids(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    padded = AutoModelForCausalLM.from_pretrained(tiny_pair[0])
    padded.resize_token_embeddings(384, mean_resizing=False)
    teacher = save_model(padded, tmp_path / "padded")
    run = transfer(
        config_of(teacher, tiny_pair[1], rows_file, tmp_path / "run"), ("attribute", "pair", "cache")
    )
    plain = transfer(config_of(*tiny_pair, rows_file, tmp_path / "plain"), ("attribute", "pair", "cache"))
    ours, theirs = (json.loads(r.manifest.read_text())["alignment"] for r in (run, plain))
    assert [a["cosine"] for a in ours] == pytest.approx([a["cosine"] for a in theirs], abs=1e-3)


def test_other_tokens_on_the_same_ids_are_refused(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    folder = save_model(tiny_model("llama", layers=5, wide=True), tmp_path / "teacher")
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    assert "<unused1>" in text
    swapped = text.replace("<unused1>", "<other1>")
    (folder / "tokenizer.json").write_text(swapped, encoding="utf-8")
    with pytest.raises(ModelError, match="<other1>"):
        transfer(config_of(folder, tiny_pair[1], rows_file, tmp_path / "run"))


def test_activations_that_are_not_finite_name_the_sample() -> None:
    decoder = Decoder(tiny_model("llama", layers=2, wide=False), tiny_tokenizer())
    samples = prepare(
        [{"prompt": "add two", "completion": " five", "id": "row-7"}], tiny_tokenizer(), max_length=64
    )
    with torch.no_grad():
        decoder.layers[1].mlp.down_proj.weight.fill_(torch.inf)
    with pytest.raises(ModelError, match="sample row-7"):
        student_signals(decoder, samples, Request(pairs=(), top_k=4))


def test_the_live_teacher_cannot_be_combined_with_a_cached_prefix() -> None:
    with pytest.raises(ConfigError, match="cache_prefix: false"):
        TrainConfig(live_teacher=True)


def test_losses_that_explode_stop_the_run(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    wild = config_of(
        *tiny_pair, rows_file, tmp_path / "run", recipe=RecipeConfig(learning_rate=1e30),
        train=TrainConfig(num_train_epochs=9, per_device_train_batch_size=4, max_grad_norm=0.0), pairing=PairingConfig(num_layers=3),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"step \d+: loss_\w+ is (nan|inf)"):
        transfer(wild, ("attribute", "pair", "cache", "train"))
    assert not (tmp_path / "run" / "student").exists()
