"""The patch test: what a target does when it is put into the untouched student's own stream, before anything is trained.

A layer loss pulls a student's activation towards a target. If the student with the target in that place is no nearer to its teacher
than without it, then reaching the target cannot bring it nearer either, and the layer loss is at best a brake on forgetting. The
maps are fitted on some training rows and tried on other rows.

Legend: N supervised positions of the tried rows, E student width, D teacher width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from semalign.config import TransferConfig
from semalign.data import Sample
from semalign.data.batches import batch_inputs, labels_of
from semalign.data.inputs import Inputs
from semalign.estimate.probe import Costs
from semalign.maths._tensors import row_blocks
from semalign.maths.full_vocabulary import closeness
from semalign.maths.pairing import LayerPair
from semalign.maths.regression import RidgeFit
from semalign.methods import resolve
from semalign.methods.maps import MAPS
from semalign.methods.recipe import Recipe
from semalign.models.capture import Point, patched
from semalign.models.decoder import Decoder
from semalign.models.head import Head
from semalign.run.files import Record
from semalign.signals.maps import Maps, head_maps, solved
from semalign.signals.passes import student_signals, teacher_signals
from semalign.signals.plan import Plan
from semalign.signals.request import Request, own_name, position_name, teacher_name

FITTED, TRIED = 64, 32
"""Most rows that maps are fitted on, and that targets are tried on."""
FEWEST = 8
SECONDS = 60.0
"""The teacher's pass over these rows may take so long."""
BLOCK = 64  # positions whose full logits are live at once
T95 = 2.36  # Student's t for eight rows; with more rows a little wide


@dataclass(frozen=True)
class PatchRows:
    """Rows that maps are fitted on, and other ones that targets are tried on."""

    fitted: list[Sample]
    tried: list[Sample]


def patch_rows(inputs: Inputs, costs: Costs) -> PatchRows:
    """Few enough rows that a test takes minutes at most, two thirds of them for the fit; held-out rows are tried where there are some.

    How fast the teacher is, is not known yet: it is taken to cost by its size what the student has cost.
    """
    lengths = [len(s.input_ids) for s in inputs.train]
    larger = (
        inputs.teacher.layers * inputs.teacher.width**2 / (inputs.student.layers * inputs.student.width**2)
    )
    affordable = int(SECONDS / max(larger * costs.seconds["cache_student"], 1e-9) / mean(lengths))
    tried = min(TRIED, max(FEWEST, affordable // 3))
    if inputs.heldout:
        fitted, others = len(inputs.train), inputs.heldout[:tried]
    else:
        fitted = len(inputs.train) - min(tried, max(1, len(inputs.train) // 3))
        others = inputs.train[fitted:][:tried]
    return PatchRows(inputs.train[: min(FITTED, max(FEWEST, affordable - tried), fitted)], others)


def is_patchable(recipe: Recipe) -> bool:
    """Whether its layers have targets that can stand in the place of the student's activations."""
    return recipe.layer is not None and MAPS[recipe.map].is_aligned and recipe.interface != "head"


@dataclass(frozen=True)
class Patch:
    """A patch test of a run's recipe; the teacher is needed first, then the student."""

    config: TransferConfig
    inputs: Inputs
    plan: Plan
    rows: PatchRows

    @cached_property
    def recipe(self) -> Recipe:
        """The run's own."""
        return resolve(self.config.recipe)

    @property
    def request(self) -> Request:
        """Activations of the recipe's pairs and the teacher's output."""
        return Request(
            self.plan.pairs,
            (self.recipe.interface,),
            teacher_output=True,
            dtype=torch.float32,
            heads=self.plan.heads,
        )

    def of_teacher(self, teacher: Decoder) -> tuple[list[Record], Head, Tensor]:
        """Its records of all rows, its head and its final norm's weight."""
        nothing, size = torch.tensor([0]), self.config.cache.batch_size
        records = _in_batches(
            [*self.rows.fitted, *self.rows.tried],
            size,
            lambda rows: teacher_signals(teacher, rows, self.request, [], teacher.head(), nothing),
        )
        return records, teacher.head().detached(), teacher.norm_weight().clone()

    def figures(
        self, student: Decoder, records: Sequence[Record], head: Head, norm: Tensor
    ) -> list[dict[str, Any]]:
        """For every pair: KL of the untouched student and with the target in its stream, and the change with a 95% interval over rows."""
        cut = len(self.rows.fitted)
        # The student's output comes with its likeliest tokens.
        request = replace(self.request, top_k=1)
        own = _in_batches(
            self.rows.fitted,
            self.config.cache.batch_size,
            lambda rows: student_signals(student, rows, request),
        )
        found = []
        before = [
            self._kl(student, head, row, record)
            for row, record in zip(self.rows.tried, records[cut:], strict=True)
        ]
        for pair in self.plan.at(self.recipe.interface):
            maps = self._maps(pair, own, records[:cut], student, head, norm)
            after = []
            for row, record in zip(self.rows.tried, records[cut:], strict=True):
                raw = record[teacher_name(self.recipe.interface, pair.place)]
                target = maps.apply(raw, self.recipe.map, self.recipe.interface, pair.place)
                after.append(self._kl(student, head, row, record, pair, target))
            found.append(
                {"pair": pair.label, "interface": self.recipe.interface, "map": self.recipe.map}
                | compared(before, after)
            )
        return found

    def _maps(
        self,
        pair: LayerPair,
        own: Sequence[Record],
        theirs: Sequence[Record],
        student: Decoder,
        head: Head,
        norm: Tensor,
    ) -> Maps:
        name, interface = self.recipe.map, self.recipe.interface
        if MAPS[name].fitted is None:
            return Maps(head_maps(head, student.head(), (norm, student.norm_weight()), [(name, interface)]))
        halves = [RidgeFit(head.weight_VD.shape[1], student.width) for _ in range(2)]
        for number, (record, known) in enumerate(zip(theirs, own, strict=True)):
            x, y = record[teacher_name(interface, pair.place)], known[own_name(interface, pair.place)]
            halves[number % 2].add(x, y, self._weights(record, known, student.head(), head))
        matrix, bias = solved(name, halves[0], halves[1], self.config.cache.ridge_penalty)
        key = f"{name}.{interface}.{pair.place}"
        return Maps({key: matrix, f"{key}.bias": bias})

    def _weights(self, record: Record, known: Record, own_head: Head, head: Head) -> Tensor | None:
        """What the cache step takes from the likeliest tokens, here from the whole vocabulary."""
        weight = MAPS[self.recipe.map].weight
        if weight is None:
            return None
        theirs, own = record[position_name("teacher_output")], known[position_name("student_output")]
        parts = []
        for block in row_blocks(len(own), BLOCK):
            both = head.logits(theirs[block]).log_softmax(1), own_head.logits(own[block]).log_softmax(1)
            parts.append(weight(*both, torch.ones_like(both[0], dtype=torch.bool)).cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def _kl(
        self,
        student: Decoder,
        head: Head,
        row: Sample,
        record: Record,
        pair: LayerPair | None = None,
        target_NE: Tensor | None = None,
    ) -> float:
        """KL(p_T || p_S) a token of one row, with a target in the stream where there is one."""
        ids, states = batch_inputs(student, [row])
        with student.span(0, student.num_layers, norm=True):
            if pair is None or target_NE is None:
                output = student.forward(ids)
            else:
                point = Point(pair.student, self.recipe.interface)
                # Of a direction nobody says how long it is.
                keeps_length = MAPS[self.recipe.map].is_directional
                with patched(student, point, states, target_NE.to(ids.device), keeps_length=keeps_length):
                    output = student.forward(ids)
        own = student.head()
        figures = closeness(
            output[states].float(),
            own.weight_VD,
            record[position_name("teacher_output")].to(ids.device),
            head.weight_VD.to(ids.device),
            labels_of(row).to(ids.device),
            student=own.options,
            teacher=head.options,
        )
        return float(figures["kl"].mean())


def _in_batches(
    rows: Sequence[Sample], size: int, run: Callable[[Sequence[Sample]], list[Record]]
) -> list[Record]:
    return [record for start in range(0, len(rows), size) for record in run(rows[start : start + size])]


def compared(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Means over rows, and what the change says."""
    changes = [b - a for a, b in zip(before, after, strict=True)]
    change, ends = mean(changes), None
    if len(changes) > 1:  # one row says nothing of others
        half = T95 * stdev(changes) / math.sqrt(len(changes))
        ends = change - half, change + half
    verdict = (
        "not told apart" if ends is None or ends[0] <= 0 <= ends[1] else "nearer" if change < 0 else "further"
    )
    return {
        "kl": mean(before),
        "patched": mean(after),
        "change": change,
        "low": ends and ends[0],
        "high": ends and ends[1],
        "rows": len(changes),
        "verdict": verdict,
    }
