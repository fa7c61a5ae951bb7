"""Trained layers split over the processes of a launch: weights, gradients and optimiser states (torch's fully_shard, FSDP2).

Of a layer with P parameters each of N processes holds P / N and the optimiser's two moments of them, 12 P / N bytes in float32, and
the whole of one layer at a time while it runs. Losses are those of one process up to the order of sums.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim import Optimizer

from semalign.config import TransferConfig
from semalign.errors import ConfigError
from semalign.models.decoder import Decoder
from semalign.run import ranks

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def check_processes(config: TransferConfig) -> None:
    """Refuse to split layers over one process.

    Raises:
        ConfigError: there is only this one.
    """
    if config.train.fsdp and ranks.world() == 1:
        raise ConfigError(
            "train.fsdp: expected several processes to split the trained layers over, got one; launch them with accelerate launch "
            "--multi_gpu -m semalign, or set train.fsdp: false."
        )


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has been here."""
    return isinstance(model, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts, wherever they lie; every process has to ask for it."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


@contextmanager
def copied(decoder: Decoder, cut: int) -> Iterator[None]:
    """Inside, layers cut+1..L are copies that may be split; at the end the originals take their weights over.

    A split layer cannot be put together again, and a student is saved, merged and measured whole. The originals wait in the CPU's
    memory.
    """
    originals, device = decoder.layers[cut:], decoder.device
    decoder.layers[cut:] = [copy.deepcopy(layer) for layer in originals]
    copies = decoder.layers[cut:]
    for layer in originals:
        layer.cpu()
    try:
        yield
    finally:
        decoder.layers[cut:] = originals
        for layer in originals:
            layer.to(device)
    # Not after a failure: the other processes would wait for parts that never come.
    for original, split in zip(originals, copies, strict=True):
        trained = dict(split.named_parameters())
        for name, parameter in original.named_parameters():
            if parameter.requires_grad:
                parameter.data.copy_(whole(trained[name].detach()))


def shard(model: nn.Module, layers: nn.ModuleList, device: torch.device) -> None:
    """Split the layers of a model over all processes; what else it holds stays whole in each.

    Raises:
        ConfigError: something else is trained too, or the layers are quantised.
    """
    if not all(parameter.is_floating_point() for parameter in layers.parameters()):
        raise ConfigError(
            "train.fsdp: expected a student whose weights are in floating point, got one in 8 or 4 bits, which has not been tested; set "
            "train.fsdp: false, or leave student.load_in_8bit and load_in_4bit out."
        )
    inside = set(layers.parameters())
    others = {parameter for parameter in model.parameters() if parameter not in inside}
    if any(parameter.requires_grad for parameter in others):
        raise ConfigError(
            "train.fsdp: expected a layer loss that trains nothing of its own, got one with projectors beside the layers; choose "
            "another recipe.layer_loss, or set train.fsdp: false."
        )
    mesh = init_device_mesh(device.type, (ranks.world(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    # The root lets its layers fetch their parts while the one before them runs.
    fully_shard(model, mesh=mesh, ignored_params=others)


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """All weights under their usual names, in the main process; nothing in the others."""
    found: dict[str, Any] = get_model_state_dict(model, options=WHOLE)
    return {name: tensor.contiguous() for name, tensor in found.items()}


def optimiser_state(model: nn.Module, optimiser: Optimizer) -> dict[str, Any]:
    """The optimiser's states, likewise."""
    return get_optimizer_state_dict(model, optimiser, options=WHOLE)


def restore_model(model: nn.Module, weights: Path) -> None:
    """Each process takes its parts of a checkpoint's weights."""
    found: dict[str, Any] = load_file(weights)
    set_model_state_dict(model, found, options=StateDictOptions(full_state_dict=True))


def restore_optimiser(model: nn.Module, optimiser: Optimizer, states: Path) -> None:
    """Each process takes its parts of a checkpoint's optimiser states."""
    found = torch.load(states, map_location="cpu", weights_only=True)
    set_optimizer_state_dict(model, optimiser, found, options=StateDictOptions(full_state_dict=True))
