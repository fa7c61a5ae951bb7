"""A teacher that comes to the end of its answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="session")
def talking_pair(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny pair, with a teacher that soon ends its answers: the end token's row of the head is made long."""
    folder = tmp_path_factory.mktemp("talking")
    model = AutoModelForCausalLM.from_pretrained(tiny_pair[0])
    tokenizer = AutoTokenizer.from_pretrained(tiny_pair[0])
    with torch.no_grad():
        model.get_output_embeddings().weight[tokenizer.eos_token_id] *= 3
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, tiny_pair[1]
