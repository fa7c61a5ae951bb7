"""What of two models and their loading is refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import config_of

from semalign.config import (
    ModelConfig,
)
from semalign.errors import ConfigError

from .refused import assert_refused


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ModelConfig(""), "model_name_or_path: expected a folder, hub id or .gguf file, got ''"),
        (lambda: ModelConfig("x", load_in_8bit=True, load_in_4bit=True), "load_in_8bit: expected either 8 or 4 bits, got 'both'"),
        (lambda: ModelConfig("x", load_in_8bit=True, offload="disk"), "offload: expected either offload or quantisation to 8 or 4 bits"),
        (lambda: ModelConfig("x.gguf", offload="cpu"), "offload: expected a checkpoint in safetensors"),
        (lambda: ModelConfig("x.gguf", device_map="auto"), "device_map: expected a checkpoint in safetensors"),
        (lambda: ModelConfig("x", device_map="auto", load_in_4bit=True), "device_map: expected either device_map or quantisation"),
        (lambda: ModelConfig("x", max_memory="60GiB"), "max_memory: expected null without device_map: auto, got '60GiB'"),
        (lambda: ModelConfig("x", device_map="auto", max_memory="much"), "max_memory: expected a size such as 60GiB or 800MB, got 'much'"),
        (lambda: ModelConfig("x", device_map="auto", max_memory="1TiB"), "max_memory: expected a size such as 60GiB or 800MB, got '1TiB'"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named_with_what_was_expected(
    make: Callable[[], object], said: str
) -> None:
    assert_refused(make, said)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ModelConfig("x", offload="disk"),
        lambda: ModelConfig("x.gguf", load_in_8bit=True),
    ],
)
def test_what_lies_just_inside_a_bound_is_taken(make: Callable[[], object]) -> None:
    make()


def test_what_has_not_been_tested_is_refused(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="either offload or quantisation to 8 or 4 bits"):
        ModelConfig("x", offload="cpu", load_in_4bit=True)
    with pytest.raises(ConfigError, match="GGUF"):
        ModelConfig("x.gguf", offload="disk")
    config = config_of(tiny_pair, rows_file, tmp_path)
    with pytest.raises(ConfigError, match=r"student\.offload"):
        replace(config, student=replace(config.student, offload="cpu"))
