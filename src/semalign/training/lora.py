"""LoRA modules of peft while the suffix trains: each as one operation instead of six."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from semalign.maths.lowrank import low_rank_linear


@contextmanager
def fused(root: nn.Module) -> Iterator[int]:
    """Inside, the plain LoRA modules below `root` compute the same at once; how many they are.

    Others (DoRA, quantised or transposed weights, several adapters, a trained base, dropout in train mode) keep peft's own way.
    """
    plain: list[Any] = [module for module in root.modules() if _is_plain(module)]
    for module in plain:
        module.forward = partial(_forward, module)
    try:
        yield len(plain)
    finally:
        for module in plain:
            del module.forward


def _is_plain(module: nn.Module) -> bool:
    if type(module) is not Linear or type(base := module.get_base_layer()) is not nn.Linear:
        return False
    # Whoever replaced a forward (accelerate's hooks, an outer `fused`) did so for a reason.
    if (
        "forward" in vars(module)
        or "forward" in vars(base)
        or any(p.requires_grad for p in base.parameters())
    ):
        return False
    names = module.active_adapters
    if module.disable_adapters or module.merged or len(names) != 1 or names[0] not in module.lora_A:
        return False
    name, dropout = names[0], module.lora_dropout[names[0]]
    has_dropout = not isinstance(dropout, nn.Identity) and dropout.training
    return not (name in module.lora_variant or has_dropout or module.lora_B[name].bias is not None)


def _forward(module: Any, x: Tensor) -> Tensor:
    base, name = module.get_base_layer(), module.active_adapters[0]
    kind = x.device.type
    is_mixed = torch.is_autocast_enabled(kind)
    return low_rank_linear(
        x,
        base.weight,
        base.bias,
        module.lora_A[name].weight,
        module.lora_B[name].weight,
        scale=module.scaling[name],
        dtype=torch.get_autocast_dtype(kind) if is_mixed else base.weight.dtype,
    )
