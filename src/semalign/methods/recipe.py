"""What a method is made of: its losses, the layers it trains and in which order, and how the student starts.

A named recipe is one file in `semalign.methods`; a config may replace any of its fields.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Never

from semalign.config import RecipeFields
from semalign.methods.loss import LayerLoss, OutputLoss


@dataclass(frozen=True)
class Recipe(RecipeFields[Never]):
    """An objective with no field left open; those that are not given have the values that `RecipeFields` states."""

    def __post_init__(self) -> None:
        for f in fields(self):
            if getattr(self, f.name) is None:
                object.__setattr__(self, f.name, f.metadata.get("recipe"))

    @property
    def output(self) -> OutputLoss | None:
        """The loss at the output."""
        from semalign.methods import output_losses

        return output_losses().get(self.output_loss)

    @property
    def layer(self) -> LayerLoss | None:
        """The loss at the paired layers."""
        from semalign.methods import layer_losses

        return layer_losses().get(self.layer_loss)

    @property
    def reads(self) -> tuple[str, ...]:
        """Signals of a batch that its losses read, targets apart; see `semalign.methods.loss`."""
        losses = (loss for loss in (self.output, self.layer) if loss is not None)
        return tuple(dict.fromkeys(name for loss in losses for name in loss.reads))

    @property
    def needs_teacher_head(self) -> bool:
        """Whether training reads the teacher's head: its weights, or only its width."""
        return any(loss is not None and loss.needs_teacher_head for loss in (self.output, self.layer))
