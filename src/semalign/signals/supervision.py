"""One protocol for the teacher's signals, two implementations: read from the cache, or computed live.

The trainer never asks which. A batch of signals is a flat dict of tensors over the N supervised positions of
its samples, in order: `ids`, `valid`, `teacher_logp`, `student_logp` (N, 2K + 1), `rest` (N, 3), `teacher_output` (N, D) and
`target.<place>` (N, E), a place being a student layer (`3`) or a head in it (`3h2`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from semalign.data import Sample
from semalign.data.batches import candidates_of
from semalign.errors import ConfigError
from semalign.methods.maps import MAPS
from semalign.methods.recipe import Recipe
from semalign.models.decoder import Decoder
from semalign.models.head import Head
from semalign.run.files import Record
from semalign.run.folder import verified
from semalign.signals.maps import Maps, to_targets
from semalign.signals.passes import student_signals, teacher_signals
from semalign.signals.prepared import Prepared
from semalign.signals.request import Request, target_keys, wanted_keys
from semalign.signals.shards import ShardStore


class Supervision(Protocol):
    """Where a batch's signals come from."""

    def signals(self, samples: Sequence[int]) -> Record:
        """Signals of the given samples, positions of all samples one after another."""
        ...


class CachedSupervision:
    """Signals from the shards that the cache step wrote; no teacher in memory.

    Args:
        targets: the store of the layers' targets; None: the same.
    """

    def __init__(
        self, store: ShardStore, recipe: Recipe, places: Sequence[str], targets: ShardStore | None = None
    ) -> None:
        self.store, self.targets, self.keys = store, targets or store, wanted_keys(recipe, places)
        self.of_targets = list(target_keys(recipe, places))
        self.others = [key for key in self.keys if key not in self.of_targets]

    def signals(self, samples: Sequence[int]) -> Record:
        """See `Supervision`."""
        if not self.keys:
            return {}
        records = [self._others(sample) | self._targets(sample) for sample in samples]
        return {new: torch.cat([r[old] for r in records]) for old, new in self.keys.items()}

    def _others(self, sample: int) -> Record:
        return self.store.read(sample, self.others) if self.others else {}

    def _targets(self, sample: int) -> Record:
        return self.targets.read(sample, self.of_targets) if self.of_targets else {}


class ShuffledSupervision(CachedSupervision):
    """A control: every sample gets the signals of another one, cut or repeated to its own number of positions.

    Of all signals, or of the layers' targets alone, as `recipe.signals` says.
    """

    def __init__(
        self,
        store: ShardStore,
        recipe: Recipe,
        places: Sequence[str],
        counts: Sequence[int],
        targets: ShardStore | None = None,
    ) -> None:
        super().__init__(store, recipe, places, targets)
        self.counts, self.is_whole = counts, recipe.signals == "shuffled"
        order = torch.randperm(len(counts), generator=torch.Generator().manual_seed(0)).tolist()
        # The next one in a random cycle: with two samples or more, nobody keeps its own.
        self.other = dict(zip(order, order[1:] + order[:1], strict=True))

    def _others(self, sample: int) -> Record:
        if not self.is_whole:
            return super()._others(sample)
        return self._fitted(sample, super()._others(self.other[sample]))

    def _targets(self, sample: int) -> Record:
        return self._fitted(sample, super()._targets(self.other[sample]))

    def _fitted(self, sample: int, record: Record) -> Record:
        rows = torch.arange(self.counts[sample]) % self.counts[self.other[sample]]
        return {key: tensor[rows] for key, tensor in record.items()}


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
        recipe = self.recipe
        keys = wanted_keys(recipe, [p.place for p in self.request.at(recipe.interface)])
        if not keys:
            return {}
        batch = [self.samples[i] for i in samples]
        own = student_signals(self.student, batch, self.request)
        records = teacher_signals(
            self.teacher, batch, self.request, own, self.student_head, self.candidates_C
        )
        # A recipe without a layer loss names a map and an interface too, and nothing is captured there.
        wanted = [(recipe.map, recipe.interface)] if recipe.layer is not None else []
        records = [
            theirs | to_targets(r, self.maps, wanted, self.request)
            for r, theirs in zip(records, own, strict=True)
        ]
        return {new: torch.cat([r[old] for r in records]) for old, new in keys.items()}


def cached_supervision(prepared: Prepared, recipe: Recipe) -> Supervision:
    """The stored signals of each sample, or of another one where the recipe says so."""
    store, places = prepared.stores.teacher, [p.place for p in prepared.plan.at(recipe.interface)]
    targets = prepared.stores.student if MAPS[recipe.map].is_own else prepared.targets
    if recipe.signals != "teacher":
        counts = [s.supervised for s in prepared.inputs.train]
        return ShuffledSupervision(store, recipe, places, counts, targets)
    return CachedSupervision(store, recipe, places, targets)


def supervision_of(prepared: Prepared, recipe: Recipe) -> Supervision:
    """The cached signals, or those of a live teacher where the config asks for one and the recipe reads any."""
    reads_any = bool(recipe.reads) or recipe.layer is not None
    if recipe.signals != "teacher" or not prepared.config.train.live_teacher or not reads_any:
        return cached_supervision(prepared, recipe)
    if prepared.targets is not None:
        raise ConfigError(
            "train.live_teacher: expected false with targets: random, which come from another teacher than the run's, got true."
        )
    inputs = prepared.inputs
    teacher, untouched = inputs.load_teacher(), inputs.load_student()
    untouched.model.requires_grad_(False)
    return LiveSupervision(
        teacher,
        untouched,
        inputs.train,
        prepared.stores.request,
        recipe=recipe,
        maps=Maps.read(verified(prepared.run.manifest, "maps.safetensors", "cache")),
    )
