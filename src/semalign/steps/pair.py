"""Step 2: which student layers are trained, and towards which teacher layers. Writes a plan that may be edited.

By relative depth no model is read; else both run over a few training rows, one after the other.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from semalign.cache import read_json
from semalign.config import PairingConfig, TransferConfig
from semalign.errors import ConfigError
from semalign.folder import RunFolder, fingerprint, is_done, measured, save_result
from semalign.loading import load
from semalign.maths.pairing import LayerPair, best_path, depth_pairs, nearest, pair_critical
from semalign.maths.regression import ridge_scores
from semalign.maths.similarity import cka_matrix
from semalign.methods import resolve
from semalign.signals import layer_states
from semalign.steps.inputs import Inputs


@dataclass(frozen=True)
class Plan:
    """What later steps obey."""

    pairs: tuple[LayerPair, ...]
    trained_layers: tuple[int, ...]

    @property
    def cut(self) -> int:
        """Student layers 1..cut never change."""
        return min(self.trained_layers) - 1


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
        if teachers is not None:
            return [LayerPair(teachers[k - 1], k) for k in last]
        return depth_pairs(last, teacher_layers, student_layers, interpolate=options.interpolate)
    critical = partial(
        pair_critical, scores, student_layers, interpolate=options.interpolate, teachers=teachers
    )
    if options.cost is None:
        return critical(count=count)
    # Within a cost, the layers that attribution prefers among those in reach of the gradient.
    ranked = critical(count=student_layers)
    return [p for p in ranked if p.student > student_layers - reach][-count:]


def layer_figures(config: TransferConfig, inputs: Inputs) -> Tensor:
    """How well each teacher layer goes with each student layer (L_T, L_S), 1 at best, on streams at supervised positions.

    Linear CKA, or 1 - error of a ridge map on rows it was not fitted on. One model is in memory at a time.
    """
    rows = inputs.train[: config.pairing.rows]
    states: list[list[Tensor]] = []
    for model in (config.teacher, config.student):
        decoder = load(model)
        states.append([x.float() for x in layer_states(decoder, rows).values()])
        del decoder
        gc.collect()
    teacher, student = states
    if config.pairing.match == "ridge_error":
        return torch.tensor(
            [ridge_scores(x, student, penalty=config.cache.ridge_penalty) for x in teacher],
            dtype=torch.float64,
        )
    return cka_matrix(teacher, student)


def pair(config: TransferConfig, run: RunFolder, inputs: Inputs) -> None:
    """Write pairs.json, unless it is there for the same scores and options (then any edit in it is kept)."""
    scores_file = read_json(run.scores, "attribute")
    scores = [entry["score"] for entry in scores_file["layers"]]
    is_measured = config.pairing.match != "depth"
    wanted = fingerprint(
        pairing=asdict(config.pairing),
        scores=scores,
        recipe=asdict(config.recipe),
        inputs=inputs.fingerprint if is_measured else None,
    )
    if is_done(run.pairs, wanted):
        return
    result: dict[str, Any] = {}
    with measured(result):
        depth = inputs.student.num_hidden_layers
        teachers = None
        if is_measured:
            figures = layer_figures(config, inputs)
            teachers = (nearest if config.pairing.match == "nearest" else best_path)(figures)
            result["figures"] = [[round(x, 4) for x in row] for row in figures.tolist()]
        pairs = pair_layers(scores, len(scores), depth, config.pairing, teachers)
        ranked = sorted(range(1, len(scores) + 1), key=lambda n: -scores[n - 1])
    result |= {
        "teacher_layers": len(scores),
        "student_layers": depth,
        "selection": config.pairing.selection,
        "match": config.pairing.match,
        "interface": resolve(config.recipe).interface,
        "critical_layers": sorted(ranked[: len(pairs)]),
        "pairs": [asdict(p) for p in pairs],
        "trained_layers": [p.student for p in pairs],
    }
    save_result(run.pairs, wanted, result)


def read_plan(run: RunFolder) -> Plan:
    """The plan as it stands in the file, checked like any user's input."""
    plan = read_json(run.pairs, "pair")
    try:
        pairs = tuple(LayerPair(**p) for p in plan["pairs"])
        trained = tuple(sorted({int(k) for k in plan["trained_layers"]}))
        depths = plan["teacher_layers"], plan["student_layers"]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{run.pairs}: expected pairs of teacher, student and fraction and a list trained_layers, got {error}; mend or delete it."
        ) from error
    for p in pairs:
        if not (
            1 <= p.student <= depths[1]
            and 1 <= p.teacher <= depths[0]
            and p.teacher + (p.fraction > 0) <= depths[0]
        ):
            raise ConfigError(
                f"{run.pairs}: pair {asdict(p)} is out of range; student layers are 1 to {depths[1]}, teacher layers 1 to {depths[0]}."
            )
    if not trained or not set(trained) <= set(range(1, depths[1] + 1)):
        raise ConfigError(
            f"{run.pairs}: trained_layers {list(trained)} must name layers between 1 and {depths[1]}; mend the list."
        )
    if len({p.student for p in pairs}) != len(pairs):
        raise ConfigError(f"{run.pairs}: a student layer is paired twice; keep one pair per student layer.")
    return Plan(pairs, trained)
