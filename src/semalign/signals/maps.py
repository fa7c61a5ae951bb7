"""Maps from the teacher's space into the student's: from the heads alone, or fitted on cached rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from semalign.maths.bases import apply_map
from semalign.maths.regression import RidgeFit, Spread, best_penalty
from semalign.methods.maps import MAPS
from semalign.models.head import Head
from semalign.run import ranks
from semalign.run.files import Record, read_tensors
from semalign.signals.finite import check_finite
from semalign.signals.request import (
    Request,
    is_of_teacher,
    own_name,
    position_name,
    target_name,
    teacher_name,
)
from semalign.signals.stores import Source, Stores


def head_maps(
    teacher: Head, student: Head, norms: tuple[Tensor, Tensor], wanted: Sequence[tuple[str, str]]
) -> dict[str, Tensor]:
    """The wanted maps that come from the heads alone, by name."""
    makers = {name: MAPS[name].from_heads for name, _ in wanted}
    return {name: make(teacher, student, norms) for name, make in makers.items() if make is not None}


def fit_maps(
    stores: Stores, raw: Source, penalty: float | None, widths: tuple[int, int], device: torch.device
) -> dict[str, Tensor]:
    """Fitted maps teacher -> untouched student, one per kind, pair and interface, over all cached positions.

    Each process adds up the shards it wrote. The sums lie on `device` where they leave half of its memory free, else on the CPU.
    """
    kinds = [(name, i) for name, i in stores.wanted if MAPS[name].is_fitted]
    every = [(name, i, p.place) for name, i in kinds for p in stores.request.at(i)]
    places = [place for place in every if MAPS[place[0]].fitted is not None]
    spreads = {f"{name}.{i}.{k}": (Spread(widths[0]), i, k) for name, i, k in every if MAPS[name].is_raw}
    where = with_room(device, 2 * len(places) * 8 * widths[0] * (widths[0] + widths[1]))
    # Two halves of the rows, of which each says how well a map of the other one does.
    halves = {f"{name}.{i}.{k}": [RidgeFit(*widths, device=where) for _ in range(2)] for name, i, k in places}
    for numbers in stores.teacher.plan[ranks.rank() :: ranks.world()]:
        own_keys = sorted({own_name(i, k) for _, i, k in places})
        records = [(r, stores.student.read(n, own_keys)) for r, n in zip(raw(numbers), numbers, strict=True)]
        for spread, i, k in spreads.values():
            for theirs, _ in records:
                spread.add(theirs[teacher_name(i, k)])
        for name, i, k in places:
            for fit, half in zip(halves[f"{name}.{i}.{k}"], (records[::2], records[1::2]), strict=True):
                if not half:
                    continue
                x = torch.cat([theirs[teacher_name(i, k)] for theirs, _ in half]).float()
                y = torch.cat([own[own_name(i, k)] for _, own in half]).float()
                fit.add(x, y, weights_of(name, [r for r, _ in half]))
    maps = {}
    for key, (spread, _, _) in spreads.items():
        spread.reduce(ranks.total)
        maps[key], maps[f"{key}.bias"] = spread.solve()
    for key, (one, other) in halves.items():
        one.reduce(ranks.total)
        other.reduce(ranks.total)
        maps[key], maps[f"{key}.bias"] = solved(key.split(".")[0], one, other, penalty)
    return maps


def solved(name: str, one: RidgeFit, other: RidgeFit, penalty: float | None) -> tuple[Tensor, Tensor]:
    """A fitted map's matrix and bias on two halves of the rows; they choose the penalty where none is given. `one` takes all rows in."""
    solve = MAPS[name].fitted
    assert solve is not None
    chosen = best_penalty(one, other) if penalty is None else penalty
    one.absorb(other)
    return solve(one, chosen)


def with_room(device: torch.device, size: int) -> torch.device:
    """The GPU if `size` bytes take less than half of what is free there, else the CPU."""
    has_room = device.type == "cuda" and 2 * size < torch.cuda.mem_get_info(device)[0]
    return device if has_room else torch.device("cpu")


def weights_of(name: str, records: Sequence[Record]) -> Tensor | None:
    """How much each position of some records counts in a map's fit (N,); None where all count the same."""
    weight = MAPS[name].weight
    if weight is None:
        return None
    signals = ("teacher_logp", "student_logp", "valid")
    return weight(*(torch.cat([r[position_name(s)] for r in records]) for s in signals))


@dataclass(frozen=True)
class Maps:
    """Matrices (E, D) and biases (E,) that carry teacher activations into the student's space, by name; of a raw map a factor (1,) and
    a shift (D,).

    A name is `<map>.<interface>.<place>` for fitted maps and `<map>` for those made from the heads alone.
    """

    tensors: Mapping[str, Tensor]

    def apply(self, hidden_ND: Tensor, name: str, interface: str, place: str) -> Tensor:
        """Targets (N, E), or (N, D) of a raw map, in float32."""
        key = f"{name}.{interface}.{place}" if f"{name}.{interface}.{place}" in self.tensors else name
        bias = self.tensors.get(f"{key}.bias")
        if MAPS[name].is_raw:
            assert bias is not None
            return hidden_ND.float() * self.tensors[key] + bias
        return apply_map(hidden_ND.float(), self.tensors[key], bias, normalize=MAPS[name].is_directional)

    @classmethod
    def read(cls, path: Path) -> Maps:
        """Maps of an earlier cache step."""
        return cls(read_tensors(path))


def to_targets(record: Record, maps: Maps, wanted: Sequence[tuple[str, str]], request: Request) -> Record:
    """A record with raw teacher activations replaced by targets in the student's space, same dtype."""
    kept = {k: v for k, v in record.items() if not is_of_teacher(k)}
    for name, interface in wanted:
        if MAPS[name].is_own:
            continue
        for place in (p.place for p in request.at(interface)):
            raw = record[teacher_name(interface, place)]
            key, target = target_name(name, interface, place), maps.apply(raw, name, interface, place)
            stored = target.to(raw.dtype)
            check_finite(key, stored, target, "choose another recipe.map, or raise cache.ridge_penalty")
            kept[key] = stored
    return kept
