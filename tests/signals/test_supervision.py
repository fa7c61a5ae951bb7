"""One batch's signals, whoever gives them: from shards, from another row's shards, or from a live teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from in_memory import HEADS, cached
from tiny import full_weights

from semalign.config import EvaluationConfig, RecipeConfig
from semalign.data.inputs import Inputs
from semalign.errors import ConfigError
from semalign.methods import method, resolve
from semalign.methods.loss import TEACHER_OUTPUT, TOPK
from semalign.methods.recipe import Recipe
from semalign.run.files import Record
from semalign.signals.maps import Maps
from semalign.signals.prepared import Prepared
from semalign.signals.request import target_name
from semalign.signals.supervision import (
    CachedSupervision,
    LiveSupervision,
    ShuffledSupervision,
    cached_supervision,
    supervision_of,
)

NAMES = ("aligned", "cosine", "hidden_mse", "kl", "cross_entropy")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A cache with the signals of several methods."""
    evaluation = EvaluationConfig(baselines=(*NAMES[1:], "shuffled"))
    return cached(tmp_path_factory.mktemp("cached"), evaluation=evaluation)


def test_shuffled_signals_come_from_other_rows_and_fit_the_own_positions(
    prepared: Prepared,
) -> None:
    inputs, store = prepared.inputs, prepared.stores.teacher
    counts = [s.supervised for s in inputs.train]
    supervision = ShuffledSupervision(store, method("shuffled"), ["2"], counts)
    assert sorted(supervision.other) == sorted(supervision.other.values()) == list(range(len(counts)))
    assert all(own != other for own, other in supervision.other.items())
    for sample in range(len(counts)):
        found = supervision.signals([sample])
        other = store.read(supervision.other[sample], ["positions.ids"])["positions.ids"]
        assert len(found["ids"]) == counts[sample]
        assert torch.equal(found["ids"][: len(other)], other[: counts[sample]])


def of_cache(prepared: Prepared, recipe: Recipe) -> CachedSupervision:
    return CachedSupervision(prepared.stores.teacher, recipe, [p.place for p in prepared.plan.pairs])


def live(prepared: Prepared, recipe: Recipe) -> LiveSupervision:
    inputs = prepared.inputs
    teacher, student = inputs.load_teacher(), inputs.load_student()
    student.model.requires_grad_(False)
    maps = Maps.read(prepared.run.targets / "maps.safetensors")
    return LiveSupervision(teacher, student, inputs.train, prepared.stores.request, recipe=recipe, maps=maps)


def assert_near(ours: Record, expected: Record) -> None:
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_has_a_row_for_every_supervised_position(prepared: Prepared, name: str) -> None:
    recipe, numbers = method(name), [4, 0]
    found = of_cache(prepared, recipe).signals(numbers)
    count = sum(prepared.inputs.train[n].supervised for n in numbers)
    wide = {"target": 48 if recipe.map == "none" else 32}
    shapes = dict.fromkeys(TOPK, (count, 17)) | {"rest": (count, 3), "teacher_output": (count, 48)}
    assert {key: tuple(tensor.shape) for key, tensor in found.items()} == {
        **{key: shapes[key] for key in recipe.reads},
        **({f"target.{k}": (count, wide["target"]) for k in "23"} if recipe.layer is not None else {}),
    }


def test_samples_come_one_after_another_in_the_order_that_is_asked_for(prepared: Prepared) -> None:
    supervision = of_cache(prepared, method("aligned"))
    alone = {n: supervision.signals([n]) for n in (5, 2)}
    together = supervision.signals([5, 2])
    for key, value in together.items():
        assert torch.equal(value, torch.cat([alone[5][key], alone[2][key]]))


def test_names_in_a_batch_are_those_of_the_records(prepared: Prepared) -> None:
    record = prepared.stores.teacher.read(3)
    found = of_cache(prepared, method("cosine")).signals([3])
    assert torch.equal(found["target.2"], record[target_name("semantic", "mlp", "2")])
    found = of_cache(prepared, method("aligned")).signals([3])
    assert torch.equal(found["target.3"], record[target_name("ridge", "block", "3")])
    assert torch.equal(found["ids"], record["positions.ids"])


def test_a_control_without_a_teacher_reads_no_shard(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared.stores.teacher, "read", lambda *_: pytest.fail("a shard was read"))
    assert of_cache(prepared, method("cross_entropy")).signals([0, 1]) == {}


@pytest.mark.parametrize("name", NAMES[:4])
def test_a_live_teacher_gives_what_the_cache_holds(prepared: Prepared, name: str) -> None:
    recipe, numbers = method(name), [1, 4, 2]
    assert_near(live(prepared, recipe).signals(numbers), of_cache(prepared, recipe).signals(numbers))


def test_a_live_teacher_gives_the_targets_of_heads_too(tmp_path: Path) -> None:
    prepared = cached(
        tmp_path, plan=HEADS, recipe=RecipeConfig("aligned", interface="head", layer_weight=1.0)
    )
    places = [p.place for p in HEADS.heads]
    stored = CachedSupervision(prepared.stores.teacher, prepared.recipe, places).signals([0, 3])
    assert {"target.2h1", "target.3h3"} <= stored.keys()
    assert_near(live(prepared, prepared.recipe).signals([0, 3]), stored)


@pytest.mark.parametrize("recipe", ["aligned_output", "kl", "self"])
def test_a_live_teacher_gives_a_recipe_alone_in_its_run_what_the_cache_holds(
    tmp_path: Path, recipe: str
) -> None:
    # Nothing is captured for another recipe's layers.
    prepared = cached(tmp_path, recipe=recipe)
    supervision = supervision_of(with_live_teacher(prepared), prepared.recipe)
    assert isinstance(supervision, LiveSupervision)
    assert_near(supervision.signals([1, 4]), cached_supervision(prepared, prepared.recipe).signals([1, 4]))


def test_a_recipe_that_reads_nothing_runs_no_model_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = cached(tmp_path, recipe="cross_entropy")
    assert live(prepared, prepared.recipe).signals([0, 1]) == {}
    monkeypatch.setattr(Inputs, "load_teacher", lambda _: pytest.fail("the teacher was loaded"))
    assert supervision_of(with_live_teacher(prepared), prepared.recipe).signals([0, 1]) == {}


def test_a_live_student_that_is_trained_is_refused(prepared: Prepared) -> None:
    inputs = prepared.inputs
    student = inputs.load_student()
    student.model.requires_grad_(False)
    student.layers[2].requires_grad_(True)
    with pytest.raises(
        ConfigError, match="expected an untouched copy of the student, got one with trainable"
    ):
        LiveSupervision(
            student,
            student,
            inputs.train,
            prepared.stores.request,
            recipe=prepared.recipe,
            maps=Maps({}),
        )


def test_shuffled_signals_are_repeated_where_the_other_row_is_shorter(prepared: Prepared) -> None:
    counts = [sample.supervised for sample in prepared.inputs.train]
    supervision = ShuffledSupervision(prepared.stores.teacher, method("shuffled"), ["2", "3"], counts)
    plain = of_cache(prepared, method("shuffled"))
    lengths = {n: (counts[n], counts[other]) for n, other in supervision.other.items()}
    assert any(own > other for own, other in lengths.values()), "some row is longer than the other one"
    for n, (own, other) in lengths.items():
        found, theirs = supervision.signals([n]), plain.signals([supervision.other[n]])
        for key, value in theirs.items():
            expected = torch.stack([value[row % other] for row in range(own)])
            assert torch.equal(found[key], expected)


def test_a_row_alone_keeps_its_own_signals_for_there_is_no_other(prepared: Prepared) -> None:
    counts = [prepared.inputs.train[0].supervised]
    shuffled = ShuffledSupervision(prepared.stores.teacher, method("shuffled"), ["2"], counts)
    plain = CachedSupervision(prepared.stores.teacher, method("shuffled"), ["2"])
    assert torch.equal(shuffled.signals([0])["target.2"], plain.signals([0])["target.2"])


def with_live_teacher(prepared: Prepared) -> Prepared:
    train = full_weights(cache_prefix=False, live_teacher=True)
    return replace(prepared, config=replace(prepared.config, train=train))


def test_the_config_and_the_recipe_say_where_signals_come_from(prepared: Prepared) -> None:
    aligned, shuffled = method("aligned"), method("shuffled")
    assert type(supervision_of(prepared, aligned)) is CachedSupervision
    assert type(cached_supervision(prepared, shuffled)) is ShuffledSupervision
    asked = with_live_teacher(prepared)
    assert type(supervision_of(asked, aligned)) is LiveSupervision
    assert type(supervision_of(asked, shuffled)) is ShuffledSupervision, (
        "other rows' signals are in the cache"
    )


def test_a_live_teacher_stands_beside_a_student_without_gradients(prepared: Prepared) -> None:
    supervision = supervision_of(with_live_teacher(prepared), method("kl"))
    assert isinstance(supervision, LiveSupervision)
    assert not any(p.requires_grad for p in supervision.student.model.parameters())
    found = supervision.signals([0])
    assert found.keys() == set(TEACHER_OUTPUT) and not found["teacher_output"].requires_grad


def test_shuffled_signals_are_those_of_whatever_recipe_says_so(prepared: Prepared) -> None:
    recipe = resolve(RecipeConfig(signals="shuffled"))
    assert type(cached_supervision(prepared, recipe)) is ShuffledSupervision
