"""What watches a training: its log, its gradients, its signals, its checkpoints."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from semalign.errors import SemAlignError
from semalign.run import ranks
from semalign.run.files import append, json_line, say_once, write_atomic
from semalign.run.folder import is_done, save_result
from semalign.run.meter import free_memory, resident
from semalign.run.signals import Interrupted, handled, interrupt

logger = logging.getLogger(__name__)

Line = dict[str, Any]


class LineLog(TrainerCallback):
    """One line of train.jsonl per logged step.

    The file is never read again: what comes before the first step are the lines of stages before this one, and those that the
    checkpoint which is resumed from knows.
    """

    def __init__(self, path: Path, earlier: Sequence[Line] = (), steps: int = 0) -> None:
        self.path, self.lines, self.steps = path, list(earlier), steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what is known already."""
        known = [line for line in state.log_history if "loss" in line]
        self.lines += [{"step": self.steps + line["step"], **_without_step(line)} for line in known]
        if state.is_world_process_zero:
            write_atomic(self.path, "".join(map(json_line, self.lines)))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Append."""
        logs = kwargs.get("logs") or {}
        if "loss" in logs and state.is_world_process_zero:
            self.lines.append({"step": self.steps + state.global_step, **logs})
            with self.path.open("a", encoding="utf-8") as file:
                append(file, json_line(self.lines[-1]))


def _without_step(line: Line) -> Line:
    return {key: value for key, value in line.items() if key != "step"}


class GradientCheck(TrainerCallback):
    """After the first backward pass: exactly the chosen parameters have gradients, and they are finite and not all zero."""

    def __init__(self) -> None:
        self.is_checked = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Runs once."""
        if self.is_checked:
            return
        if args.fp16 and any(
            p.grad is not None and not p.grad.isfinite().all() for p in kwargs["model"].parameters()
        ):
            return  # loss scaling begins too high, and skips such steps
        self.is_checked = True
        for name, parameter in kwargs["model"].named_parameters():
            if parameter.requires_grad != (parameter.grad is not None):
                raise SemAlignError(
                    f"{name}: expected a gradient exactly where training was asked for; this recipe does not reach it."
                )
            # Asked for by every process, for of a split gradient each has a part.
            gradient = None if parameter.grad is None else ranks.whole(parameter.grad)
            # A LoRA pair starts with one factor at zero, which leaves the other without gradient.
            if (
                gradient is not None
                and "lora_" not in name
                and not 0 < float(gradient.abs().sum()) < float("inf")
            ):
                raise SemAlignError(
                    f"{name}: its first gradient is zero, NaN or infinite; the loss does not depend on this parameter."
                )


class RisingLoss(TrainerCallback):
    """Warns once, and at once, when the loss has stayed above where it started for a tenth of the training.

    The start is the mean over the first tenth; a tenth is at least FEWEST logged steps, so that the noise of single batches
    is no alarm.
    """

    FEWEST = 5

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.has_warned = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A resumed training goes on with the losses that its checkpoint knows."""
        self.losses = [float(line["loss"]) for line in state.log_history if "loss" in line]

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the newest loss."""
        if "loss" not in (kwargs.get("logs") or {}) or self.has_warned:
            return
        self.losses.append(float(kwargs["logs"]["loss"]))
        tenth = max(self.FEWEST, round(state.max_steps / state.logging_steps / 10))
        start = sum(self.losses[:tenth]) / tenth
        if len(self.losses) >= 2 * tenth and min(self.losses[-tenth:]) > start:
            self.has_warned = True
            logger.warning(
                "the training loss has been above its start (%.4g) for %d logged steps and is %.4g now: stop and lower "
                "train.learning_rate (%g), or train LoRA (train.lora_r) instead of full weights",
                start,
                tenth,
                self.losses[-1],
                args.learning_rate,
            )


class GiveBack(TrainerCallback):
    """Gives freed memory back to the system when the process has grown by a quarter since a step that began without holes.

    Batches of ever different lengths leave the allocator's heap full of holes. Steps of a 0.5B student that need 12 GB reached 19 within eight
    steps; but what is given back is cleared when it is taken again, and where that was after nearly every step it took a seventh of the
    time.
    """

    GROWTH = 1.25

    def __init__(self) -> None:
        self.usual: int | None = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look, and trim."""
        now = resident()
        if self.usual is None:
            self.usual = now
        elif now > self.GROWTH * self.usual:
            free_memory(collect=False)
            self.usual = None


class StopOnSignal(TrainerCallback):
    """SIGINT or SIGTERM: finish the step, save a checkpoint, stop. A second signal interrupts at once.

    When several processes train together, all of them stop after the same step, whichever of them received the signal. A second
    signal is then ignored, because launchers pass signals on to every process and kill those that do not stop.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.must_stop = False

    @contextmanager
    def installed(self) -> Iterator[StopOnSignal]:
        """The signals come here as long as the block lives."""
        with handled(self._receive):
            yield self

    def _receive(self, number: int, frame: Any) -> None:
        if self.received is not None and ranks.world() == 1:
            interrupt(number, frame)
        self.received = number

    def interrupted(self, step: int) -> Interrupted:
        """What to raise once the checkpoint of the step is there."""
        # Another process of the launch may have had the signal.
        number = self.received or signal.SIGTERM
        return Interrupted(number, f"stopped after step {step}; run the same command again to go on")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask the Trainer to save and stop."""
        self.must_stop = ranks.agree(self.received is not None)
        if self.must_stop:
            control.should_save = control.should_training_stop = True


class StopAt(TrainerCallback):
    """Saves and stops after a step that is not the last of the schedule."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask the Trainer for it."""
        if state.global_step >= self.step:
            control.should_save = control.should_training_stop = True


class Vouch(TrainerCallback):
    """Writes the list of a checkpoint's files with their digests, once all of them are there; without it a checkpoint does not count."""

    LIST = "files.json"

    def __init__(self, made_from: Mapping[str, Any]) -> None:
        self.made_from = dict(made_from)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for the other processes, whose states of chance are among the files."""
        ranks.wait()
        folder = Path(args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if state.is_world_process_zero:
            saved = [path for path in folder.iterdir() if path.name != self.LIST]
            save_result(folder / self.LIST, self.made_from, {}, saved)


def complete_checkpoint(folder: Path, made_from: Mapping[str, Any]) -> str | None:
    """The newest checkpoint of the same training whose files are all as they were written; one that is passed over is named."""
    found = sorted(
        folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True
    )
    for path in found:
        if not (path / Vouch.LIST).exists():
            say_once(f"{path}: passed over, it was not saved to its end")
        elif is_done(path / Vouch.LIST, made_from, doing="the checkpoint is passed over"):
            return str(path)
    return None
