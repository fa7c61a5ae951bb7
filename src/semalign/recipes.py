"""Named objectives. A recipe says which losses are taken, at which interface, through which map."""

from __future__ import annotations

from dataclasses import dataclass, replace

from semalign.config import Interface, LayerLoss, MapName, OutputLoss, RecipeConfig, RecipeName
from semalign.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """loss = output_weight * output_loss + layer_weight * mean over pairs of layer_loss; see RecipeConfig's fields."""

    name: str
    output_loss: OutputLoss
    layer_loss: LayerLoss = "none"
    map: MapName = "ridge"
    interface: Interface = "block"
    output_weight: float = 1.0
    layer_weight: float = 0.0
    learning_rate: float = 1e-3
    label_smoothing: float = 0.0
    temperature: float = 1.0

    @property
    def needs_topk(self) -> bool:
        """Whether the cached union of top-k tokens is read."""
        return self.output_loss in ("topk_kl", "fisher") or self.layer_loss == "fisher"

    @property
    def needs_targets(self) -> bool:
        """Whether aligned teacher activations are read."""
        return self.layer_loss != "none"

    @property
    def needs_teacher_output(self) -> bool:
        """Whether the teacher's own output state and head are read."""
        return self.output_loss == "kl"


RECIPES: dict[RecipeName, Recipe] = {
    "aligned": Recipe("aligned", "topk_kl", layer_loss="cosine", layer_weight=0.1),
    # arXiv 2510.24208v1: both cosine terms, unweighted, on a sublayer's output, through the semantic bases.
    "cosine": Recipe("cosine", "cosine", "cosine", "semantic", "mlp", layer_weight=1.0, learning_rate=3e-4),
    "fisher": Recipe("fisher", "fisher", layer_loss="fisher", layer_weight=0.1),
    "cross_entropy": Recipe("cross_entropy", "cross_entropy"),
    "kl": Recipe("kl", "kl"),
}


def resolve(config: RecipeConfig) -> Recipe:
    """The named recipe with the config's own values in place of the recipe's where they are given."""
    given = {k: v for k, v in vars(config).items() if v is not None and k != "name"}
    recipe = replace(RECIPES[config.name], **given)
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
    return recipe
