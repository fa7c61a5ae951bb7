"""One protocol for the teacher's signals, two implementations: read from the cache, or computed live.

The trainer never asks which. A batch of signals is a flat dict of tensors over the N supervised positions of
its samples, in order: `ids`, `valid`, `teacher_logp`, `student_logp` (N, 2K), `outside` (N,), `teacher_output` (N, D) and
`target.<place>` (N, E), a place being a student layer (`3`) or a head in it (`3h2`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from semalign.cache import Record, ShardStore, read_tensors
from semalign.data import Sample
from semalign.errors import ConfigError
from semalign.maths.bases import apply_map
from semalign.models import Decoder, Head
from semalign.recipe import Recipe
from semalign.signals import Request, candidates_of, student_signals, teacher_signals

TOPK_KEYS = ("ids", "valid", "teacher_logp", "student_logp", "outside")


class Supervision(Protocol):
    """Where a batch's signals come from."""

    def signals(self, samples: Sequence[int]) -> Record:
        """Signals of the given samples, positions of all samples one after another."""
        ...


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


def wanted_keys(recipe: Recipe, places: Sequence[str]) -> dict[str, str]:
    """Stored key -> batch key for what a recipe reads."""
    keys = {f"positions.{k}": k for k in TOPK_KEYS} if recipe.needs_topk else {}
    if recipe.needs_teacher_output:
        keys["positions.teacher_output"] = "teacher_output"
    if recipe.needs_targets:
        keys |= {f"positions.target.{recipe.map}.{recipe.interface}.{k}": f"target.{k}" for k in places}
    return keys


class CachedSupervision:
    """Signals from the shards that the cache step wrote; no teacher in memory."""

    def __init__(self, store: ShardStore, recipe: Recipe, places: Sequence[str]) -> None:
        self.store, self.keys = store, wanted_keys(recipe, places)

    def signals(self, samples: Sequence[int]) -> Record:
        """See `Supervision`."""
        if not self.keys:
            return {}
        records = [self._record(sample) for sample in samples]
        return {new: torch.cat([r[old] for r in records]) for old, new in self.keys.items()}

    def _record(self, sample: int) -> Record:
        return self.store.read(sample, list(self.keys))


class ShuffledSupervision(CachedSupervision):
    """A control: every sample gets the signals of another one, cut or repeated to its own number of positions."""

    def __init__(
        self, store: ShardStore, recipe: Recipe, places: Sequence[str], counts: Sequence[int]
    ) -> None:
        super().__init__(store, recipe, places)
        self.counts = counts
        order = torch.randperm(len(counts), generator=torch.Generator().manual_seed(0)).tolist()
        # The next one in a random cycle: with two samples or more, nobody keeps its own.
        self.other = dict(zip(order, order[1:] + order[:1], strict=True))

    def _record(self, sample: int) -> Record:
        other = self.other[sample]
        rows = torch.arange(self.counts[sample]) % self.counts[other]
        return {key: tensor[rows] for key, tensor in super()._record(other).items()}


class LiveSupervision:
    """Signals from the teacher and the untouched student, run on every batch."""

    def __init__(
        self,
        teacher: Decoder,
        student: Decoder,
        samples: Sequence[Sample],
        request: Request,
        *,
        recipe: Recipe,
        maps: Maps,
    ) -> None:
        if any(p.requires_grad for p in student.model.parameters()):
            raise ConfigError(
                "live supervision: expected an untouched copy of the student, got one with trainable parameters."
            )
        self.teacher, self.student, self.samples = teacher, student, samples
        self.request, self.recipe, self.maps = request, recipe, maps
        self.student_head: Head = student.head()
        self.candidates_C = candidates_of(samples)

    def signals(self, samples: Sequence[int]) -> Record:
        """See `Supervision`."""
        batch = [self.samples[i] for i in samples]
        own = student_signals(self.student, batch, self.request)
        records = teacher_signals(
            self.teacher, batch, self.request, own, self.student_head, self.candidates_C
        )
        records = [
            to_targets(r, self.maps, [(self.recipe.map, self.recipe.interface)], self.request)
            for r in records
        ]
        keys = wanted_keys(self.recipe, [p.place for p in self.request.at(self.recipe.interface)])
        return {new: torch.cat([r[old] for r in records]) for old, new in keys.items()}


def to_targets(record: Record, maps: Maps, wanted: Sequence[tuple[str, str]], request: Request) -> Record:
    """A record with raw teacher activations replaced by targets in the student's space, same dtype."""
    kept = {k: v for k, v in record.items() if not k.startswith("positions.teacher.")}
    for name, interface in wanted:
        for place in (p.place for p in request.at(interface)):
            raw = record[f"positions.teacher.{interface}.{place}"]
            target = raw if name == "none" else maps.apply(raw, name, interface, place).to(raw.dtype)
            kept[f"positions.target.{name}.{interface}.{place}"] = target
    return kept
