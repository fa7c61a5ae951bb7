"""A GGUF file is dequantised once: what is kept is what was loaded, and only for the file as it is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import SafetensorError

from semalign.config import ModelConfig
from semalign.errors import ModelError
from semalign.models import finding, loading
from semalign.models.decoder import Decoder

from .test_decoder import write_gguf


@pytest.fixture
def file(tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model's GGUF file, and a user's cache that is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_gguf(tmp_path / "student.gguf", tiny_pair[1])
    return tmp_path / "student.gguf"


def _kept(folder: Path) -> list[Path]:
    return sorted((folder.parent / "cache").glob("semalign/dequantised/*"))


def _weights(decoder: Decoder) -> dict[str, torch.Tensor]:
    return dict(decoder.model.state_dict())


def _never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("the file is read again")


def test_the_second_load_reads_what_the_first_kept(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = ModelConfig(str(file), dtype="float32")
    identity = finding.identity(config)
    first = loading.load(config)
    assert [p.is_dir() for p in _kept(file)] == [True]
    assert "its weights are kept in" in caplog.text and "keep_dequantised: false keeps nothing" in caplog.text
    monkeypatch.setattr(loading, "GgufConfig", _never)
    second = loading.load(config)
    assert second.name == first.name and finding.load_shape(config) == first.shape
    assert all(torch.equal(w, _weights(second)[name]) for name, w in _weights(first).items())
    assert second.tokenizer is not None and first.tokenizer is not None
    assert second.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    text = "What is 17 + 4?"
    assert second.tokenizer(text)["input_ids"] == first.tokenizer(text)["input_ids"]
    # A run that was made from the file goes on with what is kept.
    assert finding.identity(config) == identity
    # Another type is other weights.
    with pytest.raises(ModelError, match="read again"):
        loading.load(ModelConfig(str(file)))


def test_a_changed_file_is_read_again_and_takes_the_place(file: Path) -> None:
    config = ModelConfig(str(file), dtype="float32")
    loading.load(config)
    before = _kept(file)
    os.utime(file, ns=(0, 1))
    loading.load(config)
    assert len(_kept(file)) == 1 and _kept(file) != before


def test_nothing_is_kept_where_nobody_wants_it(file: Path) -> None:
    loading.load(ModelConfig(str(file), dtype="float32", keep_dequantised=False))
    assert _kept(file) == []


class _Usage(NamedTuple):
    free: int


def test_a_full_disk_keeps_nothing_and_the_model_is_loaded(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = ModelConfig(str(file), dtype="float32")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: _Usage(10))
        decoder = loading.load(config)
    assert decoder.num_layers == 3 and _kept(file) == [] and "are too much for its disk" in caplog.text

    def refused(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left")

    # What the disk refuses in the middle leaves nothing that looks whole.
    monkeypatch.setattr(type(decoder.model), "save_pretrained", refused)
    loading.load(config)
    assert _kept(file) == [] and "no space left" in caplog.text

    def refused_in_rust(*args: Any, **kwargs: Any) -> None:
        raise SafetensorError("the disk is full")

    monkeypatch.setattr(type(decoder.model), "save_pretrained", refused_in_rust)
    assert loading.load(config).num_layers == 3
    assert _kept(file) == [] and "the disk is full" in caplog.text
