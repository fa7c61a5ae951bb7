"""Progress bars: tqdm's, silent when the package's logger is."""

from __future__ import annotations

import logging
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback


def bar(total: int, label: str) -> Any:
    """A bar over `total` rows or batches."""
    is_quiet = not logging.getLogger("semalign").isEnabledFor(logging.INFO)
    return tqdm(total=total, desc=label, disable=is_quiet, leave=not is_quiet, unit="row")


class LossProgress(ProgressCallback):
    """The Trainer's own bar, with the loss beside it instead of a printed line per step."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **kwargs: Any,
    ) -> None:
        """Show the newest loss."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.4g}", refresh=False)
