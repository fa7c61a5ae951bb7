"""Models that also read pictures load as their text model; what is left out is named; the saved student is a text model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import COMMON, EXTRA, WIDE, save_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from semalign.config import ModelConfig
from semalign.errors import ModelError
from semalign.models import wrappers
from semalign.models.finding import load_shape
from semalign.models.layouts import WRAPPERS
from semalign.models.loading import load

TEXT = {"mistral3": "mistral"}
VISION = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"depth": 1, "num_heads": 2, "out_hidden_size": 48, "image_size": 28, "patch_size": 14},
}


def wrapper(kind: str, folder: Path) -> Any:
    """A tiny random model of the kind, saved."""
    text = TEXT.get(kind, f"{kind}_text")
    base = AutoConfig.for_model(text, num_hidden_layers=4, **COMMON | WIDE | EXTRA[text])
    vision = VISION | ({"model_type": "pixtral"} if kind == "mistral3" else {})
    own = {"audio_config": None} if kind == "gemma4" else {}
    config = AutoConfig.for_model(
        kind, text_config=base.to_dict(), vision_config=vision, image_token_id=3, **own
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    save_model(model, folder)
    return model


@pytest.fixture(autouse=True)
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is warned of."""
    found: list[str] = []
    monkeypatch.setattr(wrappers, "_warn", found.append)
    return found


@pytest.mark.parametrize("kind", WRAPPERS)
def test_the_text_model_gives_the_whole_one_s_logits_and_is_saved_alone(
    kind: str, tmp_path: Path, said: list[str]
) -> None:
    whole = wrapper(kind, tmp_path / "whole")
    decoder = load(ModelConfig(str(tmp_path / "whole")))
    ids = torch.randint(6, 300, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = whole(input_ids=ids).logits
        assert torch.equal(decoder.model(input_ids=ids).logits, expected)
        assert load_shape(ModelConfig(str(tmp_path / "whole"))) == decoder.shape
        decoder.model.save_pretrained(tmp_path / "text")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "text")
        assert torch.equal(again(input_ids=ids).logits, expected)
    assert not any("vis" in name for name in load_file(tmp_path / "text" / "model.safetensors"))
    assert "loads as its text model without" in said[0] and "will not have them" in said[0]
    assert "vis" in said[0]


def test_a_head_that_transformers_ignores_is_named(tmp_path: Path, said: list[str]) -> None:
    wrapper("qwen3_5", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"mtp.fc.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors", {"format": "pt"})
    load(ModelConfig(str(tmp_path)))
    assert "mtp.fc" in said[0]


def test_a_text_model_has_nothing_to_say(tiny_pair: tuple[Path, Path], said: list[str]) -> None:
    load(ModelConfig(str(tiny_pair[1])))
    assert said == []


def test_its_layers_are_not_offloaded(tmp_path: Path) -> None:
    wrapper("gemma3", tmp_path)
    with pytest.raises(
        ModelError, match=r"teacher\.offload: expected null for .* got disk; .* save the text model"
    ):
        load(ModelConfig(str(tmp_path), offload="disk"))
