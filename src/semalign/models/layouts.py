"""Every fact of an architecture that SemAlign relies on, Hugging Face's names included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from semalign.errors import ModelError


@dataclass(frozen=True)
class Layout:
    """Attribute names of one architecture family; `attn` and `mlp` name the module whose output joins the stream."""

    layers: str = "layers"
    norm: str = "norm"
    attn: str = "self_attn"
    mlp: str = "mlp"
    out: str = "self_attn.o_proj"  # carries the heads' values, side by side, into the stream
    lora: tuple[str, ...] = ("up_proj", "down_proj", "v_proj", "o_proj")


# The linear maps of a layer, where they are separate modules.
PROJECTIONS = {
    **{name: f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{name: f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")},
}


# Gemma normalises a sublayer's output before adding it, so the contribution is the norm's output.
_GEMMA = Layout(attn="post_attention_layernorm", mlp="post_feedforward_layernorm")


LAYOUTS: dict[str, Layout] = {
    "llama": Layout(),
    "mistral": Layout(),
    "qwen2": Layout(),
    "qwen3": Layout(),
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": Layout(lora=("gate_up_proj", "down_proj", "qkv_proj", "o_proj")),
    "gpt2": Layout("h", "ln_f", "attn", "mlp", "attn.c_proj", lora=("c_attn", "c_fc", "c_proj")),
}


def layout_of(config: Any, name: str) -> Layout:
    """The layout of a supported architecture, or one sentence saying why not."""
    kind = getattr(config, "model_type", "unknown")
    if kind in LAYOUTS:
        return LAYOUTS[kind]
    if getattr(config, "is_encoder_decoder", False):
        reason = "an encoder-decoder"
    elif hasattr(config, "vision_config"):
        reason = "a vision-language model"
    elif any(getattr(config, a, None) for a in ("num_experts", "num_local_experts", "n_routed_experts")):
        reason = "a mixture of experts, which has not been tested"
    else:
        reason = "an architecture that has not been tested"
    raise ModelError(
        f"{name}: model type {kind!r} is {reason}; SemAlign works with decoders of type {', '.join(LAYOUTS)}."
    )
