"""What a run stores of both models: the union of what its recipes read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from semalign.config import Interface, MapName, TransferConfig, by_name
from semalign.errors import ConfigError
from semalign.maths.pairing import LayerPair
from semalign.maths.quantise import EightBit
from semalign.methods import named, resolve, starts
from semalign.methods.loss import REST, TEACHER_OUTPUT, TOPK
from semalign.methods.maps import MAPS
from semalign.methods.recipe import Recipe
from semalign.models.layouts import Shape
from semalign.signals.plan import Plan

PREFIX = "tokens.prefix"
"""The student's stream (T, E) after its last frozen layer; in eight bits with PREFIX_SCALE beside it."""
PREFIX_SCALE, PREFIX_ERROR = f"{PREFIX}_scale", f"{PREFIX}_error"
"""Scale and relative error (T,) of an eight-bit stream."""


def position_name(signal: str) -> str:
    """Where a signal lies in a record, one row a supervised position; `semalign.methods.loss` says what losses call them."""
    return f"positions.{signal}"


def rest_name(temperature: float) -> str:
    """What is left of both models outside the top k at a temperature (N, 3); see `semalign.methods.loss.REST`."""
    return position_name(f"{REST}.{temperature:g}")


def own_name(interface: str, place: str) -> str:
    """The untouched student's own activation (N, E)."""
    return position_name(f"own.{interface}.{place}")


def teacher_name(interface: str, place: str) -> str:
    """The teacher's activation (N, D), as long as it waits for its map."""
    return position_name(f"teacher.{interface}.{place}")


def is_of_teacher(name: str) -> bool:
    """Whether a record is one of `teacher_name`."""
    return name.startswith(position_name("teacher."))


def target_name(map_name: str, interface: str, place: str) -> str:
    """The teacher's activation in the student's space (N, E)."""
    return position_name(f"target.{map_name}.{interface}.{place}")


def wanted_keys(recipe: Recipe, places: Sequence[str]) -> dict[str, str]:
    """Name in the record -> name in the batch of what a recipe reads."""
    keys = {
        rest_name(recipe.rest_temperature) if signal == REST else position_name(signal): signal
        for signal in recipe.reads
    }
    return keys | target_keys(recipe, places)


def target_keys(recipe: Recipe, places: Sequence[str]) -> dict[str, str]:
    """The same of the targets alone; those of the map `self` lie among the student's signals."""
    if recipe.layer is None:
        return {}
    if MAPS[recipe.map].is_own:
        return {own_name(recipe.interface, k): f"target.{k}" for k in places}
    return {target_name(recipe.map, recipe.interface, k): f"target.{k}" for k in places}


@dataclass(frozen=True)
class Request:
    """Which signals a run needs, for every recipe in it."""

    pairs: tuple[LayerPair, ...]
    interfaces: tuple[str, ...] = ()
    cut: int | None = None
    """Store the student's stream after this layer, 1 or more (None: not at all)."""
    top_k: int = 0
    temperatures: tuple[float, ...] = (1.0,)
    """Those at which losses take what is left outside the top k."""
    teacher_output: bool = False
    dtype: torch.dtype = torch.bfloat16
    heads: tuple[LayerPair, ...] = ()
    """What is paired at the interface head, in the layers' place."""
    prefix_dtype: EightBit | None = None
    """Eight bits for the stored stream (None: `dtype`)."""

    def at(self, interface: str) -> tuple[LayerPair, ...]:
        """Pairs of layers, or of heads."""
        return self.heads if interface == "head" else self.pairs

    @property
    def prefix_keys(self) -> list[str]:
        """What `stream_of` needs of a record."""
        return [PREFIX, PREFIX_SCALE] if self.prefix_dtype else [PREFIX]

    @property
    def needs_student_output(self) -> bool:
        """Whether the student has to run to its end."""
        return bool(self.top_k or "output" in self.interfaces)

    @property
    def needs_teacher_output(self) -> bool:
        """Whether the teacher has to run to its end."""
        return self.needs_student_output or self.teacher_output

    @property
    def needs_student(self) -> bool:
        """Whether the student has to run over the training rows."""
        return bool(self.interfaces or self.top_k or self.cut is not None)

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher has to run over the training rows."""
        return bool(self.interfaces or self.top_k or self.teacher_output)


def recipes_of(config: TransferConfig) -> dict[str | None, Recipe]:
    """The run's own recipe (None) and its baselines by name."""
    baselines = by_name(config.evaluation.baselines)
    return {None: resolve(config.recipe)} | {
        n: named(n, f, "evaluation.baselines") for n, f in baselines.items()
    }


def request_of(config: TransferConfig, plan: Plan) -> tuple[Request, list[tuple[MapName, Interface]]]:
    """The union of what all recipes of a run read, and the (map, interface) kinds of targets among it."""
    recipes = list(recipes_of(config).values())
    wanted = sorted({(r.map, r.interface) for r in recipes if r.layer is not None})
    if any(interface == "head" for _, interface in wanted) and not plan.heads:
        raise ConfigError(
            "recipe.interface: head supervises the plan's pairs of heads, and the plan has none; set pairing.heads."
        )
    if any(interface == "head" for _, interface in wanted) and config.train.activation_checkpointing:
        raise ConfigError(
            "train.activation_checkpointing: expected false with a recipe of interface head, since a head's contribution is computed in a "
            "hook that recomputing does not call, got true; leave it out, or take another interface."
        )
    for recipe in recipes:
        _check_trained(recipe, plan)
    request = Request(
        pairs=plan.pairs,
        heads=plan.heads,
        interfaces=tuple(sorted({interface for _, interface in wanted})),
        cut=plan.cut if config.train.cache_prefix and plan.cut else None,
        top_k=config.cache.top_k if any(_reads(r, TOPK) or MAPS[r.map].weight for r in recipes) else 0,
        temperatures=tuple(sorted({r.rest_temperature for r in recipes if REST in r.reads})) or (1.0,),
        teacher_output=any(_reads(r, TEACHER_OUTPUT) for r in recipes),
        dtype=getattr(torch, config.cache.dtype),
        prefix_dtype=config.cache.prefix_dtype,
    )
    return request, wanted


def _check_trained(recipe: Recipe, plan: Plan) -> None:
    """Refuse a plan, as only an edit makes it, with a pair on whose layer no trained one has any influence.

    Where a recipe has no layer loss, trains all layers or supervises the end of the student, such a pair does no harm.
    """
    if recipe.layer is None or recipe.trained != "pairs" or recipe.interface == "output":
        return
    below = next((p for p in plan.at(recipe.interface) if p.student <= plan.cut), None)
    if below is not None:
        raise ConfigError(
            f"pairs.json: expected pairs at or above the lowest trained layer, {plan.cut + 1}, for the layer loss of {recipe.name}, got "
            f"{below.label}; add layer {below.student} to trained_layers or delete the pair."
        )


def asks_for_layers(config: TransferConfig) -> list[str]:
    """What of a run reads the teacher's layers, in the words of its options."""
    pairing = config.pairing
    recipes = {name or "recipe": recipe for name, recipe in recipes_of(config).items()}
    return [
        *(["pairing.selection: attribution"] if pairing.selection == "attribution" else []),
        *([f"pairing.match: {pairing.match}"] if pairing.match != "depth" else []),
        *(["pairing.heads"] if pairing.heads else []),
        *(
            f"{label}: {recipe.name}"
            for label, recipe in recipes.items()
            # A loaded teacher's pass captures for own maps too.
            if (recipe.layer is not None and not (MAPS[recipe.map].is_own and config.teacher.only_tells))
            or recipe.start in starts()
        ),
    ]


def reads_scores(config: TransferConfig) -> bool:
    """Whether the plan depends on attribution scores; else the run computes none."""
    return config.pairing.selection == "attribution" or config.pairing.heads > 0


def check_teacher(config: TransferConfig, teacher: Shape) -> None:
    """Refuse a teacher that can only be run as a whole, or only be asked, where a run asks for more of it.

    Raises:
        ConfigError: it does; the sentence names what to take instead.
    """
    if teacher.has_layers:
        return
    asks, url = asks_for_layers(config), config.teacher.server.url
    if config.teacher.only_tells:
        asks += [
            f"{name or 'recipe'}: {recipe.name}"
            for name, recipe in recipes_of(config).items()
            if _reads(recipe, TEACHER_OUTPUT) or recipe.rest_temperature != 1.0
        ]
    if asks:
        how = f"{config.teacher.model_name_or_path}, which can only be run as a whole"
        if url:
            how = f"a server's, which tells its likeliest tokens at temperature 1 alone ({url})"
        elif config.teacher.signals:
            how = f"what was told of its likeliest tokens at temperature 1 ({config.teacher.signals})"
        elif config.teacher.only_tells:
            how = (
                f"{config.teacher.model_name_or_path} with a tokenizer of its own (teacher.tokenizer), of which the likeliest tokens at "
                "temperature 1 alone are carried"
            )
        raise ConfigError(
            f"teacher: expected a model whose layers SemAlign knows for {' and '.join(asks)}, got {how}; take recipe.name: "
            "aligned_output, pairing.selection: last and pairing.match: depth, and baselines without layers."
        )


def _reads(recipe: Recipe, signals: tuple[str, ...]) -> bool:
    return not set(signals).isdisjoint(recipe.reads)
