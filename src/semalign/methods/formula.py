"""A recipe's objective as text, for cards and pages."""

from __future__ import annotations

from semalign.methods.maps import MAPS
from semalign.methods.recipe import Recipe


def formula(recipe: Recipe) -> list[str]:
    """The loss and what stands in it, a line each; terms that the recipe does not use are left out."""
    terms, where = [], []
    if recipe.output is not None:
        terms.append(f"{_factor(recipe.output_weight)}output")
        where.append(f"output = {recipe.output.formula}{_options(recipe)}")
    if recipe.layer is not None and recipe.layer_weight:
        decay = " (falling to 0)" if recipe.layer_schedule == "decay" else ""
        terms.append(f"{_factor(recipe.layer_weight)}mean over pairs of layer{decay}")
        where.append(f"layer = {recipe.layer.formula}, at interface {recipe.interface}")
        where.append(f"target = {MAPS[recipe.map].formula}")
    return [f"loss = {' + '.join(terms)}", *where]


def _factor(weight: float) -> str:
    return "" if weight == 1 else f"{weight:g} * "


def _options(recipe: Recipe) -> str:
    options = []
    if recipe.temperature != 1:
        options.append(f"temperature {recipe.temperature:g}")
    if recipe.label_weight:
        options.append(f"{recipe.label_weight:g} of p_T replaced by the label")
    if recipe.label_smoothing:
        options.append(f"label smoothing {recipe.label_smoothing:g}")
    return f" ({', '.join(options)})" if options else ""
