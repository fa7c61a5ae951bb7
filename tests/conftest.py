"""Fixtures that every test can share."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

# Before torch is imported, and for the processes that tests start: tests run side by side, each with a core of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
import yaml
from hypothesis import HealthCheck, settings
from tiny import save_model, save_with_own_code, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from semalign.models import layouts

# A busy machine is no failure.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


class _Deprecations(logging.Handler):
    """What libraries log, instead of warning of it, as going away."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecat" in record.getMessage().lower():
            self.found.append(f"{record.name}: {record.getMessage()}")


def pytest_configure() -> None:
    """A shell ignores SIGINT for what it runs in the background, and SemAlign keeps to that; the tests of signals send it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def no_waiting() -> Iterator[None]:
    """What takes most of a short run's time and is not tested: waiting for the disk, and collecting what imports left behind."""
    gc.freeze()
    with patch("os.fsync"):
        yield


@pytest.fixture(autouse=True)
def no_deprecations() -> Iterator[None]:
    """A test that makes transformers, peft or accelerate log a deprecation fails: the next upgrade would break it."""
    handler, loggers = _Deprecations(), [logging.getLogger(n) for n in ("transformers", "peft", "accelerate")]
    for logger in loggers:
        logger.addHandler(handler)
    yield
    for logger in loggers:
        logger.removeHandler(handler)
    assert not handler.found, handler.found


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """See tiny_tokenizer."""
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a teacher (5 layers, width 48) and a student (3 layers, width 32), Llama."""
    root = tmp_path_factory.mktemp("pair")
    teacher = save_model(tiny_model("llama", layers=5, wide=True, seed=1), root / "teacher")
    student = save_model(tiny_model("llama", layers=3, wide=False, seed=2), root / "student")
    return teacher, student


@pytest.fixture(scope="session")
def talking_pair(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny pair, with a teacher that soon ends its answers, in which no control token stands: the end token's row of the head is made
    long, those of the others are 0."""
    folder = tmp_path_factory.mktemp("talking")
    model = AutoModelForCausalLM.from_pretrained(tiny_pair[0])
    tokenizer = AutoTokenizer.from_pretrained(tiny_pair[0])
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head[[i for i in tokenizer.added_tokens_decoder if i != tokenizer.eos_token_id]] = 0
        head[tokenizer.eos_token_id] *= 3
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, tiny_pair[1]


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 conversations of different lengths."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(20):
            question, answer = (
                f"what is {i} and {i % 7}" + " and two" * (i % 5),
                f"the answer is {i + i % 7}" + " five" * (i % 3),
            )
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model that only the code in its folder can load, of an architecture whose layout is known."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = layouts.gathered
    monkeypatch.setattr(
        layouts,
        "gathered",
        lambda name: {"own_llama": layouts.Layout()} if name == "LAYOUTS" else found(name),
    )
    layouts.layouts.cache_clear()
    yield save_with_own_code(tmp_path / "own")
    layouts.layouts.cache_clear()


@pytest.fixture
def config_file(tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path) -> Path:
    """The config of a short run of the tiny pair, into the folder `run` beside it."""
    values = {
        "teacher": {"model_name_or_path": str(tiny_pair[0])},
        "student": {"model_name_or_path": str(tiny_pair[1])},
        "data": {"dataset_name": str(rows_file), "heldout_rows": 4, "max_length": 64},
        "output_dir": str(tmp_path / "run"),
        "train": {
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "lora_r": 0,
            "learning_rate": 1e-3,
        },
        "cache": {"shard_rows": 8},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
