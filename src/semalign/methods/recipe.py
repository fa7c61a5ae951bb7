"""What a method is made of: its losses, the layers it trains and in which order, and how the student starts.

A named recipe is one file in `semalign.methods`; a config may replace any of its fields.
"""

from __future__ import annotations

from dataclasses import dataclass

from semalign.config import (
    Interface,
    LayerLoss,
    LayerSchedule,
    MapName,
    OutputLoss,
    Schedule,
    Signals,
    Start,
    Trained,
)

TOPK = ("topk_kl", "fisher")
"""Output losses on the cached top-k tokens."""


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
    layer_schedule: LayerSchedule = "constant"
    label_weight: float = 0.0
    learning_rate: float = 1e-3
    label_smoothing: float = 0.0
    temperature: float = 1.0
    schedule: Schedule = "joint"
    trained: Trained = "pairs"
    lora_r: int | None = None
    lora_target_modules: tuple[str, ...] | None = None
    start: Start = "untouched"
    signals: Signals = "teacher"

    @property
    def needs_topk(self) -> bool:
        """Whether the cached union of top-k tokens is read."""
        return self.output_loss in TOPK or self.layer_loss == "fisher"

    @property
    def needs_targets(self) -> bool:
        """Whether aligned teacher activations are read."""
        return self.layer_loss != "none"

    @property
    def needs_teacher_output(self) -> bool:
        """Whether the teacher's own output state and head are read."""
        return self.output_loss in ("kl", "jsd")

    @property
    def needs_teacher_head(self) -> bool:
        """Whether training reads the teacher's head: its weights, or only its width."""
        return self.needs_teacher_output or self.layer_loss == "projected_mse"
