"""Every method by name, one file each. A file says what its method does and lists its recipes in METHODS.

A new method is a new file in this folder, or a file elsewhere (see `semalign.run.plugins`): nothing else names it. A loss that
it brings in is a value in its LOSSES. Where its student starts from something made of the teacher's weights, STARTS says how to
make that.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any, TypeVar

from semalign.config import RecipeConfig, RecipeFields
from semalign.config.values import expect
from semalign.errors import ConfigError, suggestion
from semalign.methods.loss import LayerLoss, OutputLoss
from semalign.methods.recipe import Recipe
from semalign.run.plugins import plugins

__all__ = [
    "Recipe",
    "Start",
    "layer_losses",
    "method",
    "methods",
    "named",
    "output_losses",
    "resolve",
    "starts",
]
L = TypeVar("L", OutputLoss, LayerLoss)
OWN_STARTS = ("untouched", "pissa")
"""Starts that need nothing of the teacher."""
SHARE = ("a share of at least 0 and below 1", lambda x: 0 <= x < 1)
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("a number above 0", lambda x: 0 < x < math.inf),
    "beta": ("a number from 0 to 1", lambda x: 0 <= x <= 1),
    "label_weight": SHARE,
    "label_smoothing": SHARE,
    "output_weight": ("a finite number", math.isfinite),
    "layer_weight": ("a finite number", math.isfinite),
    "learning_rate": ("a rate above 0, or null", lambda x: 0 < x < math.inf),
    "lora_r": ("0, a rank or null", lambda x: x >= 0),
}
"""What a recipe's numbers may be, in words and as a test."""


@dataclass(frozen=True)
class Start:
    """How a student starts from the teacher's weights."""

    make: Callable[..., Any]
    """(teacher, student, samples, config, recipe) -> (tensors, facts)."""
    is_whole: bool = False
    """Whether it changes every layer, so that the student may stay as it leaves it."""


@cache
def _files() -> tuple[ModuleType, ...]:
    names = sorted(file.name for file in pkgutil.iter_modules(__path__))
    return (*(importlib.import_module(f"{__name__}.{name}") for name in names), *plugins())


@cache
def methods() -> dict[str, Recipe]:
    """All recipes by name."""
    return {recipe.name: recipe for file in _files() for recipe in getattr(file, "METHODS", ())}


@cache
def starts() -> dict[str, Start]:
    """How to make a start from the teacher's weights, by name."""
    return {name: start for file in _files() for name, start in getattr(file, "STARTS", {}).items()}


@cache
def output_losses() -> dict[str, OutputLoss]:
    """All losses at the output, by name."""
    return _losses(OutputLoss)


@cache
def layer_losses() -> dict[str, LayerLoss]:
    """All losses at paired layers, by name."""
    return _losses(LayerLoss)


def _losses(kind: type[L]) -> dict[str, L]:
    every = (loss for file in _files() for loss in getattr(file, "LOSSES", ()))
    return {loss.name: loss for loss in every if isinstance(loss, kind)}


def method(name: str, option: str = "recipe.name") -> Recipe:
    """The recipe of that name.

    Raises:
        ConfigError: there is none; the sentence names the nearest.
    """
    _check_name(name, methods(), option, "the name of a method")
    return methods()[name]


def _check_name(name: str, known: Mapping[str, Any] | tuple[str, ...], option: str, what: str) -> None:
    if name not in known:
        advice = suggestion(name, known, otherwise="choose one of")
        raise ConfigError(f"{option}: expected {what}, got {name!r}; {advice}")


def named(label: str, fields: Mapping[str, Any], option: str) -> Recipe:
    """The recipe of a label with fields of its own; without the field `name`, the label is the method's name.

    Raises:
        ConfigError: no such method, or no such field.
    """
    known = [f.name for f in dataclasses.fields(RecipeConfig)]
    for field in fields:
        if field not in known:
            raise ConfigError(
                f"{option}.{label}: expected fields of recipe, got {field!r}; {suggestion(field, known)}"
            )
    return replace(resolve(RecipeConfig(**{"name": label, **fields}), option), name=label)


def resolve(config: RecipeConfig, option: str = "recipe.name") -> Recipe:
    """The named recipe with the config's own values in place of the recipe's where they are given.

    Raises:
        ConfigError: a name that does not exist, or fields that do not go together.
    """
    given = {k: v for k, v in vars(config).items() if v is not None and k != "name"}
    recipe = replace(method(config.name, option), **given)
    _check_name(recipe.output_loss, (*output_losses(), "none"), "recipe.output_loss", "a loss at the output")
    _check_name(recipe.layer_loss, (*layer_losses(), "none"), "recipe.layer_loss", "a loss at paired layers")
    _check_name(recipe.start, (*OWN_STARTS, *starts()), "recipe.start", "the name of a start")
    if recipe.layer is None:
        _check_no_layer_fields(recipe, given)
        recipe = replace(recipe, layer_weight=0.0)
    _check_losses(recipe)
    _check_numbers(recipe)
    is_whole = recipe.start in starts() and starts()[recipe.start].is_whole
    if is_whole and recipe.trained == "pairs":
        raise ConfigError(
            f"recipe.trained: the start {recipe.start} changes every layer, got pairs; use none, or all to train on from there."
        )
    if recipe.trained == "none" and not is_whole:
        raise ConfigError(
            f"recipe.trained: none leaves the student as it starts, got recipe.start {recipe.start}; use pairs or all."
        )
    return recipe


def _check_no_layer_fields(recipe: Recipe, given: Mapping[str, Any]) -> None:
    unset = {f.name: f.metadata.get("recipe") for f in dataclasses.fields(RecipeFields)}
    for name in ("layer_weight", "layer_schedule", "map", "interface"):
        if name in given and given[name] != unset[name]:
            raise ConfigError(
                f"recipe.{name}: expected a recipe with a layer loss, got {recipe.name} with layer_loss none, which reads no "
                f"{name}; take recipe.name: aligned, or leave {name} out."
            )


def _check_losses(recipe: Recipe) -> None:
    output, layer = recipe.output, recipe.layer
    if output is None and layer is None:
        raise ConfigError(
            "recipe: expected at least one loss, got output_loss: none and layer_loss: none; choose one."
        )
    for f in dataclasses.fields(RecipeFields):
        if f.name not in ("temperature", "beta", "label_weight", "label_smoothing"):
            continue
        value, unset = getattr(recipe, f.name), f.metadata["recipe"]
        if value != unset and (output is None or f.name not in output.options):
            able = " or ".join(n for n, loss in output_losses().items() if f.name in loss.options)
            raise ConfigError(
                f"recipe.{f.name}: only output_loss {able} reads it, got {value} with output_loss {recipe.output_loss}; "
                f"set it to {unset:g}."
            )
    if layer is None:
        return
    if layer.interfaces is not None and recipe.interface not in layer.interfaces:
        raise ConfigError(
            f"recipe.interface: the layer loss {layer.name} works at {', '.join(layer.interfaces)}, got {recipe.interface!r}; "
            f"use {layer.interfaces[0]}."
        )
    if (recipe.map == "none") != layer.is_raw:
        raw = ", ".join(name for name, loss in layer_losses().items() if loss.is_raw)
        raise ConfigError(
            f"recipe.map: none (the teacher's own activations) goes with layer_loss {raw} and only with it, got "
            f"map {recipe.map} and layer_loss {layer.name}; change one of them."
        )


def _check_numbers(recipe: Recipe) -> None:
    """Refuse what a loss would refuse in its first step, or not at all."""
    for name, (what, holds) in RANGES.items():
        value = getattr(recipe, name)
        expect(value is None or holds(value), f"recipe.{name}", what, value)
    output = recipe.output
    if output is not None and output.constant_at:
        others = f"{RANGES['beta'][0]} other than {' and '.join(f'{x:g}' for x in output.constant_at)}"
        expect(
            recipe.beta not in output.constant_at,
            "recipe.beta",
            f"{others}, where {output.name} is constant",
            recipe.beta,
        )
