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
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from semalign.config import TransferConfig
from semalign.errors import ConfigError
from semalign.models.decoder import Decoder
from semalign.run import ranks
from semalign.training.suffix import SuffixTrainer

TOGETHER = StateDictOptions(full_state_dict=True, cpu_offload=True)
APART = StateDictOptions(full_state_dict=True)


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
                parameter.data.copy_(ranks.whole(trained[name].detach()))


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


class SplitTrainer(SuffixTrainer):
    """The Trainer of a model whose layers are split; its checkpoints hold whole tensors under their usual names.

    What starts with an underscore, and the attribute about distributed loading, is private to transformers' Trainer;
    tests/test_private_parts.py says so where a new version has changed it.
    """

    model: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        shard(self.model, self.suffix, self.decoder.device)
        # What the Trainer would ask of a model that transformers has split on loading: no wrapper around it, plain gradients. Said
        # only now, for it refuses to save such a model's optimiser, which is done here.
        self.is_distributed_loading_by_transformers = True

    def _clip_grad_norm(self, model: Any) -> Any:
        """The norm of the whole gradient."""
        return ranks.whole(super()._clip_grad_norm(model))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Weights are put together in the main process."""
        found: dict[str, Any] = get_model_state_dict(self.model, options=TOGETHER)
        super()._save(output_dir, {name: tensor.contiguous() for name, tensor in found.items()})

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """The optimiser's states likewise."""
        states = get_optimizer_state_dict(self.model, self.optimizer.optimizer, options=TOGETHER)
        if self.args.should_save:
            torch.save(states, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Each process takes its parts."""
        found: dict[str, Any] = load_file(Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME)
        set_model_state_dict(self.model, found, options=APART)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Each process takes its parts."""
        if checkpoint is None:
            return
        states = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        set_optimizer_state_dict(self.model, self.optimizer.optimizer, states, options=APART)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
