"""What a loaded model has to be: complete, finite, and no smaller than its student where it teaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from semalign.config import ModelConfig
from semalign.errors import ModelError
from semalign.models.decoder import Decoder
from semalign.models.layouts import Shape

CHECKED_AT_ONCE = 1 << 24  # elements


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


def check_complete(config: ModelConfig, told: Mapping[str, Any]) -> None:
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


def check_at_hand(decoder: Decoder, method: str) -> None:
    """Refuse weights that a method cannot read as they are: quantised, offloaded, or on several devices."""
    weights = [p for layer in decoder.layers for p in layer.parameters()]
    if decoder.is_quantised:
        raise ModelError(
            f"{decoder.name}: {method} needs weights in floating point, got quantised ones; load without load_in_8bit and load_in_4bit."
        )
    if any(p.is_meta for p in weights) or len({p.device for p in weights}) > 1:
        raise ModelError(
            f"{decoder.name}: {method} reads weights and needs all of them on one device, got layers that lie elsewhere; leave out "
            "teacher.offload and teacher.device_map."
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def check_finite(decoder: Decoder) -> None:
    for name, parameter in decoder.model.named_parameters():
        # What lies on disk is not read for this; activations are checked anyway.
        if not parameter.is_floating_point() or parameter.is_meta:
            continue
        # A sum is NaN or infinite when any element is. In blocks, since summing in float32 copies what it sums.
        blocks = parameter.detach().flatten().split(CHECKED_AT_ONCE)
        if not torch.isfinite(torch.stack([block.sum(dtype=torch.float32) for block in blocks]).sum()):
            bad = int((~torch.isfinite(parameter)).sum())
            if bad:
                raise ModelError(
                    f"{decoder.name}: tensor {name} has {bad} NaN or infinite values; fetch the checkpoint again."
                )
