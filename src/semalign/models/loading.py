"""From a name to a `Decoder`: local folders, hub ids and GGUF files; every failure is one sentence."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from semalign.config import ModelConfig
from semalign.errors import ModelError, require
from semalign.models.decoder import Decoder
from semalign.models.dequantised import keep
from semalign.models.finding import (
    dtype_name,
    identity,
    load_config_of,
    load_shape,
    load_tokenizer,
    opened,
    reading,
    whole_config,
)
from semalign.models.layouts import WRAPPERS, Shape
from semalign.models.placing import copy_mapped, device_map
from semalign.models.soundness import CHECKED_AT_ONCE, check_complete, check_finite
from semalign.models.wrappers import loads_whole, say_what_is_left_out, text_of


def random_model(config: ModelConfig) -> PreTrainedModel:
    """A model of the checkpoint's architecture and sizes with fresh weights in float32, as transformers draws them."""
    text, _ = load_config_of(config)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        text, dtype=torch.float32, trust_remote_code=config.trust_remote_code
    )
    return model


@dataclass(frozen=True)
class Checkpoint:
    """One of the two models: what is known of it before its weights are read, and how to have them."""

    shape: Shape
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, Any]
    open: Callable[[], Decoder]


def named(
    config: ModelConfig, memory: Path | None = None, *, identified: bool = True, needs_layers: bool = True
) -> Checkpoint:
    """A model that is read whenever it is needed; where nothing is kept of it, its files need not be hashed.

    Args:
        needs_layers: whether a model will not do that can only be run as a whole.
    """
    known = identity(config, memory) if identified else {}
    opened = partial(load, config, needs_layers=_reads_layers(config, needs_layers))
    return Checkpoint(shape_named(config, needs_layers=needs_layers), load_tokenizer(config), known, opened)


def shape_named(config: ModelConfig, *, needs_layers: bool) -> Shape:
    """The sizes of a model that is read by its name; of one that only tells nobody reads the layers."""
    shape = load_shape(config, needs_layers=_reads_layers(config, needs_layers))
    return replace(shape, has_layers=False) if config.only_tells else shape


def _reads_layers(config: ModelConfig, is_asked: bool) -> bool:
    """Whether the layers have to be known: a model whose layers lie in several places is placed layer by layer."""
    return not config.only_tells and (is_asked or config.is_placed)


def _elsewhere(config: ModelConfig) -> Decoder:
    raise ModelError(
        f"teacher.server: {config.server.url} holds the weights of {config.model_name_or_path}, and what is asked for needs them here; "
        "leave teacher.server out, or do without it."
    )


def in_memory(decoder: Decoder) -> Checkpoint:
    """A model that is loaded already; every byte of its tensors tells it from others."""
    hashed = hashlib.sha256(str(decoder.config.to_dict()).encode())
    for name, tensor in decoder.model.state_dict().items():
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # In blocks, since one that lies on a GPU is copied.
        for block in tensor.detach().flatten().split(CHECKED_AT_ONCE):
            hashed.update(block.cpu().contiguous().view(torch.uint8).numpy())
    assert decoder.tokenizer is not None
    return Checkpoint(decoder.shape, decoder.tokenizer, {"weights": hashed.hexdigest()[:16]}, lambda: decoder)


def load(config: ModelConfig | str, *, device: str | None = None, needs_layers: bool = True) -> Decoder:
    """Load, check every weight for NaN and infinity, and run the self-test; a string is a model_name_or_path.

    Args:
        needs_layers: see `Decoder`.
    """
    if isinstance(config, str):
        config = ModelConfig(config)
    if config.server.url:
        return _elsewhere(config)
    with reading(config):
        return _load(config, device, needs_layers)


def _load(config: ModelConfig, device: str | None, needs_layers: bool) -> Decoder:
    load_shape(config, needs_layers=needs_layers)
    whole = whole_config(config)
    where, extra = opened(config)
    gguf = Path(where, extra["gguf_file"]) if "gguf_file" in extra else None
    if config.load_in_8bit or config.load_in_4bit:
        extra["quantization_config"] = _quantisation(config)
    elif gguf is not None:
        extra["quantization_config"] = GgufConfig(dequantize=True)
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if config.is_placed:
        if whole.model_type in WRAPPERS:
            name = "offload" if config.device_map is None else "device_map"
            raise ModelError(
                f"teacher.{name}: expected null for {config.model_name_or_path}, which loads as the text model of one that also reads "
                f"pictures, got {getattr(config, name)}; load it once without, save the text model, and give that folder."
            )
        extra["device_map"] = device_map(config, whole, target)
    if config.attn_implementation:
        extra["attn_implementation"] = config.attn_implementation
    is_wrapped = whole.model_type in WRAPPERS and loads_whole(whole)
    loader = AutoModelForImageTextToText if is_wrapped else AutoModelForCausalLM
    read: Any = loader.from_pretrained(
        where,
        dtype=_dtype(config),
        trust_remote_code=config.trust_remote_code,
        # Listed in what is told, and refused there with both shapes.
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **extra,
    )
    model, told = read
    check_complete(config, told)
    others: list[str] = []
    if is_wrapped:
        others = [
            n for n, _ in model.named_parameters() if "language_model." not in n and "lm_head." not in n
        ]
        model = text_of(model)
    say_what_is_left_out(config.model_name_or_path, Path(where), model, others)
    if gguf is not None:
        # The weights are plain tensors now; the entry would make transformers refuse to save them.
        model.config.__dict__.pop("quantization_config", None)
        model.hf_quantizer = None
        model.is_quantized = False
    if config.load_in_4bit:
        _keep_backward(model)
    if not (config.load_in_8bit or config.load_in_4bit or config.is_placed):
        model = model.to(target)
        copy_mapped(model)
    tokenizer, name = load_tokenizer(config), config.model_name_or_path
    decoder = checked(Decoder(model, tokenizer, name, needs_layers=needs_layers))
    if gguf is not None and config.keep_dequantised:
        keep(decoder.model, tokenizer, gguf, dtype_name(config))
    return decoder


def checked(decoder: Decoder) -> Decoder:
    """The same model, with finite weights and logits that SemAlign knows how to make."""
    check_finite(decoder)
    decoder.self_test()
    return decoder


def _dtype(config: ModelConfig) -> Any:
    name = dtype_name(config)
    return name if name == "auto" else getattr(torch, name)


def _quantisation(config: ModelConfig) -> Any:
    require("bitsandbytes", "bitsandbytes")
    from transformers import BitsAndBytesConfig

    # nf4 has its levels where normally distributed weights are; the package's own default, fp4, has not.
    return BitsAndBytesConfig(
        load_in_8bit=config.load_in_8bit, load_in_4bit=config.load_in_4bit, bnb_4bit_quant_type="nf4"
    )


def _keep_backward(model: Any) -> None:
    """On the CPU bitsandbytes repacks 4-bit weights at the first forward pass for a kernel that has no backward."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
