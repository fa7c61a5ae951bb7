"""The options of SemAlignTrainer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal

import torch
from transformers import SchedulerType

from semalign.config import (
    AttributionConfig,
    CacheConfig,
    DataConfig,
    PairingConfig,
    RecipeConfig,
    Supervise,
    TrainConfig,
    to_dict,
)
from semalign.config.parsing import parse_config
from semalign.errors import ConfigError
from semalign.models.origin import check_hub_id
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
        self._check_groups()
        if self.push_to_hub:
            check_hub_id(str(self.hub_model_id))
        # Models are loaded on the first GPU, or without one on the CPU; the Trainer has to stay there.
        has_gpu = torch.cuda.is_available()
        if self.use_cpu and has_gpu:
            raise ConfigError(
                "use_cpu: expected false on a machine with a GPU, got true; hide the GPU with CUDA_VISIBLE_DEVICES= instead."
            )
        self.use_cpu = not has_gpu
        super().__post_init__()
        self._refuse_idle()

    def _check_groups(self) -> None:
        """Read SemAlign's own options as those of a config file are read, and refuse what would be refused there."""
        groups = {name: getattr(self, name) for name in GROUPS}
        if isinstance(self.recipe, str):
            groups["recipe"] = {"name": self.recipe}
        # A card, which is uploaded with the student, can only tell of schedules that a config file knows.
        schedule = (
            {"lr_scheduler_type": SchedulerType(self.lr_scheduler_type).value} if self.hub_model_id else {}
        )
        rows = {name: getattr(self, name) for name in ("max_length", "supervise", "thinking")}
        config = parse_config(
            {name: to_dict(group) if is_dataclass(group) else group for name, group in groups.items()}
            | {
                "data": {"dataset_name": "rows", **rows},
                "train": {"cache_prefix": self.cache_prefix, **schedule},
                "push_to_hub": self.push_to_hub,
                "hub_model_id": self.hub_model_id,
                # Of these nothing is known yet.
                "teacher": {"model_name_or_path": "teacher"},
                "student": {"model_name_or_path": "student"},
                "output_dir": "",
            }
        )
        for owner, names in ((config, GROUPS), (config.data, rows), (config.train, ("cache_prefix",))):
            for name in names:
                setattr(self, name, getattr(owner, name))

    def _refuse_idle(self) -> None:
        """Refuse what transformers' own Trainer has an option for and this one has not, instead of going on without it."""
        for f in fields(self):
            value, default = getattr(self, f.name), f.default
            if f.name in IDLE and value != default:
                raise ConfigError(
                    f"{f.name}: expected {default!r} with SemAlignTrainer, got {value!r}; {IDLE[f.name]}."
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for what reports and saves them."""
        return {k: asdict(v) if is_dataclass(v) else v for k, v in super().to_dict().items()}  # type: ignore[arg-type]


GROUPS: dict[str, type] = {
    "recipe": RecipeConfig,
    "pairing": PairingConfig,
    "attribution": AttributionConfig,
    "cache": CacheConfig,
}

IDLE = {
    "label_smoothing_factor": 'set recipe={"label_smoothing": ...} for a recipe with a loss on labels',
    "neftune_noise_alpha": "leave it out, since cached signals are of embeddings without noise",
    "train_sampling_strategy": "leave it out, since rows of like length are batched together in any case",
    "per_device_eval_batch_size": 'set cache={"batch_size": ...}, which holds for every pass without gradients',
    "average_tokens_across_devices": "leave it out, since the loss is averaged over the tokens of all processes",
    "bf16_full_eval": "set bf16, which evaluation during the training takes over",
    "fp16_full_eval": "set fp16, which evaluation during the training takes over",
    "torch_compile": "leave it out, since the losses cannot be compiled",
    "use_liger_kernel": "leave it out, since no logits over the vocabulary are formed that it could save",
    "remove_unused_columns": "leave it out, since rows are read before they come to the Trainer",
}
"""Options of transformers' Trainer that would do nothing here or break, and what to do instead."""


def check_args(args: object) -> None:
    """Refuse arguments of another trainer.

    Raises:
        ConfigError: they are no `SemAlignConfig`.
    """
    if not isinstance(args, SemAlignConfig):
        raise ConfigError(
            f"args: expected a SemAlignConfig, got {type(args).__name__}; it takes the same options and SemAlign's own."
        )
