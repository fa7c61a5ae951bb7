"""The text model of one that also reads pictures or sound, and the weights that a loaded model leaves out."""

from __future__ import annotations

import copy
import logging
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

logger = logging.getLogger(__name__)
OF_TEXT = "ForCausalLM"
"""How the classes end that load a wrapper's text model by themselves."""


def loads_whole(config: Any) -> bool:
    """Whether transformers has no class that reads the text model alone from such a checkpoint."""
    return not str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, "")).endswith(OF_TEXT)


def text_of(wrapper: Any) -> PreTrainedModel:
    """The text model inside, as a causal language model of its own over the same tensors.

    A student that is saved from it is a text model.
    """
    config, head = copy.deepcopy(wrapper.config.get_text_config()), wrapper.get_output_embeddings()
    # The wrapper's own configuration may say otherwise than its text model's.
    config.tie_word_embeddings = head.weight is wrapper.get_input_embeddings().weight
    with torch.device("meta"):
        text: Any = AutoModelForCausalLM.from_config(config, dtype=wrapper.dtype)
    setattr(text, text.base_model_prefix, wrapper.base_model.language_model)
    text.set_output_embeddings(head)
    text.generation_config = wrapper.generation_config
    return text


def say_what_is_left_out(name: str, folder: Path, model: Any, other_parts: list[str]) -> None:
    """Warn, once a process, of a checkpoint's weights that the model does not hold and a student saved from it will not have.

    Args:
        other_parts: weights of a wrapper outside its text model.
    """
    # What transformers ignores by design (such as a head for several tokens at once) is not among what it tells.
    patterns = [re.compile(p) for p in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    files = folder.glob("*.safetensors") if patterns else ()
    names = {key for path in files for key in _keys(path)}
    ignored = [key for key in sorted(names) if any(p.search(key) for p in patterns)]
    if left_out := [*ignored, *other_parts]:
        parts = sorted({".".join(key.split(".")[:2]) for key in left_out})
        _warn(
            f"{name}: loads as its text model without {len(left_out)} weights of {', '.join(parts[:4])}"
            f"{' and others' if len(parts) > 4 else ''}; a student that is saved from it will not have them"
        )


def _keys(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())


@cache
def _warn(text: str) -> None:
    logger.warning(text)
