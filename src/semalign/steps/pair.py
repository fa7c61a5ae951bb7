"""Step 2: which student layers are trained, and towards which teacher layers. Writes a plan that may be edited.

By relative depth no model is read; else both run over a few training rows, one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from semalign.config import PairingConfig, TransferConfig, decisive
from semalign.data import Sample
from semalign.data.inputs import Inputs
from semalign.errors import ConfigError
from semalign.maths.pairing import LayerPair, best_path, depth_pairs, match_heads, nearest, pair_critical
from semalign.maths.regression import USUAL_PENALTY, ridge_scores
from semalign.maths.similarity import cka_matrix, unit_gram
from semalign.methods import resolve
from semalign.models.capture import Point
from semalign.models.decoder import Decoder
from semalign.run import results
from semalign.run.digests import seal_of
from semalign.run.files import read_json, say_once
from semalign.run.folder import RunFolder, fingerprint, is_done, save_result
from semalign.run.meter import free_memory, measured
from semalign.signals.passes import layer_states, states_at
from semalign.signals.plan import other_layers, read_plan
from semalign.signals.request import reads_scores

T = TypeVar("T")


def pair_layers(
    scores: list[float],
    teacher_layers: int,
    student_layers: int,
    options: PairingConfig,
    teachers: Sequence[int] | None = None,
) -> list[LayerPair]:
    """Pairs by the config's selection and budget; see `PairingConfig`. `teachers` is the match, null for depth.

    A budget by cost counts layers from the top: training layers k..L costs as much as L - k + 1 single layers, because
    the gradient has to pass through all of them.
    """
    if options.layers:
        return _paired(sorted(options.layers), teacher_layers, student_layers, options, teachers)
    reach = student_layers if options.cost is None else min(student_layers, int(options.cost))
    count = options.num_layers or (reach if options.cost is not None else math.ceil(student_layers / 4))
    if count > student_layers:
        raise ConfigError(
            f"pairing.num_layers: the student has {student_layers} layers, got {count}; choose at most that many."
        )
    last = list(range(student_layers - count + 1, student_layers + 1))
    if options.selection == "all":
        last = list(range(1, student_layers + 1))
    if options.selection != "attribution":
        return _paired(last, teacher_layers, student_layers, options, teachers)
    critical = partial(
        pair_critical, scores, student_layers, interpolate=options.interpolate, teachers=teachers
    )
    if options.cost is None:
        return critical(count=count)
    # Within a cost, the layers that attribution prefers among those in reach of the gradient.
    ranked = critical(count=student_layers)
    return [p for p in ranked if p.student > student_layers - reach][-count:]


def _paired(
    students: Sequence[int],
    teacher_layers: int,
    student_layers: int,
    options: PairingConfig,
    teachers: Sequence[int] | None,
) -> list[LayerPair]:
    """Given student layers, each with its teacher layer."""
    if students[-1] > student_layers:
        raise ConfigError(
            f"pairing.layers: the student has {student_layers} layers, got {students[-1]}; choose among 1 to {student_layers}."
        )
    if teachers is not None:
        return [LayerPair(teachers[k - 1], k) for k in students]
    return depth_pairs(students, teacher_layers, student_layers, interpolate=options.interpolate)


def _read(open_model: Callable[[], Decoder], measure: Callable[[Decoder], T]) -> T:
    """What is measured on a model, which is gone from memory afterwards."""
    decoder = open_model()
    found = measure(decoder)
    del decoder
    free_memory()
    return found


def layer_figures(config: TransferConfig, inputs: Inputs) -> Tensor:
    """How well each teacher layer goes with each student layer (L_T, L_S), 1 at best, on streams at supervised positions.

    Linear CKA, or 1 - error of a ridge map on rows it was not fitted on. One model is in memory at a time.
    """
    rows = inputs.train[: config.pairing.rows]

    def states(decoder: Decoder) -> list[Tensor]:
        return [x.float() for x in layer_states(decoder, rows).values()]

    teacher, student = _read(inputs.load_teacher, states), _read(inputs.load_student, states)
    if config.pairing.match == "ridge_error":
        given = config.cache.ridge_penalty
        penalty = USUAL_PENALTY if given is None else given
        return torch.tensor([ridge_scores(x, student, penalty=penalty) for x in teacher], dtype=torch.float64)
    return cka_matrix(teacher, student)


def pair_heads(
    config: TransferConfig, inputs: Inputs, scores: Mapping[int, list[float]], pairs: Sequence[LayerPair]
) -> list[LayerPair]:
    """In every pair of layers, the teacher's heads of highest score, each with the student's head most like it.

    Alike is the linear CKA of what the two heads contribute to their streams, at supervised positions of a few rows.
    """
    rows = inputs.train[: config.pairing.rows]

    def grams(layers: set[int]) -> Callable[[Decoder], dict[int, Tensor]]:
        return lambda decoder: {layer: _head_grams(decoder, rows, layer) for layer in sorted(layers)}

    teacher = _read(inputs.load_teacher, grams({p.teacher for p in pairs}))
    student = _read(inputs.load_student, grams({p.student for p in pairs}))
    found = []
    for p in pairs:
        figures = teacher[p.teacher] @ student[p.student].T
        for theirs, own in match_heads(scores[p.teacher], figures, config.pairing.heads):
            found.append(replace(p, fraction=0.0, teacher_head=theirs, student_head=own))
    return found


def _head_grams(decoder: Decoder, rows: Sequence[Sample], layer: int) -> Tensor:
    points = [Point(layer, "head", n) for n in range(1, decoder.shape.heads + 1)]
    return torch.stack([unit_gram(x.float()).flatten() for x in states_at(decoder, rows, points).values()])


def pair(config: TransferConfig, run: RunFolder, inputs: Inputs) -> None:
    """Write pairs.json, unless it is there for the same scores and options (then any edit in it is kept)."""
    scores_file = read_json(run.scores, "attribute", results.Scores)
    scores = [entry["score"] for entry in scores_file["layers"]]
    recipe = resolve(config.recipe)
    is_measured = config.pairing.match != "depth" or config.pairing.heads > 0
    heads: dict[int, list[float]] = {}
    for entry in scores_file.get("heads", ()):
        heads.setdefault(entry["layer"], []).append(entry["score"])
    wanted = fingerprint(
        pairing=decisive(config.pairing),
        scores=scores,
        interface=None if recipe.layer is None else recipe.interface,
        penalty=config.cache.ridge_penalty if config.pairing.match == "ridge_error" else None,
        inputs=inputs.fingerprint if is_measured else None,
        heads=heads if config.pairing.heads else None,
    )
    depth = inputs.student.layers
    # Scores may be computed for their own sake. Then no plan depends on them, and one that was edited stays.
    free = () if reads_scores(config) else ("scores",)
    if _is_planned(run, wanted, (inputs.teacher.layers, depth), free):
        return
    result: dict[str, Any] = {}
    with measured(result):
        teachers = None
        if config.pairing.match != "depth":
            figures = layer_figures(config, inputs)
            teachers = (nearest if config.pairing.match == "nearest" else best_path)(figures)
            result["figures"] = [[round(x, 4) for x in row] for row in figures.tolist()]
        pairs = pair_layers(scores, inputs.teacher.layers, depth, config.pairing, teachers)
        matched = pair_heads(config, inputs, heads, pairs) if config.pairing.heads else []
        ranked = sorted(range(1, len(scores) + 1), key=lambda n: -scores[n - 1])
    result |= {
        "teacher_layers": inputs.teacher.layers,
        "student_layers": depth,
        "selection": config.pairing.selection,
        "match": config.pairing.match,
        "interface": None if recipe.layer is None else recipe.interface,
        "critical_layers": sorted(ranked[: len(pairs)]),
        "pairs": [p.as_json() for p in pairs],
        "heads": [p.as_json() for p in matched],
        "trained_layers": [p.student for p in pairs],
    }
    save_result(run.pairs, wanted, result)


def _is_planned(run: RunFolder, wanted: dict[str, Any], layers: tuple[int, int], free: Sequence[str]) -> bool:
    """Whether the plan is there for the same scores and options, as it was written or as somebody edited it.

    The fingerprint names no model where none is read; the layers of teacher and student that the file counts tell others apart.

    Args:
        free: entries of the fingerprint that may be others for a plan that was edited.

    Raises:
        ConfigError: it was edited, and is not for these; writing it again would lose the edit.
    """
    if not run.pairs.exists():
        return False
    is_whole = seal_of(run.pairs.read_bytes(), ".json") == "whole"
    if is_whole and not is_done(run.pairs, wanted):
        return False
    plan = read_json(run.pairs, "pair", results.Plan, may_be_edited=True)
    if is_whole:
        found = plan["teacher_layers"], plan["student_layers"]
        if found != layers:
            say_once(f"{run.pairs}: stale ({other_layers(found, layers)}); it is made again")
        return found == layers
    made_from = plan.get("fingerprint") or {}
    if made_from.keys() == wanted.keys() and all(made_from[k] == wanted[k] for k in wanted if k not in free):
        read_plan(run, layers)
        return True
    raise ConfigError(
        f"{run.pairs}: edited or damaged, and not a plan for the present models, rows and options; "
        "delete it and run `semalign pair` to have it made again."
    )
