"""What watches a training: a log without repeats, gradients where they belong, signals, checkpoints that are whole."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from semalign.errors import SemAlignError
from semalign.run.signals import Interrupted
from semalign.training import callbacks
from semalign.training.callbacks import (
    GiveBack,
    GradientCheck,
    LineLog,
    RisingLoss,
    StopOnSignal,
    Vouch,
    complete_checkpoint,
)

ARGUMENTS = cast(TrainingArguments, SimpleNamespace(fp16=False))  # all that the callbacks read of them


def state(step: int, *, main: bool = True) -> TrainerState:
    return TrainerState(global_step=step, is_world_process_zero=main)


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def log(callback: LineLog, step: int, loss: float = 1.0, **options: Any) -> None:
    callback.on_log(ARGUMENTS, state(step, **options), TrainerControl(), logs={"loss": loss, "epoch": 0.5})


def test_a_line_is_written_for_every_logged_step(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    log(callback := LineLog(path), 1, 2.5)
    log(callback, 2, 2.25)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 2.5, "epoch": 0.5},
        {"step": 2, "loss": 2.25, "epoch": 0.5},
    ]


def test_lines_without_a_loss_and_of_other_processes_are_left_out(tmp_path: Path) -> None:
    callback = LineLog(tmp_path / "train.jsonl")
    callback.on_log(ARGUMENTS, state(9), TrainerControl(), logs={"train_runtime": 3.0})
    callback.on_log(ARGUMENTS, state(9), TrainerControl())
    log(callback, 9, main=False)
    assert not callback.path.exists()


def resumed(step: int) -> TrainerState:
    """The state in a checkpoint, which knows its own lines."""
    history = [{"loss": 1.0, "epoch": 0.5, "step": n} for n in range(1, step + 1)]
    return TrainerState(global_step=step, log_history=[*history, {"train_runtime": 1.0, "step": step}])


@pytest.mark.parametrize("damaged", ["", '{"step": 1, "loss": 9.0}\n', "no JSON\n\n"])
def test_a_resumed_training_has_its_lines_from_its_checkpoint_and_not_from_the_log(
    tmp_path: Path, damaged: str
) -> None:
    path = tmp_path / "train.jsonl"
    for step in range(1, 6):
        log(LineLog(path), step)
    whole = path.read_text()
    path.write_text(damaged + '{"step": 6, "lo')
    callback = LineLog(path)
    callback.on_train_begin(ARGUMENTS, resumed(3), TrainerControl())
    assert steps(path) == [1, 2, 3]
    log(callback, 4)
    log(callback, 5)
    assert path.read_text() == whole


def test_a_training_that_starts_anew_starts_its_log_anew(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("no JSON at all\nbut several lines\n")
    LineLog(path).on_train_begin(ARGUMENTS, state(0), TrainerControl())
    assert path.read_text() == ""


def test_a_later_stage_counts_on_from_the_stages_before_it(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    earlier = [{"step": step, "loss": 2.0} for step in range(1, 5)]
    callback = LineLog(path, earlier, steps=4)
    callback.on_train_begin(ARGUMENTS, resumed(2), TrainerControl())
    log(callback, 3)
    assert steps(path) == [1, 2, 3, 4, 5, 6, 7]
    assert [line["step"] for line in callback.lines] == steps(path)


def test_another_process_leaves_the_log_alone(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    log(LineLog(path), 1)
    LineLog(path).on_train_begin(ARGUMENTS, state(0, main=False), TrainerControl())
    assert steps(path) == [1]


def checked(change: Callable[[nn.Module], None], callback: GradientCheck | None = None) -> None:
    """Check a model of a trained and a frozen layer after one backward pass, changed by the test."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"trained": nn.Linear(3, 3), "frozen": nn.Linear(3, 3)})
    model["frozen"].requires_grad_(False)
    model["frozen"](model["trained"](torch.ones(2, 3))).sum().backward()
    change(model)
    callback = callback or GradientCheck()
    callback.on_pre_optimizer_step(ARGUMENTS, state(0), TrainerControl(), model=model)


def test_gradients_exactly_where_training_was_asked_for_pass() -> None:
    checked(lambda model: None)


def unreached(model: Any) -> None:
    model["trained"].bias.grad = None


def unfrozen(model: Any) -> None:
    model["frozen"].weight.grad = torch.ones(3, 3)


@pytest.mark.parametrize(("change", "name"), [(unreached, r"trained\.bias"), (unfrozen, r"frozen\.weight")])
def test_a_gradient_too_few_or_too_many_names_the_parameter(change: Any, name: str) -> None:
    with pytest.raises(
        SemAlignError, match=rf"{name}: expected a gradient exactly where training was asked for"
    ):
        checked(change)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_first_gradient_of_no_use_names_the_parameter(value: float) -> None:
    def change(model: Any) -> None:
        model["trained"].weight.grad.fill_(value)

    with pytest.raises(SemAlignError, match=r"trained\.weight: its first gradient is zero, NaN or infinite"):
        checked(change)


def test_only_the_first_step_is_checked() -> None:
    callback = GradientCheck()
    checked(lambda model: None, callback)
    checked(unreached, callback)


def test_one_factor_of_lora_may_start_without_gradient() -> None:
    model = nn.ModuleDict({"lora_A": nn.Linear(3, 2, bias=False), "lora_B": nn.Linear(2, 3, bias=False)})
    nn.init.zeros_(cast(Any, model["lora_B"]).weight)
    model["lora_B"](model["lora_A"](torch.ones(2, 3))).sum().backward()
    assert float(cast(Any, model["lora_A"]).weight.grad.abs().sum()) == 0
    GradientCheck().on_pre_optimizer_step(ARGUMENTS, state(0), TrainerControl(), model=model)


def test_memory_is_given_back_once_it_has_grown_by_a_quarter_since_a_step_without_holes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    callback, found = GiveBack(), []
    monkeypatch.setattr(callbacks, "free_memory", lambda **_: found.append("back"))
    for held in (1000, 900, 1249, 1251, 800, 990, 1001, 1200):
        monkeypatch.setattr(callbacks, "resident", lambda now=held: now)
        callback.on_step_end(ARGUMENTS, state(1), TrainerControl())
        found.append(held)
    # After 1251 the step of 800 is the measure, and after 1001 that of 1200.
    assert found == [1000, 900, 1249, "back", 1251, 800, 990, "back", 1001, 1200]


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_end_and_asks_for_a_checkpoint(number: signal.Signals) -> None:
    before = handlers()
    with StopOnSignal().installed() as stopper:
        control = TrainerControl()
        stopper.on_step_end(ARGUMENTS, state(1), control)
        assert not control.should_save and not control.should_training_stop and not stopper.must_stop
        os.kill(os.getpid(), number)
        assert not control.should_training_stop, "the step goes on"
        stopper.on_step_end(ARGUMENTS, state(2), control)
        assert control.should_save and control.should_training_stop and stopper.must_stop
    assert handlers() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_at_once(number: signal.Signals) -> None:
    before = handlers()
    with pytest.raises(Interrupted) as stopped, StopOnSignal().installed():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), number)
        pytest.fail("the second signal was ignored")
    assert stopped.value.exit_code == 128 + number and handlers() == before


def test_of_several_processes_none_ends_on_a_second_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with StopOnSignal().installed() as stopper:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopper.received == signal.SIGTERM


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before, seen = handlers(), []

    def train() -> None:
        with StopOnSignal().installed() as stopper:
            control = TrainerControl()
            stopper.on_step_end(ARGUMENTS, state(1), control)
            seen.append((handlers(), control.should_training_stop))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


MADE_FROM = {"seed": 0}
SAVED = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "trainer_state.json")


def checkpoint(folder: Path, step: int) -> Path:
    """As the Trainer leaves it, and with the list that the callback writes then."""
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    for name in SAVED:
        (path / name).write_text(f"{name} of step {step}")
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True)
    Vouch(MADE_FROM).on_save(arguments, state(step), TrainerControl())
    return path


def test_the_newest_checkpoint_by_number_is_resumed_from(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        checkpoint(tmp_path, step)
    assert complete_checkpoint(tmp_path, MADE_FROM) == str(tmp_path / "checkpoint-100")


@pytest.mark.parametrize("name", [*SAVED, Vouch.LIST])
@pytest.mark.parametrize("change", ["deleted", "truncated", "a bit", "of another step"])
def test_a_checkpoint_of_which_one_file_is_damaged_is_passed_over_and_named(
    tmp_path: Path, name: str, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole, damaged = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4) / name
    content = damaged.read_bytes()
    if change == "deleted":
        damaged.unlink()
    elif change == "of another step":
        damaged.write_bytes((whole / name).read_bytes())
    else:
        damaged.write_bytes(content[:-1] if change == "truncated" else b"~" + content[1:])
    assert complete_checkpoint(tmp_path, MADE_FROM) == str(whole)
    (said,) = [r.message for r in caplog.records]
    assert "checkpoint-4" in said and "passed over" in said


def test_a_checkpoint_of_another_training_is_passed_over(tmp_path: Path) -> None:
    checkpoint(tmp_path, 4)
    assert complete_checkpoint(tmp_path, MADE_FROM | {"seed": 1}) is None


def test_a_checkpoint_that_is_saved_again_counts(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 4)
    (path / "optimizer.pt").write_text("other")
    assert complete_checkpoint(tmp_path, MADE_FROM) is None
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    Vouch(MADE_FROM).on_save(arguments, state(4), TrainerControl())
    assert complete_checkpoint(tmp_path, MADE_FROM) == str(path)
    Vouch(MADE_FROM).on_save(arguments, state(4, main=False), TrainerControl())


def test_without_a_whole_checkpoint_training_starts_at_the_beginning(tmp_path: Path) -> None:
    assert complete_checkpoint(tmp_path, MADE_FROM) is None
    (checkpoint(tmp_path, 4) / Vouch.LIST).unlink()
    assert complete_checkpoint(tmp_path, MADE_FROM) is None
    assert complete_checkpoint(tmp_path / "nothing", MADE_FROM) is None


RATE = TrainingArguments(output_dir="unused", learning_rate=1e-3)


def watched(losses: list[float], steps: int, known: int = 0) -> RisingLoss:
    """The callback after these losses, `known` of them from a checkpoint."""
    callback = RisingLoss()
    before = [{"loss": loss, "step": n} for n, loss in enumerate(losses[:known], 1)]
    at = TrainerState(max_steps=steps, logging_steps=1, log_history=before)
    callback.on_train_begin(RATE, at, TrainerControl())
    for loss in losses[known:]:
        callback.on_log(RATE, at, TrainerControl(), logs={"loss": loss})
    return callback


@pytest.mark.parametrize("known", [0, 7])
def test_a_loss_that_stays_above_its_start_is_told_once_with_the_rate(
    known: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert watched([1.0] * 5 + [1.2, 1.5, 1.6, 1.7, 1.8, 1.9, 2.5], 50, known).has_warned
    (told,) = caplog.messages
    assert (
        "above its start (1) for 5 logged steps and is 1.8 now" in told
        and "train.learning_rate (0.001)" in told
    )


@pytest.mark.parametrize(
    "losses",
    [
        [1.0] * 5 + [0.9] * 20,
        [1.0] * 5 + [1.5, 1.5, 1.5, 1.5, 0.9] * 5,  # it comes down again
        [1.0] * 4 + [3.0] * 5,  # the start is not known yet
        [2.0, 0.2, 0.9, 1.1, 0.8] + [1.01, 0.99] * 9,  # noise
    ],
)
def test_a_loss_that_falls_or_swings_is_no_alarm(
    losses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    assert not watched(losses, 50).has_warned and not caplog.messages


def test_a_long_training_waits_for_a_tenth_of_its_steps() -> None:
    assert not watched([1.0] * 30 + [1.5] * 29, 300).has_warned
    assert watched([1.0] * 30 + [1.5] * 30, 300).has_warned


def test_steps_that_loss_scaling_skips_are_not_the_first() -> None:
    arguments, check = cast(TrainingArguments, SimpleNamespace(fp16=True)), GradientCheck()
    model = nn.Linear(3, 3)
    for value in (float("inf"), 0.0):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        if value:
            check.on_pre_optimizer_step(arguments, state(0), TrainerControl(), model=model)
            assert not check.is_checked
    with pytest.raises(SemAlignError, match="first gradient is zero"):
        check.on_pre_optimizer_step(arguments, state(1), TrainerControl(), model=model)
