"""A few real batches through every step: which rows, what is counted, and stand-ins of the right shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import HEADS, PAIRS, cached, prepared, samples
from tiny import full_weights
from transformers import TrainerState

from semalign.cli import main
from semalign.config import AttributionConfig, EvaluationConfig, RecipeConfig
from semalign.data import Sample
from semalign.estimate import probe
from semalign.estimate.probe import Costs, Shown, longest_rows, probe_student, probe_teacher, typical_rows
from semalign.methods import method, resolve
from semalign.methods.recipe import Recipe
from semalign.signals.passes import student_signals, teacher_signals
from semalign.signals.prepared import Prepared
from semalign.signals.supervision import CachedSupervision

GIB = 2**30


def _printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr()).replace("\n", " ")


def test_check_estimates_the_memory_of_the_gpu(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "peak_gpu", lambda: 5 * GIB)
    assert main(["check", str(config_file)]) == 0
    assert "5.0 GiB on the GPU" in _printed(capsys)


def of_lengths(lengths: list[int]) -> list[Sample]:
    return [Sample([7] * length, [False] * length, str(n)) for n, length in enumerate(lengths)]


def lengths_of(rows: list[Sample]) -> list[int]:
    return [len(row.input_ids) for row in rows]


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(LENGTHS, st.integers(1, 9))
@settings(max_examples=40)
def test_memory_is_measured_on_the_longest_rows(lengths: list[int], size: int) -> None:
    assert lengths_of(longest_rows(of_lengths(lengths), size)) == sorted(lengths, reverse=True)[:size]


@given(LENGTHS, st.integers(1, 9))
@settings(max_examples=40)
def test_time_is_measured_on_rows_from_the_middle_of_the_lengths(lengths: list[int], size: int) -> None:
    found = typical_rows(of_lengths(lengths), size)
    assert len(found) == min(size, len(lengths)) == len({row.id for row in found})
    left = sorted(set(map(str, range(len(lengths)))) - {row.id for row in found}, key=int)
    rest = [lengths[int(n)] for n in left]
    low, high = min(lengths_of(found)), max(lengths_of(found))
    assert all(n <= low or n >= high for n in rest), "rows of like length"
    shorter, longer = sum(n < low for n in rest), sum(n > high for n in rest)
    assert shorter <= -(-len(rest) // 2) and longer <= -(-len(rest) // 2)


def test_seconds_are_counted_a_token_where_there_is_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 16.0, 20.0, 32.0])
    monkeypatch.setattr(probe.time, "perf_counter", lambda: next(times))
    costs = Costs()
    with costs.clock("load_teacher"):
        pass
    with costs.clock("train", of_lengths([2, 1]), repeats=2):
        pass
    monkeypatch.undo()
    assert costs.seconds == {"load_teacher": 6.0, "train": 2.0}


def test_the_largest_reading_is_kept_and_more_is_added_where_the_models_are() -> None:
    costs = Costs()
    for resident, more in ((50, 0), (40, 20), (30, 1)):
        costs.count(resident, None, more)
    assert costs.peak_bytes == 60 and costs.peak_gpu_bytes is None
    for resident, gpu, more in ((70, 5, 100), (10, 90, -80)):
        costs.count(resident, gpu, more)
    assert costs.peak_bytes == 70 and costs.peak_gpu_bytes == 105


@pytest.mark.parametrize(("gpu", "expected"), [(None, (93, None)), (40, (100, 33))])
def test_what_a_run_would_not_hold_is_taken_off_on_its_own_device(
    monkeypatch: pytest.MonkeyPatch, gpu: int | None, expected: tuple[int, int | None]
) -> None:
    monkeypatch.setattr(probe, "peak_rss", lambda: 100)
    monkeypatch.setattr(probe, "peak_gpu", lambda: gpu)
    costs = Costs()
    with costs.watch(spare=7):
        pass
    assert (costs.peak_bytes, costs.peak_gpu_bytes) == expected


@pytest.fixture(autouse=True)
def no_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection of garbage takes longer than a tiny training."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)


BASELINES = ("cosine", "fisher", "kl", "hidden_mse")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """What a run really stores."""
    evaluation = EvaluationConfig(baselines=BASELINES)
    return cached(tmp_path_factory.mktemp("cache"), evaluation=evaluation)


def invented(of: Prepared, recipe: Recipe) -> Any:
    inputs = of.inputs
    return probe._Invented(inputs.train, recipe, of.stores.request, inputs, inputs.student.width)


def described(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}


@pytest.mark.parametrize("name", ["aligned", "cross_entropy", *BASELINES])
def test_stand_ins_have_the_names_shapes_and_types_of_real_signals(cache: Prepared, name: str) -> None:
    recipe = method(name)
    places = [p.place for p in cache.plan.at(recipe.interface)]
    real = CachedSupervision(cache.stores.teacher, recipe, places)
    made = invented(cache, recipe)
    for numbers in ([0], [3, 1]):
        found, expected = made.signals(numbers), real.signals(numbers)
        assert described(found) == described(expected)
        if "ids" in found:
            assert int(found["ids"].max()) < cache.inputs.vocabulary
            ones = torch.ones(len(found["ids"]))
            torch.testing.assert_close(found["teacher_logp"].exp().sum(1), ones)


def test_stand_ins_of_heads_lie_at_their_places(tmp_path: Path) -> None:
    of = cached(tmp_path, plan=HEADS, recipe=RecipeConfig("aligned", interface="head", layer_weight=1.0))
    real = CachedSupervision(of.stores.teacher, of.recipe, [p.place for p in HEADS.heads])
    assert described(invented(of, of.recipe).signals([0, 2])) == described(real.signals([0, 2]))


def test_stand_ins_of_streams_have_a_row_a_token(cache: Prepared) -> None:
    made = invented(cache, cache.recipe)
    keys = cache.stores.request.prefix_keys
    assert described(made.read(2, keys)) == described(cache.stores.student.read(2, keys))


def request_shown(of: Prepared) -> Any:
    return replace(of.stores.request, teacher_output=True)


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Shown, Shown, Costs]:
    """Both models' probes for a run with a baseline, on nine rows in batches of three."""
    of = prepared(
        tmp_path_factory.mktemp("probe") / "run",
        rows=samples(9),
        evaluation=EvaluationConfig(baselines=("kl",)),
        train=full_weights(per_device_train_batch_size=2),
        attribution=AttributionConfig(rows=4, batch_size=2),
    )
    costs = Costs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gc.collect", lambda *_: 0)
        student = probe_student(of.config, of.inputs, of.plan, request_shown(of), costs)
        teacher = probe_teacher(of.config, of.inputs, request_shown(of), student, costs)
    return of, student, teacher, costs


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-4)


def test_what_is_shown_is_what_the_steps_would_store(probed: tuple[Prepared, Shown, Shown, Costs]) -> None:
    of, student, teacher, _ = probed
    request, inputs = request_shown(of), of.inputs
    untouched, theirs = inputs.load_student(), inputs.load_teacher()
    for rows, own, shown in (
        (longest_rows(inputs.train, 3), student.longest, teacher.longest),
        (typical_rows(inputs.train, 3), student.typical, teacher.typical),
    ):
        signals = student_signals(untouched, rows, request)
        assert_same(own, signals)
        head = untouched.head()
        assert_same(shown, teacher_signals(theirs, rows, request, signals, head, inputs.candidates))
    assert torch.equal(student.head.weight_VD, untouched.head().weight_VD), (
        "as before the training that was timed"
    )
    assert torch.equal(teacher.head.weight_VD, theirs.head().weight_VD)
    assert torch.equal(student.norm, untouched.norm_weight()) and torch.equal(
        teacher.norm, theirs.norm_weight()
    )


def test_every_step_is_timed_and_nothing_is_written(probed: tuple[Prepared, Shown, Shown, Costs]) -> None:
    of, _, _, costs = probed
    names = {"load_student", "cache_student", "train", "load_teacher", "attribute", "cache_teacher"}
    assert costs.seconds.keys() == names
    # The plan does not depend on scores.
    assert {name for name in names if not costs.seconds[name]} == {"attribute"}
    assert costs.peak_bytes > 0 and costs.peak_gpu_bytes is None
    assert not of.run.root.exists()


def test_the_training_of_every_recipe_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []

    def training(config: Any, inputs: Any, plan: Any, request: Any, student: Any, recipe: Recipe) -> float:
        timed.append(recipe.name)
        return 0.25

    monkeypatch.setattr(probe, "_training", training)
    of, costs = prepared(tmp_path, evaluation=EvaluationConfig(baselines=("kl", "cosine"))), Costs()
    probe_student(of.config, of.inputs, of.plan, of.stores.request, costs)
    assert timed == ["aligned", "kl", "cosine"] and costs.seconds["train"] == 0.75


def train(of: Prepared, recipe: Recipe, student: Any = None) -> float:
    student = student or of.inputs.load_student()
    return probe._training(of.config, of.inputs, of.plan, of.stores.request, student, recipe)


def test_a_student_that_stays_as_it_starts_takes_no_training(tmp_path: Path) -> None:
    of = prepared(tmp_path, recipe="laten")
    assert of.recipe.trained == "none" and train(of, of.recipe) == 0.0


@pytest.mark.parametrize(
    "recipe",
    [
        RecipeConfig("acl"),
        RecipeConfig("pissa"),
        RecipeConfig("cross_entropy_all"),
        RecipeConfig("hidden_mse"),
    ],
    ids=["stages", "lora", "every layer", "learned projectors"],
)
def test_every_kind_of_training_is_timed_and_leaves_a_plain_student(
    tmp_path: Path, recipe: RecipeConfig
) -> None:
    of = prepared(tmp_path, recipe=recipe, train=full_weights(per_device_train_batch_size=2))
    student = of.inputs.load_student()
    names = {name for name, _ in student.model.named_parameters()}
    assert train(of, resolve(recipe), student) > 0
    assert {name for name, _ in student.model.named_parameters()} == names
    assert student.num_layers == 3 and of.plan is PAIRS


@pytest.mark.parametrize(
    ("count", "fields"),
    [
        (12, {"rounds": 3}),
        (3, {}),
        (3, {"gradient_accumulation_steps": 2}),
        (12, {"report_to": "tensorboard"}),
    ],
)
def test_whatever_a_run_does_three_steps_are_timed_and_nothing_else_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, fields: dict[str, Any]
) -> None:
    of = prepared(tmp_path, train=full_weights(per_device_train_batch_size=4, save_steps=1, **fields))
    of = replace(of, inputs=replace(of.inputs, train=(of.inputs.train * 3)[:count]))
    steps: list[int] = []
    left: list[str] = []

    class Clock(probe._StepClock):
        def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            steps.append(state.global_step)
            left.extend(p.name for p in Path(args.output_dir).iterdir())
            assert args.report_to == []
            super().on_step_end(args, state, control, **kw)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            left.extend(p.name for p in Path(args.output_dir).iterdir())

    monkeypatch.setattr(probe, "_StepClock", Clock)
    assert train(of, of.recipe) > 0
    assert steps == [1, 2, 3] and left == []


def test_the_first_step_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 100.0, 103.0, 105.0])
    monkeypatch.setattr(probe.time, "perf_counter", lambda: next(times))
    clock = probe._StepClock()
    for step in (1, 2, 3):
        clock.on_step_end(None, TrainerState(global_step=step), None)
    monkeypatch.undo()
    assert clock.rest == 5.0
