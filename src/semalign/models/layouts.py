"""Every fact of an architecture that SemAlign relies on, Hugging Face's names included.

A new architecture is an entry of `LAYOUTS`; nothing else in the package names one. One that is not in the package can be
added by a file on Python's path: see `semalign.run.plugins`.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from semalign import reading
from semalign.errors import ModelError
from semalign.run.plugins import gathered


@dataclass(frozen=True)
class Layout:
    """Where the parts of a decoder are, and what is particular about them."""

    layers: str = "layers"
    """Attribute of the body that holds the layers."""
    norm: str = "norm"
    """Attribute of the body that holds the final norm."""
    attn: tuple[str, ...] = ("self_attn",)
    """Module of a layer whose output is what attention, or what stands in its place, adds to the stream, up to the configuration's
    factor on it: the first of these that the layer has. Empty where no module's output is that."""
    mlp: tuple[str, ...] = ("mlp",)
    """The same of the MLP or the experts."""
    out: str = "self_attn.o_proj"
    """Module of a layer that carries the heads' values, side by side, into the stream; layers without attention have none. Empty where
    a layer's heads are of another width than the next one's."""
    norm_offset: float = 0.0
    """What the final norm adds to its stored weight before it multiplies."""
    is_post_normed: bool = False
    """Whether a norm lies between a sublayer's output projection and the stream."""


# The linear maps of a layer, where they are separate modules.
PROJECTIONS = {
    **{name: f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{name: f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")},
}
# Gemma normalises a sublayer's output before adding it, so the contribution is the norm's output. Its norms store gamma - 1.
_POST_NORMED = Layout(
    attn=("post_attention_layernorm",), mlp=("post_feedforward_layernorm",), is_post_normed=True
)
_GEMMA = replace(_POST_NORMED, norm_offset=1.0)
# Layers of linear attention stand between those of attention, and the norms store gamma - 1.
_QWEN_HYBRID = Layout(attn=("self_attn", "linear_attn"), norm_offset=1.0)
LAYOUTS: dict[str, Layout] = {
    "llama": Layout(),
    "mistral": Layout(),
    "ministral": Layout(),
    "ministral3": Layout(),
    "qwen2": Layout(),
    "qwen3": Layout(),
    "qwen3_5_text": _QWEN_HYBRID,
    "gemma": Layout(norm_offset=1.0),
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    # A factor on the whole stream ends each layer, so that no module's output is what is added to it; heads differ in width.
    "gemma4_text": Layout(attn=(), mlp=(), out="", is_post_normed=True),
    "phi3": Layout(),
    "smollm3": Layout(),
    "olmo2": _POST_NORMED,
    "olmo3": _POST_NORMED,
    "granite": Layout(),
    "glm": Layout(),
    "glm4": Layout(attn=("post_self_attn_layernorm",), mlp=("post_mlp_layernorm",), is_post_normed=True),
    "seed_oss": Layout(),
    "cohere2": Layout(),
    "exaone4": _POST_NORMED,
    "ernie4_5": Layout(),
    "hunyuan_v1_dense": Layout(),
    "starcoder2": Layout(),
    "lfm2": Layout(
        norm="embedding_norm", attn=("self_attn", "conv"), mlp=("feed_forward",), out="self_attn.out_proj"
    ),
    "mixtral": Layout(),
    "qwen2_moe": Layout(),
    "qwen3_moe": Layout(),
    "qwen3_next": _QWEN_HYBRID,
    "qwen3_5_moe_text": _QWEN_HYBRID,
    "gpt_oss": Layout(),
    "glm4_moe": Layout(),
    "deepseek_v3": Layout(),
    "minimax_m2": Layout(),
    "gpt2": Layout("h", "ln_f", ("attn",), ("mlp",), "attn.c_proj"),
}
"""By transformers' `model_type`."""
WRAPPERS = ("gemma3", "gemma4", "mistral3", "qwen3_5", "qwen3_5_moe")
"""Models that also read pictures, which load as their text model."""
_BESIDE_THE_STREAM = {
    "hidden_size_per_layer_input": "an embedding of the token beside the stream",
    "num_kv_shared_layers": "keys and values of earlier layers",
}
"""Fields of a configuration that say that a layer needs more than the stream and the mask."""
WHOLE = Layout(layers="", norm="", attn=(), mlp=(), out="")
"""Of a causal language model whose layers are not known: it is run as a whole, and can teach by its distribution."""
_STILL_A_TEACHER = "As a teacher it will do with recipe.name: aligned_output and pairing.selection: last."


@cache
def layouts() -> Mapping[str, Layout]:
    """`LAYOUTS` and those that files on Python's path add."""
    return LAYOUTS | gathered("LAYOUTS")


def layout_of(config: Any, name: str, *, needs_layers: bool = True) -> Layout:
    """The layout of a supported architecture, or `WHOLE` for a model that is only asked for its distribution.

    Args:
        config: transformers' configuration of the model.
        name: the model, for messages.
        needs_layers: whether a model whose layers are not known will not do.

    Raises:
        ModelError: SemAlign does not support the architecture; the sentence says why.
    """
    kind = getattr(config, "model_type", "unknown")
    beside = next((f for f in _BESIDE_THE_STREAM if kind in layouts() and getattr(config, f, None)), None)
    if kind in layouts() and beside is None:
        return layouts()[kind]
    is_causal = not getattr(config, "is_encoder_decoder", False) and not hasattr(config, "vision_config")
    if is_causal and not needs_layers:
        return WHOLE
    if beside is not None:
        raise ModelError(
            f"{name}: its layers read {_BESIDE_THE_STREAM[beside]} ({beside}), so they cannot be run from the stream alone; SemAlign "
            f"works with models of type {kind!r} that do not. {_STILL_A_TEACHER}"
        )
    if getattr(config, "is_encoder_decoder", False):
        reason = "an encoder-decoder"
    elif hasattr(config, "vision_config"):
        reason = "a vision-language model"
    elif experts_of(config):
        reason = "a mixture of experts, which has not been tested"
    else:
        reason = "an architecture that has not been tested"
    near = difflib.get_close_matches(str(kind), list(layouts()), n=1, cutoff=0.0)
    raise ModelError(
        f"{name}: model type {kind!r} is {reason}; the nearest type that SemAlign knows is {near[0]}, docs/families.md lists all, and "
        f"docs/howto/architecture.md says how one file adds a decoder.{f' {_STILL_A_TEACHER}' if is_causal else ''}"
    )


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, and what it does to its logits, read off its configuration before any weight."""

    layers: int
    """L."""
    width: int
    """Channels of the residual stream."""
    heads: int
    """Attention heads of a layer."""
    key_heads: int
    """Key-value heads of a layer, each read by heads / key_heads heads."""
    head_dim: int
    """Channels of one attention head."""
    vocabulary: int
    """Rows of the LM head."""
    positions: int | None
    """Tokens a sequence may have with the frequencies that every other one has; None: the configuration states no limit."""
    logit_scale: float
    """Factor on the logits."""
    logit_softcap: float | None
    """c where logits are c tanh(logits / c)."""
    rope_limit: int | None = None
    """See `rope_limit`."""
    residual_scale: float = 1.0
    """Factor on what attention and the MLP add to the stream."""
    experts: int = 0
    """Experts of a mixture; 0 for a dense model."""
    has_layers: bool = True
    """Whether its layers are known, so that they can be cut, captured and trained."""


class _Sizes(reading.Shape):
    """The ranges in which a configuration's sizes must lie: what is beyond them would only be found out by its allocation."""

    layers: reading.Place
    width: Annotated[int, Field(ge=1, le=1 << 17)]
    heads: Annotated[int, Field(ge=1, le=1 << 12)]
    key_heads: Annotated[int, Field(ge=1, le=1 << 12)]
    head_dim: Annotated[int, Field(ge=1, le=1 << 14)]
    vocabulary: Annotated[int, Field(ge=1, le=1 << 24)]
    positions: Annotated[int, Field(ge=1, le=1 << 40)] | None
    logit_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    logit_softcap: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    residual_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    experts: Annotated[int, Field(ge=0, le=1 << 16)]
    has_layers: bool


def shape_of(config: Any, name: str = "model", *, has_layers: bool = True) -> Shape:
    """The shape that transformers' configuration of a text model states.

    Args:
        has_layers: see `Shape`; without known layers it counts as having one attention head where it states none.

    Raises:
        ModelError: a size is missing, of another type, or beyond any model's.
    """
    try:
        shape = _shape_of(config, has_layers)
        reading.check_shape(_Sizes, vars(shape))
    except (TypeError, ValueError, ZeroDivisionError, OverflowError, AttributeError) as error:
        raise ModelError(
            f"{name}: its configuration states sizes that no model has ({error}); mend config.json."
        ) from error
    return shape


def _shape_of(config: Any, has_layers: bool) -> Shape:
    heads = int(_stated(config, "num_attention_heads") or (0 if has_layers else 1))
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    return Shape(
        layers=int(config.num_hidden_layers),
        width=int(config.hidden_size),
        heads=heads,
        key_heads=int(_stated(config, "num_key_value_heads") or heads),
        # Where queries and values differ in width (multi-head latent attention), a head's value is what it contributes.
        head_dim=int(
            _stated(config, "v_head_dim") or _stated(config, "head_dim") or config.hidden_size // heads
        ),
        vocabulary=int(config.vocab_size),
        positions=positions_of(config),
        logit_scale=scale / float(getattr(config, "logits_scaling", None) or 1.0),
        logit_softcap=getattr(config, "final_logit_softcapping", None),
        rope_limit=rope_limit(config),
        residual_scale=float(getattr(config, "residual_multiplier", None) or 1.0),
        experts=experts_of(config),
        has_layers=has_layers,
    )


def experts_of(config: Any) -> int:
    """Experts that a layer chooses from; 0 for a dense model."""
    counts = [
        getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")
    ]
    return max((int(count) for count in counts if count), default=0)


def _stated(config: Any, name: str) -> Any:
    """A size as the configuration states it for the model; where layers differ in it, its attribute may not be asked for."""
    return vars(config)[name] if name in vars(config) else getattr(config, name, None)


def positions_of(config: Any) -> int | None:
    """Positions of a model, up to where its rotary embedding goes over to other frequencies."""
    limits = getattr(config, "max_position_embeddings", None), rope_limit(config)
    return min((int(limit) for limit in limits if limit), default=None)


def rope_limit(config: Any) -> int | None:
    """Positions beyond which a rotary embedding changes for all rows of a batch; None for one that never does.

    LongRoPE and dynamic NTK choose the frequencies by the longest row of a batch, so that beyond this a row's signals would depend
    on its neighbours.
    """
    ropes = getattr(config, "rope_parameters", None) or {}
    # Where layers differ in it, the parameters are by the kind of layer.
    kinds = [ropes, *(rope for rope in ropes.values() if isinstance(rope, Mapping))]
    limits = [
        rope.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        for rope in kinds
        if rope.get("rope_type") in ("longrope", "dynamic")
    ]
    return min((int(limit) for limit in limits if limit), default=None)


def check_allocation(shape: Shape, folder: Path) -> None:
    """Refuse weights that are too small for the sizes that a model is allocated by before they are read.

    Raises:
        ValueError: they are; configuration and weights are of different models, or a file is cut off.
    """
    files = [p for kind in ("*.safetensors", "*.bin") for p in folder.glob(kind)] if folder.is_dir() else []
    # At least embedding, queries and outputs, at two bits a weight.
    least = shape.width * (shape.vocabulary + 2 * shape.layers * shape.heads * shape.head_dim) // 4
    if files and least > (there := sum(p.stat().st_size for p in files)):
        raise ValueError(f"{there} bytes of weights, and the sizes in config.json need {least} at least")


def config_of_span(config: Any, start: int, stop: int) -> Any:
    """A copy of transformers' configuration for layers start+1..stop alone."""
    part = copy.copy(config)
    # Some models look their layer's attention type up by position.
    if getattr(part, "layer_types", None) is not None:
        part.layer_types = part.layer_types[start:stop]
    part.num_hidden_layers = stop - start
    return part
