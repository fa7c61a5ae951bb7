"""Rounds: one schedule through all of them, the present student's own rows in each, and the same bits after a stop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import config_of, full_weights

from semalign.config import RecipeConfig, SamplingConfig, TransferConfig
from semalign.errors import ConfigError
from semalign.run.files import read_json
from semalign.run.folder import RunFolder, save_result
from semalign.steps import rounds as module
from semalign.steps import train as train_module
from semalign.steps.pipeline import transfer
from semalign.training.stages import fit

from .talking import config_of as talking
from .talking import written

STEPS = ("generate", "attribute", "pair", "cache", "train")


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.root / "student" / "model.safetensors")


def same(one: RunFolder, other: RunFolder) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def log(run: RunFolder) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (run.root / "train.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["learning_rate"]) for line in lines]


@pytest.mark.parametrize("lora_r", [0, 4])
def test_rounds_on_given_rows_are_one_long_training(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, lora_r: int
) -> None:
    # A loss on the rows alone, so that nothing of the present student comes in.
    recipe = RecipeConfig("cross_entropy", lora_r=lora_r)
    base: dict[str, Any] = {"recipe": recipe}
    whole = full_weights(num_train_epochs=3, per_device_train_batch_size=4, learning_rate=1e-3)
    once = transfer(config_of(tiny_pair, rows_file, tmp_path / "once", train=whole, **base), STEPS)
    train = replace(whole, num_train_epochs=1, rounds=3)
    thrice = transfer(config_of(tiny_pair, rows_file, tmp_path / "thrice", train=train, **base), STEPS)
    assert log(once) == log(thrice) and [step for step, _, _ in log(once)] == list(range(1, 13))
    assert same(once, thrice)
    kept = {p.name for p in (thrice.root / "rounds").rglob("*") if p.is_file()}
    assert not any(name.endswith(".safetensors") for name in kept), "what only the training needed is gone"
    assert not list(thrice.root.glob("checkpoint-*"))


def test_the_seconds_of_training_are_those_of_all_rounds(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lasted = iter((100.0, 20.0, 3.0, 0.5))

    def timed(*arguments: Any, **options: Any) -> Any:
        # The folder of a round is its number; this one is stopped once, so that the first round's seconds are another command's.
        if arguments[3].name in stopped:
            stopped.clear()
            raise KeyboardInterrupt
        result, merged = fit(*arguments, **options)
        return result | {"train_seconds": next(lasted)}, merged

    stopped = {"2"}
    for place in (module, train_module):
        monkeypatch.setattr(place, "fit", timed)
    train = full_weights(num_train_epochs=1, per_device_train_batch_size=4, rounds=3)
    config = config_of(
        tiny_pair, rows_file, tmp_path / "run", train=train, recipe=RecipeConfig("cross_entropy")
    )
    with pytest.raises(KeyboardInterrupt):
        transfer(config, STEPS)
    taken = tmp_path / "run" / "seconds.part"
    save_result(taken, read_json(taken, "train")["fingerprint"], {"seconds": 1000.0})
    found = json.loads((transfer(config, STEPS).root / "train.json").read_text())
    assert found["train_seconds"] == 123.0 and found["steps"] == 12
    assert found["seconds"] > 1000, "both tries count"


def own_rows(folder: Path, pair: tuple[Path, Path], rows: Path, **train: Any) -> TransferConfig:
    """Two rounds on the student's own answers; of the pair only the teacher ends its answers."""
    drawn = {"completions": "student", "samples": 2, "sampling": SamplingConfig(temperature=1.0, top_k=30)}
    config = talking((pair[0], pair[0]), rows, folder, **drawn)
    options = {"rounds": 2, "num_train_epochs": 1, "per_device_train_batch_size": 4, "save_steps": 2}
    return replace(
        config,
        recipe=RecipeConfig("aligned_output"),
        train=full_weights(learning_rate=1e-3, **(options | train)),
    )


def test_each_round_answers_anew_and_a_stopped_one_goes_on_to_the_same_student(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = transfer(own_rows(tmp_path / "a", talking_pair, rows_file), STEPS)
    second = RunFolder(straight.root / "rounds" / "2")
    assert written(straight) != written(second), "the second round has rows of its own"
    assert {row[0]["content"] for row in written(second)} <= {
        row[0]["content"] for row in written(straight)
    } | {json.loads(line)["messages"][0]["content"] for line in rows_file.read_text().splitlines()}
    steps = [step for step, _, _ in log(straight)]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) == 2 * -(-len(written(straight)) // 4)
    rates = [rate for _, _, rate in log(straight)]
    top = rates.index(max(rates))
    assert rates[top:] == sorted(rates[top:], reverse=True), (
        "one schedule: the rate falls from its peak to the end"
    )

    # Stopped where each part of a round begins, and in the middle of both trainings.
    config = own_rows(tmp_path / "b", talking_pair, rows_file)
    half = len(steps) // 2
    stops: tuple[Any, ...] = (half - 2, "generate", "cache", half + 2)
    for stop in stops:
        if stop == "cache":
            # As if it had been stopped between the round's last checkpoint and the word that the round is done.
            (tmp_path / "b" / "rounds" / "1" / "round.json").unlink()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            if isinstance(stop, int):
                stop_after(patch, stop)
            else:
                patch.setattr(module, stop, interrupted)
            transfer(config, STEPS)
    stopped = transfer(config, STEPS)
    assert log(stopped) == log(straight) and same(stopped, straight)


def interrupted(*args: Any, **options: Any) -> Any:
    raise KeyboardInterrupt


def stop_after(patch: pytest.MonkeyPatch, step: int) -> None:
    from semalign.training.suffix import SuffixTrainer

    original = SuffixTrainer.compute_loss

    def stopping(self: Any, *args: Any, **kw: Any) -> Any:
        if self.state.global_step >= step:
            raise KeyboardInterrupt
        return original(self, *args, **kw)

    patch.setattr(SuffixTrainer, "compute_loss", stopping)


def test_a_baseline_trains_as_long_on_the_first_rows(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    from semalign.config import EvaluationConfig

    train = full_weights(num_train_epochs=1, per_device_train_batch_size=4, rounds=2)
    config = config_of(
        tiny_pair,
        rows_file,
        tmp_path / "run",
        train=train,
        evaluation=EvaluationConfig(baselines=("cross_entropy",)),
    )
    run = transfer(config, STEPS)
    own, baseline = (
        json.loads((folder / "train.json").read_text())["steps"]
        for folder in (run.root, run.root / "baselines" / "cross_entropy")
    )
    assert own == baseline == 8


def test_what_makes_no_sense_is_refused(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    train = full_weights(num_train_epochs=1, per_device_train_batch_size=4, rounds=2)
    for recipe, reason in (
        (RecipeConfig("aligned", schedule="frontier"), "layer by layer"),
        (RecipeConfig("laten"), "layer by layer or not at all"),
        (RecipeConfig("pissa", lora_r=4), "recipe.start: pissa"),
    ):
        config = config_of(tiny_pair, rows_file, tmp_path / recipe.name, train=train, recipe=recipe)
        with pytest.raises(ConfigError, match=rf"train\.rounds: expected 1 with .*{reason}"):
            transfer(config, STEPS)
    short = replace(train, rounds=9, max_steps=3)
    with pytest.raises(ConfigError, match="at most one round a step, got 9 rounds and 3 steps"):
        transfer(config_of(tiny_pair, rows_file, tmp_path / "short", train=short), STEPS)
