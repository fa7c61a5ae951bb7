"""Maps from the teacher's space into the student's: from the heads alone, or fitted on cached rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from semalign.maths.bases import apply_map, logit_map, semantic_map
from semalign.maths.regression import RidgeFit
from semalign.models.head import Head
from semalign.run import ranks
from semalign.run.files import Record, read_tensors
from semalign.signals.request import Request
from semalign.signals.stores import Source, Stores

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


@dataclass(frozen=True)
class Maps:
    """Matrices (E, D) and biases (E,) that carry teacher activations into the student's space, by name.

    A name is `<map>.<interface>.<place>` for fitted maps and `<map>` for those made from the heads alone.
    """

    tensors: Mapping[str, Tensor]

    def apply(self, hidden_ND: Tensor, name: str, interface: str, place: str) -> Tensor:
        """Targets (N, E) in float32. The semantic map reads directions only, so it works on unit vectors."""
        key = f"{name}.{interface}.{place}" if f"{name}.{interface}.{place}" in self.tensors else name
        bias = self.tensors.get(f"{key}.bias")
        return apply_map(hidden_ND.float(), self.tensors[key], bias, normalize=name == "semantic")

    @classmethod
    def read(cls, path: Path) -> Maps:
        """Maps of an earlier cache step."""
        return cls(read_tensors(path))


def to_targets(record: Record, maps: Maps, wanted: Sequence[tuple[str, str]], request: Request) -> Record:
    """A record with raw teacher activations replaced by targets in the student's space, same dtype."""
    kept = {k: v for k, v in record.items() if not k.startswith("positions.teacher.")}
    for name, interface in wanted:
        for place in (p.place for p in request.at(interface)):
            raw = record[f"positions.teacher.{interface}.{place}"]
            target = raw if name == "none" else maps.apply(raw, name, interface, place).to(raw.dtype)
            kept[f"positions.target.{name}.{interface}.{place}"] = target
    return kept
