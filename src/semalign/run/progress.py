"""Progress bars and logs: tqdm's bars, silent when the package's logger is."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback
from transformers.utils import logging as hf_logging

from semalign.run import ranks


def quieten(quiet: bool, verbose: bool = False) -> None:
    """Other libraries' logs and bars off unless verbose; our own too when quiet."""
    level = logging.WARNING if quiet else logging.INFO
    # What the main process says is not said again.
    logging.basicConfig(level=level if ranks.is_main() else logging.ERROR, format="%(message)s")
    if verbose:
        hf_logging.set_verbosity_info()
        return
    # Calls between other libraries, which nobody here can mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    for name in ("httpx", "accelerate", "torch", "datasets", "transformers"):
        logging.getLogger(name).setLevel(logging.WARNING)
    hf_logging.set_verbosity_error()
    # Loading and saving have bars of their own that would drown ours.
    hf_logging.disable_progress_bar()


def bar(total: int, label: str, unit: str = "row") -> Any:
    """A bar over `total` rows, or of another unit."""
    is_quiet = not (ranks.is_main() and logging.getLogger("semalign").isEnabledFor(logging.INFO))
    return tqdm(total=total, desc=label, disable=is_quiet, leave=not is_quiet, unit=unit)


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
