"""Every method by name, one file each. A file says what its method does and lists its recipes in METHODS.

A new method is a new file in this folder: nothing else names it. Where its student starts from something made of the
teacher's weights, STARTS says how to make that.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

from semalign.config import RecipeConfig
from semalign.errors import ConfigError, suggestion
from semalign.methods.recipe import Recipe

__all__ = ["method", "methods", "named", "resolve", "starts"]


def _files() -> list[ModuleType]:
    names = sorted(file.name for file in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]


@cache
def methods() -> dict[str, Recipe]:
    """All recipes by name."""
    return {recipe.name: recipe for file in _files() for recipe in getattr(file, "METHODS", ())}


@cache
def starts() -> dict[str, Callable[..., Any]]:
    """By name, the functions (teacher, student, samples, config, recipe) -> (tensors, facts) that make a start."""
    return {name: make for file in _files() for name, make in getattr(file, "STARTS", {}).items()}


def method(name: str, option: str = "recipe.name") -> Recipe:
    """The recipe of that name.

    Raises:
        ConfigError: there is none; the sentence names the nearest.
    """
    known = methods()
    if name not in known:
        advice = suggestion(name, known, otherwise="choose one of")
        raise ConfigError(f"{option}: expected the name of a method, got {name!r}; {advice}")
    return known[name]


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
    """The named recipe with the config's own values in place of the recipe's where they are given."""
    given = {k: v for k, v in vars(config).items() if v is not None and k != "name"}
    recipe = replace(method(config.name, option), **given)
    if recipe.layer_loss == "none":
        recipe = replace(recipe, layer_weight=0.0)
    if recipe.output_loss == "none" and recipe.layer_loss == "none":
        raise ConfigError(
            "recipe: expected at least one loss, got output_loss: none and layer_loss: none; choose one."
        )
    if recipe.layer_loss == "fisher" and recipe.interface != "block":
        raise ConfigError(
            f"recipe.interface: the fisher layer loss reads logits off the residual stream, got {recipe.interface!r}; use block."
        )
    if recipe.label_weight and recipe.output_loss != "topk_kl":
        raise ConfigError(
            f"recipe.label_weight: only output_loss topk_kl mixes the label in, got {recipe.output_loss}; set it to 0."
        )
    if recipe.start.startswith("laten") and recipe.trained == "pairs":
        raise ConfigError(
            "recipe.trained: the start laten changes every layer, got pairs; use none, or all to train on from there."
        )
    if recipe.trained == "none" and not recipe.start.startswith("laten"):
        raise ConfigError(
            f"recipe.trained: none leaves the student as it starts, got recipe.start {recipe.start}; use pairs or all."
        )
    if (recipe.map == "none") != (recipe.layer_loss == "projected_mse") and recipe.needs_targets:
        raise ConfigError(
            f"recipe.map: none (the teacher's own activations) goes with layer_loss projected_mse and only with it, got "
            f"map {recipe.map} and layer_loss {recipe.layer_loss}; change one of them."
        )
    return recipe
