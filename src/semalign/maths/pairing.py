"""Layer pairing: which teacher layer teaches which student layer.

Layers are counted 1..L on both sides (0 is the embedding, which is never paired).
Legend: L_T teacher layers, L_S student layers; N tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semalign.errors import ConfigError
from semalign.maths._tensors import working_dtype


@dataclass(frozen=True)
class LayerPair:
    """One student layer and the teacher layer (or point between two layers) that it learns from.

    The target is (1 - fraction) h_l + fraction h_{l+1}, with l = `teacher`.
    """

    teacher: int
    """Teacher layer l, counted from 1."""
    student: int
    """Student layer, counted from 1."""
    fraction: float = 0.0
    """Share of teacher layer l + 1 in the target, in [0, 1]."""
    teacher_head: int | None = None
    """One attention head of the teacher layer, counted from 1, where single heads are paired."""
    student_head: int | None = None
    """The student's head that learns from it."""

    def __post_init__(self) -> None:
        if self.teacher < 1 or self.student < 1 or not 0.0 <= self.fraction <= 1.0:
            raise ConfigError(
                "A layer pair needs layers counted from 1 and a fraction in [0, 1], got "
                f"teacher={self.teacher}, student={self.student}, fraction={self.fraction}; mend the pair."
            )

    def as_json(self) -> dict[str, float]:
        """Its fields, heads only where there are any; what every file of a run calls a pair."""
        heads = {"teacher_head": self.teacher_head, "student_head": self.student_head}
        named = {name: head for name, head in heads.items() if head is not None}
        return {"teacher": self.teacher, "student": self.student, "fraction": self.fraction, **named}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> LayerPair:
        """The pair in a row of a file; in files of earlier versions `teacher` may be layer and fraction in one number."""
        depth = float(row["teacher"])
        fraction = depth - int(depth) + float(row.get("fraction") or 0.0)
        return cls(
            int(depth), int(row["student"]), fraction, row.get("teacher_head"), row.get("student_head")
        )

    @property
    def label(self) -> str:
        """The pair as people read it: T4 → S3, T4.5 → S3 for a blend, T4h2 → S3h1 for single heads."""
        head = "" if self.teacher_head is None else f"h{self.teacher_head}"
        return f"T{self.teacher + round(self.fraction, 1):g}{head} → S{self.place}"

    @property
    def place(self) -> str:
        """The student's side as a name: `3` for layer 3, `3h2` for its head 2."""
        return f"{self.student}" if self.student_head is None else f"{self.student}h{self.student_head}"

    @property
    def blend(self) -> dict[int, float]:
        """The teacher layers whose outputs the target is made of (one or two), with their weights."""
        weights = {self.teacher: 1.0 - self.fraction, self.teacher + 1: self.fraction}
        return {layer: weight for layer, weight in weights.items() if weight > 0}


def teacher_layer(k: int, L_T: int, L_S: int) -> int:
    """Teacher layer that student layer k looks at: l(k) = max(1, floor(L_T / L_S * k)), in exact integers.

    With 20 and 10 layers l(k) = 2k.
    """
    _check_depths(L_T, L_S)
    _check_range("Student layer", k, L_S)
    return max(1, L_T * k // L_S)


def interpolated(k: int, L_T: int, L_S: int) -> LayerPair:
    """Pair at the exact relative depth of student layer k.

    u = L_T k / L_S, a = max(1, min(floor(u), L_T - 1)), fraction = clip(u - a, 0, 1), on layers a and a + 1.
    A fraction of 1 is written as layer a + 1 with fraction 0: the same target from one layer.
    """
    _check_depths(L_T, L_S)
    _check_range("Student layer", k, L_S)
    lower = max(1, min(L_T * k // L_S, L_T - 1))
    # Numerator over L_S, so that whole depths come out as exactly 0 or 1.
    excess = min(max(L_T * k - lower * L_S, 0), L_S)
    if excess == L_S:
        return LayerPair(teacher=lower + 1, student=k)
    return LayerPair(teacher=lower, student=k, fraction=excess / L_S)


def best_path(figures_TS: Tensor) -> list[int]:
    """Teacher layers l(1) <= l(2) <= ... <= l(L_S) with the largest sum of figures[l(k), k], counted from 1.

    Dynamic programming in L_T L_S steps: best[l, k] = figures[l, k] + max over l' <= l of best[l', k - 1]. Among
    equal sums the shallower layers win.
    """
    _check_figures(figures_TS)
    best_T = figures_TS[:, 0].double()
    came: list[list[int]] = []
    for column_T in figures_TS.double().T[1:]:
        reached, origin = best_T[0], 0
        origins, sums = [], []
        for layer, value in enumerate(best_T):
            if value > reached:
                reached, origin = value, layer
            origins.append(origin)
            sums.append(reached)
        came.append(origins)
        best_T = torch.stack(sums) + column_T
    path = [int(best_T.argmax())]
    for origins in reversed(came):
        path.append(origins[path[-1]])
    return [layer + 1 for layer in reversed(path)]


def nearest(figures_TS: Tensor) -> list[int]:
    """For every student layer the teacher layer with the largest figure, counted from 1; the shallower among equals."""
    _check_figures(figures_TS)
    return [int(column_T.argmax()) + 1 for column_T in figures_TS.T]


def match_heads(scores: Sequence[float], figures_TS: Tensor, count: int) -> list[tuple[int, int]]:
    """(teacher head, student head), counted from 1, for the `count` teacher heads of highest score.

    In that order each takes the student head with the largest figure among those still free; ties go to the first.
    """
    _check_figures(figures_TS)
    free = list(range(figures_TS.shape[1]))
    pairs = []
    for head in sorted(range(len(scores)), key=lambda n: -scores[n])[: min(count, len(free))]:
        own = max(free, key=lambda s: float(figures_TS[head, s]))
        free.remove(own)
        pairs.append((head + 1, own + 1))
    return pairs


def _check_figures(figures_TS: Tensor) -> None:
    if figures_TS.dim() != 2 or not figures_TS.numel() or not torch.isfinite(figures_TS).all():
        raise ConfigError(
            f"Figures must be a finite matrix (teacher x student layers), got shape {tuple(figures_TS.shape)} with "
            f"{int((~torch.isfinite(figures_TS)).sum())} values that are not finite; compare more rows."
        )


def pair_critical(
    scores: Sequence[float],
    L_S: int,
    *,
    count: int,
    interpolate: bool = False,
    teachers: Sequence[int] | None = None,
) -> list[LayerPair]:
    """Pairs for the highest-scoring teacher layers, sorted by student layer.

    Walks the teacher layers in descending score (ties: shallower first), maps each layer l to the first student layer k' with
    the smallest l(k') >= l, or to the last one with the largest l(k') if there is none, and stops at `count` distinct student
    layers. Where l(k) never falls, as by depth, that is k' = min{k : l(k) >= l}, or L_S. Where several student layers
    have one teacher layer, the walk may end before: then the free ones whose own teacher layer has the highest score follow (ties:
    shallower first). Each pair is (l(k'), k'), or the interpolated pair of k'. `scores[0]` belongs to layer 1. `teachers` is
    l(1), l(2), ... where depth does not say it.
    """
    L_T = len(scores)
    _check_depths(L_T, L_S)
    bad = next((index for index, score in enumerate(scores) if not math.isfinite(score)), None)
    if bad is not None:
        raise ConfigError(
            f"Layer scores must be finite, got {scores[bad]} for layer {bad + 1}; attribute again."
        )
    # With fewer teacher than student layers only L_T student layers can be reached.
    _check_range("The number of pairs", count, min(L_T, L_S))
    look = teachers or [teacher_layer(k, L_T, L_S) for k in range(1, L_S + 1)]
    ranked = sorted(range(1, L_T + 1), key=lambda layer: -scores[layer - 1])
    places = [(seen, k) for k, seen in enumerate(look, 1)]
    students: list[int] = []
    for layer in ranked:
        _, student = min((place for place in places if place[0] >= layer), default=max(places))
        if student not in students:
            students.append(student)
    free = [k for k in range(1, L_S + 1) if k not in students]
    students += sorted(free, key=lambda k: -scores[look[k - 1] - 1])
    students = students[:count]
    if teachers is None:
        return depth_pairs(students, L_T, L_S, interpolate=interpolate)
    return [LayerPair(teachers[k - 1], k) for k in sorted(students)]


def depth_pairs(students: Sequence[int], L_T: int, L_S: int, *, interpolate: bool = False) -> list[LayerPair]:
    """Pairs for the given student layers by relative depth, sorted by student layer, without repeats."""
    if interpolate:
        return [interpolated(k, L_T, L_S) for k in sorted(set(students))]
    return [LayerPair(teacher=teacher_layer(k, L_T, L_S), student=k) for k in sorted(set(students))]


def blend(lower_ND: Tensor, upper_ND: Tensor, fraction: float) -> Tensor:
    """Activation between two teacher layers: (1 - fraction) h_a + fraction h_{a+1}, in float32."""
    if not 0.0 <= fraction <= 1.0:
        raise ConfigError(f"The fraction between two layers must lie in [0, 1], got {fraction}.")
    dtype = working_dtype(lower_ND, upper_ND)
    return torch.lerp(lower_ND.to(dtype), upper_ND.to(dtype), fraction)


def _check_depths(L_T: int, L_S: int) -> None:
    if L_T < 1 or L_S < 1:
        raise ConfigError(
            f"Both models need at least one layer, got {L_T} teacher and {L_S} student layers; "
            "check which modules are counted as layers."
        )


def _check_range(what: str, value: int, highest: int) -> None:
    if not 1 <= value <= highest:
        raise ConfigError(f"{what} must lie in 1..{highest}, got {value}; layers are counted from 1.")
