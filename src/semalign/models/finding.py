"""From a name to what is known of a checkpoint before its weights are read: its place, sizes, tokenizer and identity."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from semalign import embedded
from semalign.config import ModelConfig
from semalign.errors import ModelError, SemAlignError, require
from semalign.models.dequantised import kept_at
from semalign.models.layouts import WHOLE, WRAPPERS, Shape, check_allocation, layout_of, layouts, shape_of
from semalign.models.variables import give_variables
from semalign.run.files import parquet_files
from semalign.run.sums import digests

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
        folder = kept_at(Path(where, extra["gguf_file"]), dtype_name(config))
        if folder.is_dir():
            return str(folder), {}
    return where, extra


def whole_config(config: ModelConfig) -> Any:
    where, extra = opened(config)
    with reading(config):
        loaded = AutoConfig.from_pretrained(where, trust_remote_code=config.trust_remote_code, **extra)
    _check_quantised(config, loaded)
    return loaded


def load_config_of(config: ModelConfig, *, needs_layers: bool = True) -> tuple[Any, bool]:
    """The checkpoint's configuration of its text model, and whether the model's layers are known; see `layout_of`."""
    loaded = whole_config(config)
    is_known = loaded.model_type in layouts() or loaded.model_type in WRAPPERS
    text = loaded.get_text_config()
    chosen = text if is_known or not hasattr(loaded, "vision_config") else loaded
    layout = layout_of(chosen, config.model_name_or_path, needs_layers=needs_layers)
    return text, layout is not WHOLE


def load_shape(config: ModelConfig, *, needs_layers: bool = True) -> Shape:
    """The checkpoint's sizes, before any weight is read.

    Args:
        needs_layers: see `semalign.models.layouts.layout_of`.

    Raises:
        ModelError: the checkpoint cannot be read, or its architecture is not supported.
    """
    with reading(config):
        text, has_layers = load_config_of(config, needs_layers=needs_layers)
        shape = shape_of(text, config.model_name_or_path, has_layers=has_layers)
        where, extra = opened(config)
        # A GGUF file lies among files that are no weights of its own.
        if "gguf_file" not in extra:
            check_allocation(shape, Path(where))
        return shape


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer."""
    where, extra = opened(config)
    with reading(config), _uncollected():
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=config.trust_remote_code, **extra)
        tokenizer.decode(tokenizer("0")["input_ids"])  # what is wrong in its files may show here first
        give_variables(tokenizer, config.chat_template_kwargs)
        return tokenizer


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage is looked for: a vocabulary is a million objects that all stay, and looking through them took most of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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
        # A server's address may change from run to run; what answers there is the same model.
        **({"served": [config.server.engine, config.server.model]} if config.server.url else {}),
        **({"tokenizer": config.tokenizer} if config.tokenizer == "own" else {}),
    }
    if config.signals is not None:
        told = [path for path in parquet_files(config.signals) if path.is_file()]
        known |= {"signals": [sha[:16] for sha in digests(told, memory)]}
    folder, files = Path(where), []
    if "gguf_file" in extra:
        files = [Path(config.model_name_or_path).expanduser()]
    elif folder.is_dir():
        files = [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]
        files = sorted(p for p in files if p.suffix in KINDS and p.is_file() and p.name not in OF_TRAINING)
    else:
        with reading(config):
            loaded = AutoConfig.from_pretrained(where, trust_remote_code=config.trust_remote_code, **extra)
        return known | {"commit": getattr(loaded, "_commit_hash", None) or config.model_revision}
    found = digests(files, memory)
    return known | {"files": {p.name: sha[:16] for p, sha in zip(files, found, strict=True)}}


@contextmanager
def reading(config: ModelConfig) -> Iterator[None]:
    """Whatever goes wrong in the libraries that read a checkpoint becomes one sentence about that checkpoint."""
    try:
        yield
    except SemAlignError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(
            f"{config.model_name_or_path}: does not fit into memory; see device_map, offload, load_in_8bit and load_in_4bit."
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
            f"{method} has quantised; give a bfloat16 copy of it, with load_in_4bit or load_in_8bit if memory is short."
        )
    require("bitsandbytes", "bitsandbytes")


def dtype_name(config: ModelConfig) -> str:
    # A GGUF file has no type of its own once dequantised.
    is_open = config.dtype == "auto" and config.model_name_or_path.endswith(".gguf")
    return "bfloat16" if is_open else config.dtype
