"""The options of SemAlignTrainer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal

import torch

from semalign.config import (
    AttributionConfig,
    CacheConfig,
    DataConfig,
    PairingConfig,
    RecipeConfig,
    Supervise,
    TrainConfig,
)
from semalign.errors import ConfigError
from semalign.training.arguments import SuffixArguments


@dataclass
class SemAlignConfig(SuffixArguments):
    """transformers' TrainingArguments, with SemAlign's groups of options beside them and its defaults.

    A group is its dataclass or a dict of its fields: `pairing={"num_layers": 6}`.
    """

    learning_rate: float | None = None  # type: ignore[assignment]
    """Peak learning rate; with None it is 2e-4 for adapters and 1e-5 for full weights."""
    per_device_train_batch_size: int = TrainConfig.per_device_train_batch_size
    lr_scheduler_type: str = TrainConfig.lr_scheduler_type
    warmup_steps: float = TrainConfig.warmup_steps
    logging_steps: float = TrainConfig.logging_steps
    save_steps: float = TrainConfig.save_steps
    recipe: RecipeConfig | dict | str = field(default_factory=RecipeConfig)
    """The objective: a recipe's name, or RecipeConfig's fields."""
    pairing: PairingConfig | dict = field(default_factory=PairingConfig)
    """Which student layers are trained, towards which teacher layers; see PairingConfig."""
    attribution: AttributionConfig | dict = field(default_factory=AttributionConfig)
    """How the teacher's layers are scored; see AttributionConfig."""
    cache: CacheConfig | dict = field(default_factory=CacheConfig)
    """What is kept of the teacher; see CacheConfig."""
    cache_prefix: bool = TrainConfig.cache_prefix
    """Compute the frozen layers below the lowest trained one once instead of in every step."""
    max_length: int = DataConfig.max_length
    """Tokens a row may have; longer completions are cut, prompts are kept."""
    supervise: Supervise = DataConfig.supervise
    """Which tokens are supervised: those of the last assistant turn, of every one, or all."""
    thinking: Literal["keep", "drop"] | None = DataConfig.thinking
    """What becomes of the thinking in given answers; None: what the chat template does with it."""

    def __post_init__(self) -> None:
        if isinstance(self.recipe, str):
            self.recipe = RecipeConfig(self.recipe)
        for name, kind in GROUPS.items():
            setattr(self, name, _group(name, kind, getattr(self, name)))
        # Models are loaded on the first GPU, or without one on the CPU; the Trainer has to stay there.
        has_gpu = torch.cuda.is_available()
        if self.use_cpu and has_gpu:
            raise ConfigError(
                "use_cpu: expected false on a machine with a GPU, got true; hide the GPU with CUDA_VISIBLE_DEVICES= instead."
            )
        self.use_cpu = not has_gpu
        super().__post_init__()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for what reports and saves them."""
        return {k: asdict(v) if is_dataclass(v) else v for k, v in super().to_dict().items()}  # type: ignore[arg-type]


GROUPS: dict[str, type] = {
    "recipe": RecipeConfig,
    "pairing": PairingConfig,
    "attribution": AttributionConfig,
    "cache": CacheConfig,
}


def _group(name: str, kind: type, given: Any) -> Any:
    if isinstance(given, kind):
        return given
    known = [f.name for f in fields(kind)]
    if not isinstance(given, dict) or (wrong := [key for key in given if key not in known]):
        got = f"{', '.join(wrong)}" if isinstance(given, dict) else repr(given)
        raise ConfigError(f"{name}: expected fields among {', '.join(known)}, got {got}; change it.")
    return kind(**given)
