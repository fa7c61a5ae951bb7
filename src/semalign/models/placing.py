"""Where weights lie: in memory and not in mapped files, and on several devices or on disk for a teacher too large for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

import psutil
import torch
from accelerate.utils import convert_file_size_to_int, get_max_memory
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from semalign.config import ModelConfig
from semalign.errors import ModelError
from semalign.models.finding import dtype_name
from semalign.models.layouts import layout_of
from semalign.run.ranks import world

Place: TypeAlias = int | str
"""The number of a GPU, cpu or disk."""
GIB = 2**30
ROOM_FOR_COPY = 1.5
"""How many times the bytes of its weights must be free for a model to be copied out of its files; else it stays mapped."""


def device_map(config: ModelConfig, loaded: PretrainedConfig, device: str) -> dict[str, Place]:
    """The place of every module, as transformers takes it.

    Embedding, final norm and head are read outside of the model's forward pass and always lie on the main device. The layers lie in
    `teacher.offload`, or with `teacher.device_map: auto` on all devices, and in `teacher.offload` what none of them holds.

    Args:
        loaded: the checkpoint's configuration.
        device: the kind of the main device.

    Raises:
        ModelError: the devices do not hold the model, and it may not be offloaded; or other processes want them too.
    """
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(loaded, trust_remote_code=config.trust_remote_code)
    main: Place = torch.cuda.current_device() if device == "cuda" else device
    body, prefix = model.base_model, model.base_model_prefix
    of_layers = layout_of(loaded.get_text_config(), config.model_name_or_path).layers
    layers = list(getattr(body, of_layers))
    places: dict[str, Place] = {part: main for part, _ in model.named_children() if part != prefix}
    places |= {f"{prefix}.{part}": main for part, _ in body.named_children() if part != of_layers}
    found: Sequence[Place | None] = [None] * len(layers)
    if config.device_map:
        if world() > 1:
            raise ModelError(
                f"teacher.device_map: expected null in a launch of {world()} processes, each of which holds the teacher on a device of "
                "its own, got auto; start one process, or leave it out."
            )
        size = _bytes_of_a_number(config, loaded)
        total, sizes = _bytes(model, size), [_bytes(layer, size) for layer in layers]
        room = _room(config, main)
        found = spread_over(sizes, total - sum(sizes), room)
        if None in found and config.offload is None:
            held = ", ".join(f"{bytes_ / GIB:.1f} GiB on {place}" for place, bytes_ in room.items())
            raise ModelError(
                f"teacher.device_map: expected devices that hold {total / GIB:.1f} GiB of weights, got room for {held}; set "
                "teacher.offload: cpu or disk for the layers that fit on none, or raise teacher.max_memory."
            )
    elsewhere = config.offload or main
    return places | {
        f"{prefix}.{of_layers}.{n}": elsewhere if place is None else place for n, place in enumerate(found)
    }


def copy_mapped(model: PreTrainedModel) -> None:
    """Copy weights out of the files that they are mapped from, where there is a CPU that computes with them and memory for a copy.

    A mapped file has pages of 4 KiB, and a CPU looks up thousands of them for every product; what is copied lies in pages of 2 MiB
    (`semalign.run.pages`). On two cores with AMX a forward pass of a 0.5B or 1.5B took 26 to 34% longer from mapped files,
    and a decoding step of 164 rows 37 to 65%.
    """
    tensors = [t for t in chain(model.parameters(), model.buffers()) if t.device.type == "cpu"]
    size = sum(t.numel() * t.element_size() for t in tensors)
    if psutil.virtual_memory().available < ROOM_FOR_COPY * size:
        return
    for tensor in tensors:
        tensor.data = tensor.data.clone()


def spread_over(sizes: Sequence[int], rest: int, room: Mapping[Place, int]) -> list[Place | None]:
    """A place for each layer, neighbours together: every device gets its share of the bytes, measured by its room, as far as whole layers
    allow it. Where that leaves a layer out, devices are filled one after another; a layer is None from the first that no device holds.

    Args:
        sizes: bytes of each layer.
        rest: bytes of everything else, which lies on the first device.
        room: bytes by device, the main one first.
    """
    left = dict(room)
    left[next(iter(left))] -= rest
    left = {place: bytes_ for place, bytes_ in left.items() if bytes_ > 0}
    share = min(1.0, sum(sizes) / max(1, sum(left.values())))
    balanced = _filled(sizes, left, share)
    return balanced if None not in balanced else _filled(sizes, left, 1.0)


def _filled(sizes: Sequence[int], room: Mapping[Place, int], share: float) -> list[Place | None]:
    """Layers in order, up to a share of each device's room and the half of a layer more."""
    found: list[Place | None] = []
    for place, bytes_ in room.items():
        held, wanted = 0, share * bytes_
        while (
            len(found) < len(sizes)
            and held + (size := sizes[len(found)]) <= bytes_
            and held + size / 2 <= wanted
        ):
            found.append(place)
            held += size
    return found + [None] * (len(sizes) - len(found))


def _room(config: ModelConfig, main: Place) -> dict[Place, int]:
    """Bytes by device, the main one first: `teacher.max_memory`, or nine tenths of what is free, since activations need some too."""
    free = get_max_memory()
    devices: list[Place] = [main] if main == "cpu" else [place for place in free if isinstance(place, int)]
    ordered = sorted(devices, key=lambda place: place != main)
    if config.max_memory is None:
        return {place: free[place] * 9 // 10 for place in ordered}
    return dict.fromkeys(ordered, convert_file_size_to_int(config.max_memory))


def _bytes_of_a_number(config: ModelConfig, loaded: PretrainedConfig) -> int | None:
    """Bytes of one number as it is loaded; None where the checkpoint does not say."""
    name = dtype_name(config)
    dtype = getattr(loaded, "dtype", None) if name == "auto" else getattr(torch, name)
    return None if dtype is None else torch.empty(0, dtype=dtype).element_size()


def _bytes(module: Any, size: int | None) -> int:
    """Bytes of a module's parameters, shared ones once."""
    return sum(p.numel() * (size or p.element_size()) for p in module.parameters())
