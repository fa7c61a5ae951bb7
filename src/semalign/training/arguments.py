"""transformers' TrainingArguments as the suffix's training wants them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from semalign.config import OptimiserConfig, TransferConfig
from semalign.errors import ConfigError

OPTIMISER = tuple(f.name for f in fields(OptimiserConfig))
"""Fields that a config and TrainingArguments share, name by name."""


@dataclass
class SuffixArguments(TrainingArguments):
    """TrainingArguments with the defaults that the suffix needs, whoever makes them."""

    logging_nan_inf_filter: bool = False
    """A NaN step must show, never be averaged away."""
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = False
    ddp_find_unused_parameters: bool | None = False
    """GradientCheck makes sure that the loss reaches every trained parameter."""


def check_tracker(name: str) -> None:
    """Refuse an experiment tracker that transformers does not find here.

    Raises:
        ConfigError: it does not.
    """
    trackers = ["none", *get_available_reporting_integrations()]
    if name not in trackers:
        raise ConfigError(
            f"train.report_to: expected one of {', '.join(trackers)}, which are installed here, got {name!r}; "
            "install the tracker or choose none."
        )


def arguments(
    config: TransferConfig, folder: Path, stages: int = 1, stage: int = 1, total: int | None = None
) -> SuffixArguments:
    """The config's fields as transformers' own, once a recipe has said its part.

    Several stages share the epochs or steps, and the first alone warms up: the rate would start at 0 in each.

    Args:
        total: optimiser steps of all rounds, where there are several.
    """
    t = config.train
    check_tracker(t.report_to)
    given: dict[str, Any] = {name: getattr(t, name) for name in OPTIMISER}
    # What trains on the first round's rows alone, as baselines do, trains as long as all rounds together.
    given["num_train_epochs"] *= t.rounds / stages
    if t.max_steps > 0:
        given["max_steps"] = max(1, t.max_steps // stages)
    if total is not None:
        given["max_steps"] = total
    if stage > 1:
        given["warmup_steps"] = 0
    return SuffixArguments(
        output_dir=str(folder),
        use_cpu=not torch.cuda.is_available(),
        logging_steps=t.logging_steps,
        save_steps=t.save_steps,
        save_total_limit=2,
        seed=config.seed,
        report_to=t.report_to,
        disable_tqdm=True,
        log_level="warning",
        **given,
    )
