"""On the real pair, where it is: set SEMALIGN_REAL_PAIR to the folder with teacher.gguf and student.gguf."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from semalign.config import ModelConfig
from semalign.data import shared_vocabulary
from semalign.models.finding import load_shape, load_tokenizer
from semalign.models.loading import load

FOLDER = os.environ.get("SEMALIGN_REAL_PAIR")
pytestmark = pytest.mark.skipif(
    not FOLDER, reason="SEMALIGN_REAL_PAIR names no folder with teacher.gguf and student.gguf"
)


def model(name: str) -> ModelConfig:
    return ModelConfig(str(Path(FOLDER or "") / f"{name}.gguf"))


def test_padded_vocabularies_are_cut_to_the_real_tokens() -> None:
    rows = [load_shape(model(n)).vocabulary for n in ("teacher", "student")]
    shared = shared_vocabulary(load_tokenizer(model("teacher")), load_tokenizer(model("student")), *rows)
    assert shared.size == 151_665 and shared.teacher_extra == 271


def test_a_dequantised_student_saves_and_loads_with_the_same_logits(tmp_path: Path) -> None:
    student = load(model("student"))
    student.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(100, 116)[None]
    with torch.no_grad():
        assert torch.equal(student.model(ids).logits, again(ids).logits)
