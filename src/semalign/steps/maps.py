"""Maps from the teacher's space into the student's: from the heads alone, or fitted on cached rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from semalign import ranks
from semalign.cache import Record
from semalign.maths.bases import logit_map, semantic_map
from semalign.maths.regression import RidgeFit
from semalign.models import Head
from semalign.steps.stores import Source, Stores

FITTED = ("ridge", "weighted_ridge", "procrustes")  # maps that are fitted on cached rows


def head_maps(
    teacher: Head, student: Head, norms: tuple[Tensor, Tensor], wanted: Sequence[tuple[str, str]]
) -> dict[str, Tensor]:
    """The maps that come from the heads alone; `logit` folds both final norms in, for streams before them."""
    maps: dict[str, Tensor] = {}
    names = {name for name, _ in wanted}
    if "semantic" in names:
        maps["semantic"] = semantic_map(teacher.weight_VD, student.weight_VD)
    if "logit" in names:
        maps["logit"] = logit_map(
            teacher.weight_VD, student.weight_VD, teacher_norm_D=norms[0], student_norm_E=norms[1]
        )
    return maps


def fit_maps(
    stores: Stores, raw: Source, penalty: float, widths: tuple[int, int], device: torch.device
) -> dict[str, Tensor]:
    """Fitted maps teacher -> untouched student, one per kind, pair and interface, over all cached positions.

    `weighted_ridge` weights a position by 1 - sum_J p_T^2, the trace of its Fisher information in the logits: where the
    teacher is certain, the logits may move without changing what it says. Each process adds up the shards it wrote. The sums
    lie on `device` where they leave half of its memory free, else on the CPU.
    """
    places = [(name, i, p.place) for name, i in stores.wanted if name in FITTED for p in stores.request.at(i)]
    where = with_room(device, len(places) * 8 * widths[0] * (widths[0] + widths[1]))
    fits = {f"{name}.{i}.{k}": RidgeFit(*widths, device=where) for name, i, k in places}
    for numbers in stores.teacher.plan[ranks.rank() :: ranks.world()]:
        own_keys = sorted({f"positions.own.{i}.{k}" for _, i, k in places})
        records = [(r, stores.student.read(n, own_keys)) for r, n in zip(raw(numbers), numbers, strict=True)]
        for name, i, k in places:
            x = torch.cat([theirs[f"positions.teacher.{i}.{k}"] for theirs, _ in records]).float()
            y = torch.cat([own[f"positions.own.{i}.{k}"] for _, own in records]).float()
            weights = _uncertainty([r for r, _ in records]) if name == "weighted_ridge" else None
            fits[f"{name}.{i}.{k}"].add(x, y, weights)
    maps = {}
    for key, fit in fits.items():
        fit.reduce(ranks.total)
        solved = fit.solve_procrustes() if key.startswith("procrustes") else fit.solve(penalty=penalty)
        maps[key], maps[f"{key}.bias"] = solved
    return maps


def with_room(device: torch.device, size: int) -> torch.device:
    """The GPU if `size` bytes take less than half of what is free there, else the CPU."""
    has_room = device.type == "cuda" and 2 * size < torch.cuda.mem_get_info(device)[0]
    return device if has_room else torch.device("cpu")


def _uncertainty(records: Sequence[Record]) -> Tensor:
    """1 - sum_J p_T^2 of every position, kept above 0 so that no position is lost."""
    logp, valid = (torch.cat([r[f"positions.{k}"] for r in records]) for k in ("teacher_logp", "valid"))
    return (1 - (logp.exp() * valid).square().sum(1)).clamp_min(1e-3)
