"""One student's training in one stage or several: what each trains, from which streams, and how it goes on after a stop."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import HEADS, PAIRS, cached
from in_memory import config_of as in_memory_config
from tiny import STEPS, CutError, cut_at, full_weights, save_model, tiny_config, tiny_model

from semalign.config import PairingConfig, RecipeConfig
from semalign.maths.pairing import LayerPair
from semalign.methods import method, resolve
from semalign.models.decoder import Decoder
from semalign.run.files import read_tensors
from semalign.run.folder import RunFolder
from semalign.run.signals import Interrupted
from semalign.signals.plan import Plan
from semalign.signals.prepared import Prepared
from semalign.signals.request import PREFIX
from semalign.signals.shards import ShardStore
from semalign.steps.pipeline import transfer
from semalign.training import stages as step
from semalign.training.callbacks import LineLog
from semalign.training.stages import Training, mean_loss, stages, trained_plan, with_recipe
from semalign.training.student import trainable

LAYERS = 4
FRONTIER = RecipeConfig(name="acl")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A student deep enough for several stages above a cached prefix."""
    root = tmp_path_factory.mktemp("pair")
    teacher = save_model(tiny_model("llama", layers=6, wide=True, seed=1), root / "teacher")
    return teacher, save_model(tiny_model("llama", layers=LAYERS, wide=False, seed=2), root / "student")


config_of = partial(
    tiny_config,
    heldout_rows=0,
    pairing=PairingConfig(num_layers=3),
    train=full_weights(num_train_epochs=6, per_device_train_batch_size=5, save_steps=2),
)


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return read_tensors(run.root / "student" / "model.safetensors")


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("during", [False, True], ids=["after a stage", "within a stage"])
def test_a_frontier_run_cut_off_anywhere_ends_with_the_same_weights(
    pair: tuple[Path, Path],
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: int,
    during: bool,
) -> None:
    straight = transfer(config_of(pair, rows_file, tmp_path / "straight", recipe=FRONTIER), STEPS)
    config = config_of(pair, rows_file, tmp_path / "split", recipe=FRONTIER)
    optimise = step.Training._optimise
    count = 0

    def cut(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == stage and during:
            with cut_at(monkeypatch, 5):
                return optimise(self, *arguments, **options)
        if count == stage + 1 or (count == stage == 3 and not during):
            raise CutError
        return optimise(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(step.Training, "_optimise", cut)
        with pytest.raises(CutError):
            transfer(config, STEPS)
    run = transfer(config, STEPS)
    expected, ours = weights(straight), weights(run)
    assert all(torch.equal(expected[name], ours[name]) for name in expected)
    logs = [(r.root / "train.jsonl").read_text().splitlines() for r in (straight, run)]
    values = [[(json.loads(line)["step"], json.loads(line)["loss"]) for line in lines] for lines in logs]
    assert values[0] == values[1]


def test_carrying_the_streams_on_gives_the_losses_of_whole_students(
    pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    losses = []
    for is_cached in (True, False):
        train = full_weights(
            num_train_epochs=6, per_device_train_batch_size=5, cache_prefix=is_cached, max_steps=24
        )
        config = config_of(pair, rows_file, tmp_path / str(is_cached), recipe=FRONTIER, train=train)
        lines = (transfer(config, STEPS).root / "train.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 24


def test_a_recipes_own_lora_stands_in_place_of_the_configs() -> None:
    config = in_memory_config(Path("run"), train=full_weights(lora_r=4, lora_target_modules=("q_proj",)))
    assert with_recipe(config, method("aligned")) == config
    full = with_recipe(config, replace(method("aligned"), lora_r=0)).train
    assert full == replace(config.train, lora_r=0), "0 is a choice, null is none"
    both = replace(method("aligned"), lora_r=2, lora_target_modules=("o_proj",))
    assert with_recipe(config, both).train == full_weights(lora_r=2, lora_target_modules=("o_proj",))


def test_every_layer_is_trained_or_changed_where_the_recipe_says_so() -> None:
    assert trained_plan(PAIRS, method("aligned"), 3) is PAIRS
    whole = trained_plan(PAIRS, method("kl_all"), 3)
    assert whole.trained_layers == (1, 2, 3) and whole.pairs == PAIRS.pairs
    assert trained_plan(PAIRS, method("laten"), 3).trained_layers == (1, 2, 3)


def test_joint_training_is_one_stage() -> None:
    assert stages(HEADS, method("aligned")) == [HEADS]


def test_the_frontier_moves_from_shallow_to_deep_each_layer_towards_its_own_target() -> None:
    recipe = resolve(RecipeConfig("aligned", schedule="frontier"))
    two, three = stages(HEADS, recipe)
    assert (two.trained_layers, three.trained_layers) == ((2,), (3,)) and (two.cut, three.cut) == (1, 2)
    assert (*two.pairs, *three.pairs) == HEADS.pairs and (*two.heads, *three.heads) == HEADS.heads
    unpaired = stages(Plan((LayerPair(5, 3),), (2, 3)), recipe)
    assert [len(plan.pairs) for plan in unpaired] == [0, 1], (
        "a layer without a pair has a stage of its own too"
    )


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.integers(1, 7))
@settings(max_examples=40)
def test_the_mean_loss_is_that_of_all_steps_whatever_the_logging(losses: list[float], every: int) -> None:
    lines, start = [], 0
    for stop in [*range(every, len(losses), every), len(losses)]:
        lines.append({"step": stop, "loss": sum(losses[start:stop]) / (stop - start)})
        start = stop
    lines.append({"step": len(losses), "train_runtime": 3.0})
    assert mean_loss(lines, 99.0) == pytest.approx(sum(losses) / len(losses))


def test_a_training_that_logged_nothing_has_the_trainers_own_mean() -> None:
    assert mean_loss([], 0.5) == 0.5 == mean_loss([{"step": 9, "train_runtime": 3.0}], 0.5)


WHOLE = Plan((LayerPair(1, 1), LayerPair(3, 2), LayerPair(5, 3)), (1, 2, 3))
TRAIN = full_weights(num_train_epochs=3, per_device_train_batch_size=3, save_steps=1)
FRONTIER_COSINE = replace(
    method("cosine"), schedule="frontier", output_loss="none", map="ridge", interface="block"
)


@contextmanager
def training(of: Prepared, folder: Path) -> Iterator[Training]:
    """A fresh student's training by the frontier."""
    student = of.inputs.load_student()
    folder.mkdir(exist_ok=True)
    # The Trainer's collection of garbage takes longer than a stage.
    with trainable(student, of.plan, of.config), patch("gc.collect"):
        yield Training(of, FRONTIER_COSINE, student, folder, {"seed": 0})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Signals for a plan that trains all three layers."""
    recipe = RecipeConfig("cosine", map="ridge", interface="block")
    return cached(tmp_path_factory.mktemp("cache"), plan=WHOLE, recipe=recipe, train=TRAIN)


@pytest.fixture(scope="module")
def finished(
    cache: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], Decoder]:
    """The folder of a finished training in three stages of two steps each, its totals, its student."""
    folder = tmp_path_factory.mktemp("training")
    with training(cache, folder) as made:
        totals = made.run(stages(WHOLE, FRONTIER_COSINE))
        assert all(p.requires_grad for layer in made.student.layers for p in layer.parameters())
    return folder, totals, made.student


def test_stages_share_the_epochs_and_their_totals_are_added_up(
    finished: tuple[Path, dict[str, Any], Decoder], cache: Prepared
) -> None:
    folder, totals, student = finished
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6] and totals["steps"] == 6
    assert totals["loss"] == pytest.approx(sum(line["loss"] for line in lines[4:]) / 2), "the last stage's"
    each = [json.loads((folder / f"stage-{n}" / "stage.json").read_text()) for n in (1, 2, 3)]
    assert totals["train_seconds"] == pytest.approx(sum(one["train_seconds"] for one in each), abs=2e-3)
    assert totals["trained_parameters"] == sum(
        p.numel() for layer in student.layers for p in layer.parameters()
    )
    assert len(cache.inputs.train) == 6


def test_each_stage_changes_its_own_layer_alone_and_keeps_it(
    finished: tuple[Path, dict[str, Any], Decoder], cache: Prepared
) -> None:
    folder, _, student = finished
    untouched = dict(cache.inputs.load_student().model.named_parameters())
    for layer in (1, 2, 3):
        weights = read_tensors(folder / f"stage-{layer}" / "weights.safetensors")
        assert {name.split(".")[2] for name in weights} == {str(layer - 1)}
        assert any(not torch.equal(weights[name], untouched[name]) for name in weights)
        assert all(
            torch.equal(weights[name], p) for name, p in student.model.named_parameters() if name in weights
        )


def test_streams_of_a_stage_are_those_of_the_student_as_the_stages_before_left_it(
    finished: tuple[Path, dict[str, Any], Decoder], cache: Prepared
) -> None:
    folder, _, student = finished
    store = ShardStore(
        folder / "stage-3" / "prefix", cache.stores.fingerprint | {"cut": 2}, cache.stores.teacher.plan
    )
    for number, sample in enumerate(cache.inputs.train):
        with torch.no_grad():
            hidden = student.model(torch.tensor([sample.input_ids]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(store.read(number)[PREFIX], hidden[2][0], rtol=1e-4, atol=1e-4)
    assert not (folder / "stage-1" / "prefix").exists(), "the first layer reads token ids"
    assert not (folder / "stage-2" / "prefix").exists(), "streams that nothing reads any more are removed"
    assert list(cache.stores.student.folder.glob("*.safetensors")), "the run's own cache stays"


def test_finished_stages_are_read_and_not_trained_again(
    finished: tuple[Path, dict[str, Any], Decoder], cache: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, totals, student = finished
    monkeypatch.setattr(Training, "_optimise", lambda *_: pytest.fail("a stage was trained again"))
    with training(cache, folder) as again:
        assert again.run(stages(WHOLE, FRONTIER_COSINE)) == totals
    expected = dict(student.model.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in again.student.model.named_parameters())


def test_the_runs_own_streams_outlive_the_stages_that_read_them(tmp_path: Path) -> None:
    of = cached(tmp_path / "run", recipe=RecipeConfig("cosine", map="ridge", interface="block"), train=TRAIN)
    with training(of, tmp_path / "training") as made:
        made.run(stages(of.plan, FRONTIER_COSINE))
        assert made.cut == 2 and made.prefixes is not of.stores.student
    assert of.stores.student.missing(verify=True) == [] and (tmp_path / "training/stage-2/prefix").exists()


def test_without_a_cached_prefix_no_streams_are_kept(cache: Prepared, tmp_path: Path) -> None:
    config = replace(cache.config, train=replace(TRAIN, cache_prefix=False))
    with training(replace(cache, config=config), tmp_path / "training") as made:
        assert made.run(stages(WHOLE, FRONTIER_COSINE)[:2])["steps"] == 6
    assert not list(tmp_path.rglob("prefix")) and made.cut == 0


@contextmanager
def signalled(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[None]:
    """Inside, the process is told to stop once this step of the whole training is logged."""
    logged = LineLog.on_log

    def on_log(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        logged(self, args, state, control, **more)
        if self.steps + state.global_step == step and "loss" in more["logs"]:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(LineLog, "on_log", on_log)
        yield


def test_a_signal_ends_the_step_and_says_how_to_go_on(
    cache: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "training"
    longer = replace(cache, config=replace(cache.config, train=replace(TRAIN, num_train_epochs=6)))
    with (
        pytest.raises(Interrupted, match="stopped after step 6; run the same command again to go on"),
        signalled(monkeypatch, 5),
        training(longer, folder) as made,
    ):
        made.run(stages(WHOLE, FRONTIER_COSINE))
    assert (folder / "stage-1" / "stage.json").exists() and not (folder / "stage-2" / "stage.json").exists()
    assert (folder / "stage-2" / "checkpoint-2").exists()
    with training(longer, folder) as again:
        assert again.run(stages(WHOLE, FRONTIER_COSINE))["steps"] == 12
    steps = [json.loads(line)["step"] for line in (folder / "train.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))


def test_a_signal_in_the_last_step_of_a_stage_stops_before_the_next_one(
    cache: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(Interrupted, match="stopped after step 2"),
        signalled(monkeypatch, 1),
        training(cache, tmp_path) as made,
    ):
        made.run(stages(WHOLE, FRONTIER_COSINE))


def test_a_signal_in_the_very_last_step_stops_before_the_next_piece_of_work(
    cache: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with training(cache, tmp_path / "straight") as made:
        wanted = made.run([WHOLE])
        weights = [p.clone() for p in made.student.model.parameters()]
    folder = tmp_path / "stopped"
    with (
        pytest.raises(Interrupted, match=f"stopped after step {wanted['steps']};") as stopped,
        signalled(monkeypatch, wanted["steps"]),
        training(cache, folder) as made,
    ):
        made.run([WHOLE])
    assert stopped.value.exit_code == 143
    with training(cache, folder) as made:
        again = made.run([WHOLE])
        assert all(map(torch.equal, made.student.model.parameters(), weights))
    assert {k: again[k] for k in ("steps", "loss")} == {k: wanted[k] for k in ("steps", "loss")}


def test_a_run_reads_its_cached_streams_where_all_that_it_trains_lies_above_them(tmp_path: Path) -> None:
    of = cached(tmp_path / "run", train=TRAIN, recipe="cross_entropy")
    recipe, student = method("cross_entropy"), of.inputs.load_student()
    with trainable(student, PAIRS, of.config), patch("gc.collect"):
        made = Training(of, recipe, student, tmp_path, {})
        assert (made.cut, made.prefixes) == (0, None)
        made.run([PAIRS])
        assert (made.cut, made.prefixes) == (1, of.stores.student)
    student = of.inputs.load_student()
    with (
        trainable(student, trained_plan(PAIRS, method("cross_entropy_all"), 3), of.config),
        patch("gc.collect"),
    ):
        made = Training(of, method("cross_entropy_all"), student, tmp_path / "all", {})
        made.run([trained_plan(PAIRS, made.recipe, 3)])
        assert (made.cut, made.prefixes) == (0, None), "a recipe that trains every layer computes them"
