"""What a method is made of: its losses, the layers it trains and in which order, and how the student starts.

A named recipe is one file in `semalign.methods`; a config may replace any of its fields.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Never

from semalign.config import RecipeFields, TrainConfig
from semalign.methods.loss import LayerLoss, OutputLoss
from semalign.run.plugins import code_of

FULL_RATE, LORA_RATE = 1e-5, 2e-4
"""Peak learning rates that nobody has chosen. A pretrained student survives them; what a rate of 1e-3 does is in docs/log.md."""


def default_rate(train: TrainConfig) -> float:
    """The peak learning rate of a training for which nobody has chosen one."""
    return LORA_RATE if train.lora_r else FULL_RATE


@dataclass(frozen=True)
class Recipe(RecipeFields[Never]):
    """An objective with no field left open; those that are not given have the values that `RecipeFields` states."""

    def __post_init__(self) -> None:
        for f in fields(self):
            if getattr(self, f.name) is None:
                object.__setattr__(self, f.name, f.metadata.get("recipe"))

    def train_of(self, train: TrainConfig) -> TrainConfig:
        """A run's optimisation with what the recipe itself says about LoRA and the rate, and with a rate in any case."""
        own = {name: getattr(self, name) for name in ("learning_rate", "lora_r", "lora_target_modules")}
        given = replace(train, **{name: value for name, value in own.items() if value is not None})
        return replace(given, learning_rate=given.learning_rate or default_rate(given))

    @property
    def code(self) -> dict[str, dict[str, str]]:
        """The modules outside the package that it is made of, for fingerprints; named only where there are some."""
        found = code_of(self.name, self.output_loss, self.layer_loss, self.start)
        return {"plugins": found} if found else {}

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
    def rest_temperature(self) -> float:
        """Temperature at which its output loss takes what is left outside the top k."""
        has_own = self.output is not None and "temperature" in self.output.options
        return float(self.temperature) if has_own else 1.0

    @property
    def needs_teacher_head(self) -> bool:
        """Whether training reads the teacher's head: its weights, or only its width."""
        return any(loss is not None and loss.needs_teacher_head for loss in (self.output, self.layer))
