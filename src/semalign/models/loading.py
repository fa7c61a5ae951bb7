"""From a name to a `Decoder`: local folders, hub ids and GGUF files; every failure is one sentence."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from semalign import embedded
from semalign.config import ModelConfig
from semalign.errors import ModelError, SemAlignError, require
from semalign.models.decoder import Decoder
from semalign.models.dequantised import keep, kept_at
from semalign.models.layouts import WHOLE, WRAPPERS, Shape, check_allocation, layout_of, layouts, shape_of
from semalign.models.variables import give_variables
from semalign.models.wrappers import loads_whole, say_what_is_left_out, text_of
from semalign.run.files import parquet_files
from semalign.run.sums import digests

_CHECKED_AT_ONCE = 1 << 24  # elements
KINDS = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
"""Endings of what a model, its tokenizer and its code are read from."""
OF_TRAINING = ("training_args.bin", "trainer_state.json")
"""Files that training leaves beside a model, and that nobody reads with it."""


def locate(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Where transformers shall look, and the keyword arguments for it; missing local files are named here."""
    name = config.model_name_or_path
    if name.startswith("embedded:"):
        model = name.removeprefix("embedded:")
        if model not in embedded.MODELS:
            known = ", ".join(f"embedded:{m}" for m in embedded.MODELS)
            raise ModelError(f"{name}: expected one of {known}; choose one.")
        return str(embedded.model_path(model)), {}
    # os.path, unlike pathlib, answers a name that no file can have with no.
    path = Path(os.path.expanduser(name))
    is_folder = os.path.isdir(path)
    if name.endswith(".gguf"):
        if not os.path.isfile(path):
            raise ModelError(
                f"{name}: expected a GGUF file, found none; give the path of the downloaded file."
            )
        require("gguf", "gguf")
        return str(path.parent), {"gguf_file": path.name}
    if name.startswith((".", "/", "~")) and not is_folder:
        raise ModelError(
            f"{name}: expected a model folder, found none; give a folder with config.json, or a hub id."
        )
    if is_folder and (path / "adapter_config.json").is_file():
        raise ModelError(
            f"{name}: expected a model, but the folder also holds an adapter (adapter_config.json), which would be loaded into it; "
            "merge it with peft's merge_and_unload and save the result, or give a folder without it."
        )
    if is_folder and not (path / "config.json").is_file():
        raise ModelError(
            f"{name}: expected config.json in the folder, found none; give the folder that holds the model."
        )
    where = str(path) if name.startswith("~") else name
    return where, {"revision": config.model_revision} if config.model_revision else {}


def opened(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """`locate`, or the folder that keeps what a GGUF file was dequantised to."""
    where, extra = locate(config)
    if "gguf_file" in extra and config.keep_dequantised:
        folder = kept_at(Path(where, extra["gguf_file"]), _dtype_name(config))
        if folder.is_dir():
            return str(folder), {}
    return where, extra


def _load_config(config: ModelConfig, *, needs_layers: bool = True) -> tuple[Any, bool]:
    """The checkpoint's configuration of its text model, and whether the model's layers are known; see `layout_of`."""
    loaded = _whole_config(config)
    is_known = loaded.model_type in layouts() or loaded.model_type in WRAPPERS
    text = loaded.get_text_config()
    chosen = text if is_known or not hasattr(loaded, "vision_config") else loaded
    layout = layout_of(chosen, config.model_name_or_path, needs_layers=needs_layers)
    return text, layout is not WHOLE


def _whole_config(config: ModelConfig) -> Any:
    where, extra = opened(config)
    with _reading(config):
        loaded = AutoConfig.from_pretrained(where, trust_remote_code=config.trust_remote_code, **extra)
    _check_quantised(config, loaded)
    return loaded


def load_shape(config: ModelConfig, *, needs_layers: bool = True) -> Shape:
    """The checkpoint's sizes, before any weight is read.

    Args:
        needs_layers: see `semalign.models.layouts.layout_of`.

    Raises:
        ModelError: the checkpoint cannot be read, or its architecture is not supported.
    """
    with _reading(config):
        text, has_layers = _load_config(config, needs_layers=needs_layers)
        shape = shape_of(text, config.model_name_or_path, has_layers=has_layers)
        check_allocation(shape, Path(locate(config)[0]))
        return shape


def random_model(config: ModelConfig) -> PreTrainedModel:
    """A model of the checkpoint's architecture and sizes with fresh weights in float32, as transformers draws them."""
    return AutoModelForCausalLM.from_config(_load_config(config)[0], dtype=torch.float32)


def identity(config: ModelConfig, memory: Path | None = None) -> dict[str, Any]:
    """What makes this checkpoint itself, for fingerprints: every byte of its files, not their place.

    Hub checkpoints are known by the commit that their configuration was resolved to.

    Args:
        memory: file that keeps digests from one command to the next; see `semalign.run.sums.digests`.
    """
    where, extra = locate(config)
    known: dict[str, Any] = {
        "dtype": config.dtype,
        "load_in_8bit": config.load_in_8bit,
        "load_in_4bit": "nf4" if config.load_in_4bit else False,
        # Named only where it is used, so that folders from before it stay valid.
        **({"chat_template_kwargs": config.chat_template_kwargs} if config.chat_template_kwargs else {}),
    }
    folder, files = Path(where), []
    if "gguf_file" in extra:
        files = [Path(config.model_name_or_path).expanduser()]
    elif folder.is_dir():
        files = [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]
        files = sorted(p for p in files if p.suffix in KINDS and p.is_file() and p.name not in OF_TRAINING)
    else:
        loaded = AutoConfig.from_pretrained(where, trust_remote_code=config.trust_remote_code, **extra)
        return known | {"commit": getattr(loaded, "_commit_hash", None) or config.model_revision}
    found = digests(files, memory)
    return known | {"files": {p.name: sha[:16] for p, sha in zip(files, found, strict=True)}}


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer."""
    where, extra = opened(config)
    with _reading(config):
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=config.trust_remote_code, **extra)
        tokenizer.decode(tokenizer("0")["input_ids"])  # what is wrong in its files may show here first
        give_variables(tokenizer, config.chat_template_kwargs)
        return tokenizer


@contextmanager
def _reading(config: ModelConfig) -> Iterator[None]:
    """Whatever goes wrong in the libraries that read a checkpoint becomes one sentence about that checkpoint."""
    try:
        yield
    except SemAlignError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(
            f"{config.model_name_or_path}: does not fit into memory; see offload, load_in_8bit and load_in_4bit."
        ) from error
    except BaseException as error:
        # A panic inside the tokenizers' native code is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if config.offload == "disk" and "offload_folder" in str(error):
            raise ModelError(
                "teacher.offload: expected null or cpu for a model whose experts are joined on loading and so lie in no file as they "
                "are used, got disk; set teacher.offload: cpu."
            ) from error
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        name = config.model_name_or_path
        advice = (
            "install what is missing, or choose another attn_implementation"
            if isinstance(error, ImportError)
            else "its files are damaged, incomplete or of an unknown form, so copy or download the model again"
            if os.path.exists(os.path.expanduser(name)) or name.startswith("embedded:")
            else f"without a network fetch it before with: hf download {name}"
        )
        raise ModelError(f"{name}: cannot be loaded ({reason}); {advice}.") from error


def _check_quantised(config: ModelConfig, loaded: Any) -> None:
    """Refuse a checkpoint whose weights were saved in a quantised form that SemAlign does not train or read with."""
    found = getattr(loaded, "quantization_config", None)
    if found is None or config.model_name_or_path.endswith(".gguf"):
        return
    told = found if isinstance(found, dict) else found.to_dict()
    method = str(getattr(told.get("quant_method"), "value", told.get("quant_method")))
    if method != "bitsandbytes":
        raise ModelError(
            f"{config.model_name_or_path}: expected weights in floating point or in bitsandbytes' form, got a checkpoint that "
            f"{method} has quantised; give the checkpoint that it was made from, with load_in_4bit or load_in_8bit if memory is short."
        )
    require("bitsandbytes", "bitsandbytes")


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
    if config.only_tells:
        if config.server.url:
            # Its address may change from run to run; what answers there is the same model.
            known |= {"served": [config.server.engine, config.server.model]}
        if config.signals is not None:
            told = [path for path in parquet_files(config.signals) if path.is_file()]
            known |= {"signals": [sha[:16] for sha in digests(told, memory)]}
        if config.tokenizer == "own":
            known |= {"tokenizer": "own"}
        shape = replace(load_shape(config, needs_layers=False), has_layers=False)
        return Checkpoint(shape, load_tokenizer(config), known, partial(load, config, needs_layers=False))
    # An offloaded model is moved layer by layer.
    needs_layers = needs_layers or config.offload is not None
    opened = partial(load, config, needs_layers=needs_layers)
    return Checkpoint(load_shape(config, needs_layers=needs_layers), load_tokenizer(config), known, opened)


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
        for block in tensor.detach().flatten().split(_CHECKED_AT_ONCE):
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
    with _reading(config):
        return _load(config, device, needs_layers)


def _load(config: ModelConfig, device: str | None, needs_layers: bool) -> Decoder:
    load_shape(config, needs_layers=needs_layers)
    whole = _whole_config(config)
    where, extra = opened(config)
    gguf = Path(where, extra["gguf_file"]) if "gguf_file" in extra else None
    if config.load_in_8bit or config.load_in_4bit:
        extra["quantization_config"] = _quantisation(config)
    elif gguf is not None:
        extra["quantization_config"] = GgufConfig(dequantize=True)
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if config.offload:
        if whole.model_type in WRAPPERS:
            raise ModelError(
                f"teacher.offload: expected null for {config.model_name_or_path}, which loads as the text model of one that also reads "
                f"pictures, got {config.offload}; load it once without, save the text model, and give that folder."
            )
        extra["device_map"] = _device_map(config, target)
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
    _check_complete(config, told)
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
    if not (config.load_in_8bit or config.load_in_4bit or config.offload):
        model = model.to(target)
    tokenizer, name = load_tokenizer(config), config.model_name_or_path
    decoder = checked(Decoder(model, tokenizer, name, needs_layers=needs_layers))
    if gguf is not None and config.keep_dequantised:
        keep(decoder.model, tokenizer, gguf, _dtype_name(config))
    return decoder


def checked(decoder: Decoder) -> Decoder:
    """The same model, with finite weights and logits that SemAlign knows how to make."""
    _check_finite(decoder)
    decoder.self_test()
    return decoder


def _device_map(config: ModelConfig, device: str) -> dict[str, Any]:
    """Every layer offloaded, the rest on the device: embedding, final norm and head are read outside the model's forward."""
    where, extra = locate(config)
    loaded = AutoConfig.from_pretrained(where, trust_remote_code=config.trust_remote_code, **extra)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(loaded, trust_remote_code=config.trust_remote_code)
    main: Any = torch.cuda.current_device() if device == "cuda" else device
    body, prefix = model.base_model, model.base_model_prefix
    layers = layout_of(loaded.get_text_config(), config.model_name_or_path).layers
    places = {name: main for name, _ in model.named_children() if name != prefix}
    places |= {f"{prefix}.{name}": main for name, _ in body.named_children() if name != layers}
    return places | {f"{prefix}.{layers}.{n}": config.offload for n in range(len(getattr(body, layers)))}


def _dtype(config: ModelConfig) -> Any:
    name = _dtype_name(config)
    return name if name == "auto" else getattr(torch, name)


def _dtype_name(config: ModelConfig) -> str:
    # A GGUF file has no type of its own once dequantised.
    is_open = config.dtype == "auto" and config.model_name_or_path.endswith(".gguf")
    return "bfloat16" if is_open else config.dtype


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


def _check_complete(config: ModelConfig, told: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that does not fill its model: transformers draws missing weights at random and leaves others out.

    Tied weights and those that an architecture is known to ignore are not among what transformers tells.
    """
    name = config.model_name_or_path
    if mismatched := sorted(told["mismatched_keys"]):
        key, there, expected = mismatched[0]
        raise ModelError(
            f"{name}: expected {_listed([m[0] for m in mismatched])} of the sizes that config.json states, got {tuple(there)} "
            f"instead of {tuple(expected)} for {key}; config.json and weights are of different models."
        )
    for kind, what in (
        ("missing_keys", "are missing from the checkpoint"),
        ("unexpected_keys", "have no place in the model"),
    ):
        if keys := sorted(told[kind]):
            raise ModelError(
                f"{name}: expected the checkpoint to hold exactly the model's weights, but {len(keys)} {what}: {_listed(keys)}; give "
                "a complete checkpoint whose names are those of config.json's architecture."
            )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _check_finite(decoder: Decoder) -> None:
    for name, parameter in decoder.model.named_parameters():
        # What lies on disk is not read for this; activations are checked anyway.
        if not parameter.is_floating_point() or parameter.is_meta:
            continue
        # A sum is NaN or infinite when any element is. In blocks, since summing in float32 copies what it sums.
        blocks = parameter.detach().flatten().split(_CHECKED_AT_ONCE)
        if not torch.isfinite(torch.stack([block.sum(dtype=torch.float32) for block in blocks]).sum()):
            bad = int((~torch.isfinite(parameter)).sum())
            if bad:
                raise ModelError(
                    f"{decoder.name}: tensor {name} has {bad} NaN or infinite values; fetch the checkpoint again."
                )


def check_pair(teacher: Shape, student: Shape, *, allow_smaller_teacher: bool) -> None:
    """Refuse a teacher that is narrower or shallower than the student, from their sizes alone; one that is run as a whole or only tells
    may be one of the two, as long as it is larger in all."""
    sizes = [
        ("layers", teacher.layers, student.layers),
        ("channels", teacher.width, student.width),
    ]
    if not teacher.has_layers:
        ours, theirs = (one.layers * one.width**2 for one in (student, teacher))
        sizes = [("layers x channels^2", theirs, ours)]
    for what, t, s in sizes:
        if t < s and not allow_smaller_teacher:
            raise ModelError(
                f"expected a teacher at least as large as the student, got {t} teacher {what} and {s} student {what}; "
                "swap the two or set allow_smaller_teacher: true."
            )
