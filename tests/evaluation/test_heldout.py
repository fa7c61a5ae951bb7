"""Figures on held-out rows, against whole models and their full logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from in_memory import HEADS, PAIRS, cached
from tiny import tiny_model
from torch import Tensor
from torch.nn.functional import cosine_similarity, kl_div

from semalign.config import EvaluationConfig, RecipeConfig
from semalign.data import Sample
from semalign.evaluation.heldout import heldout_batches, heldout_figures
from semalign.methods import method
from semalign.models.capture import Point
from semalign.models.decoder import Decoder
from semalign.run.files import read_tensors
from semalign.signals.prepared import Prepared


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A cache with targets at two interfaces and the teacher's streams on the first two held-out rows."""
    evaluation = EvaluationConfig(baselines=("cosine",), cka_rows=2)
    return cached(tmp_path_factory.mktemp("cached"), evaluation=evaluation)


@pytest.fixture(scope="module")
def student() -> Decoder:
    """Another student than the one that was cached, as a trained one is."""
    return Decoder(tiny_model("llama", layers=3, wide=False, seed=5), None)


@torch.no_grad()
def whole(decoder: Decoder, sample: Sample) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Logits and labels at the supervised positions of a row by itself, and its streams there after layers 0, 1, ..."""
    states = torch.tensor([*sample.mask[1:], False])
    found = decoder.model(torch.tensor([sample.input_ids]), output_hidden_states=True)
    labels = torch.tensor(sample.input_ids)[torch.tensor(sample.mask)]
    return found.logits[0, states].double(), labels, [hidden[0, states] for hidden in found.hidden_states]


def test_closeness_is_that_of_the_models_full_logits(prepared: Prepared, student: Decoder) -> None:
    teacher, terms, agree, nll = prepared.inputs.load_teacher(), [], [], {"student": [], "teacher": []}
    for sample in prepared.inputs.heldout:
        (z_T, labels, _), (z_S, _, _) = whole(teacher, sample), whole(student, sample)
        p_T, p_S = z_T.log_softmax(-1), z_S.log_softmax(-1)
        terms.append(kl_div(p_S, p_T, reduction="none", log_target=True).sum(1))
        agree.append((z_T.argmax(-1) == z_S.argmax(-1)).double())
        for name, logp in (("student", p_S), ("teacher", p_T)):
            nll[name].append(-logp.gather(1, labels[:, None])[:, 0])
    found = heldout_figures(student, prepared, "after")
    mean = {name: float(torch.cat(parts).mean()) for name, parts in nll.items()}
    assert found["closeness"]["kl"] == pytest.approx(float(torch.cat(terms).mean()), rel=1e-4)
    assert found["closeness"]["top1_agreement"] == pytest.approx(float(torch.cat(agree).mean()))
    assert found["closeness"]["nll"] == pytest.approx(mean["student"], rel=1e-4)
    assert found["teacher_nll"] == pytest.approx(mean["teacher"], rel=1e-4)
    assert found["tokens"] == sum(s.supervised for s in prepared.inputs.heldout)


def test_alignment_is_the_mean_cosine_to_the_stored_targets(prepared: Prepared, student: Decoder) -> None:
    found = heldout_figures(student, prepared, "after")["alignment"]
    assert set(found) == {"2", "3"}
    own = [whole(student, sample)[2][2] for sample in prepared.inputs.heldout]
    read = prepared.stores.heldout.read
    target = [read(n)["positions.target.ridge.block.2"] for n in range(len(own))]
    expected = cosine_similarity(torch.cat(own), torch.cat(target), dim=1).mean()
    assert found["2"] == pytest.approx(float(expected), rel=1e-4)


def cka(x: Tensor, y: Tensor) -> float:
    """From the columns' covariances, as the paper defines it."""
    x, y = (z.double() - z.double().mean(0) for z in (x, y))
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def test_the_heat_map_has_a_row_a_teacher_layer_and_a_column_a_student_layer(
    prepared: Prepared, student: Decoder
) -> None:
    found = heldout_figures(student, prepared, "after")["cka"]
    assert [len(row) for row in found] == [3] * 5
    teacher, rows = prepared.inputs.load_teacher(), prepared.inputs.heldout[:2]
    for t, s in ((1, 1), (4, 2), (2, 1)):
        streams = [torch.cat([whole(m, row)[2][k] for row in rows]) for m, k in ((teacher, t), (student, s))]
        assert found[t - 1][s - 1] == pytest.approx(cka(*streams), abs=1e-4)


@pytest.mark.parametrize("name", ["before", "after"])
def test_only_the_runs_own_student_has_a_heat_map(prepared: Prepared, student: Decoder, name: str) -> None:
    assert heldout_figures(student, prepared, name)["cka"] is not None
    assert heldout_figures(student, prepared, "cosine")["cka"] is None
    none = replace(prepared, config=replace(prepared.config, evaluation=EvaluationConfig(cka_rows=0)))
    assert heldout_figures(student, none, name)["cka"] is None


def test_a_cache_of_another_number_of_rows_is_compared_on_those_that_both_have(
    prepared: Prepared, student: Decoder
) -> None:
    more = replace(prepared, config=replace(prepared.config, evaluation=EvaluationConfig(cka_rows=3)))
    assert (
        heldout_figures(student, more, "after")["cka"] == heldout_figures(student, prepared, "after")["cka"]
    )


def test_a_cache_without_the_teachers_streams_gives_no_heat_map(student: Decoder, tmp_path: Path) -> None:
    made = cached(tmp_path, evaluation=EvaluationConfig(cka_rows=0), recipe="kl")
    asked = replace(made, config=replace(made.config, evaluation=EvaluationConfig(cka_rows=2)))
    assert heldout_figures(student, asked, "before")["cka"] is None


@pytest.mark.parametrize("recipe", ["kl", "hidden_mse"])
def test_without_a_target_in_the_students_space_there_is_no_alignment(
    student: Decoder, tmp_path: Path, recipe: str
) -> None:
    made = cached(tmp_path, recipe=recipe)
    assert heldout_figures(student, made, "after")["alignment"] == {}


def test_heads_are_aligned_by_their_own_places(student: Decoder, tmp_path: Path) -> None:
    made = cached(tmp_path, plan=HEADS, recipe=RecipeConfig("aligned", interface="head", layer_weight=1.0))
    found = heldout_figures(student, made, "after")["alignment"]
    assert set(found) == {"2h1", "3h3"} and all(-1 <= value <= 1 for value in found.values())


def test_a_student_that_is_the_teacher_is_at_no_distance(tmp_path: Path) -> None:
    made = cached(tmp_path, recipe="kl")
    found = heldout_figures(made.inputs.load_teacher(), made, "after")
    assert found["closeness"]["kl"] == pytest.approx(0, abs=1e-5)
    assert found["closeness"]["top1_agreement"] == 1
    assert found["closeness"]["nll"] == pytest.approx(found["teacher_nll"], rel=1e-5)


def batches(prepared: Prepared, student: Decoder, **options: Any) -> list[Any]:
    return list(heldout_batches(student, prepared, "test", **options))


def test_every_row_comes_once_beside_others_of_its_length(prepared: Prepared, student: Decoder) -> None:
    found = [numbers for numbers, *_ in batches(prepared, student)]
    lengths = [len(s.input_ids) for s in prepared.inputs.heldout]
    order = [n for numbers in found for n in numbers]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[n] for n in order] == sorted(lengths, reverse=True)


def test_chosen_rows_come_alone_in_the_order_of_their_choice(prepared: Prepared, student: Decoder) -> None:
    found = batches(prepared, student, rows=[2, 0])
    assert [numbers for numbers, *_ in found] == [[2], [0]]
    for (number,), (stored,), figures, _ in found:
        count = prepared.inputs.heldout[number].supervised
        assert {len(values) for values in figures.values()} == {count}
        expected = prepared.stores.heldout.read(number)
        assert all(torch.equal(stored[key], value) for key, value in expected.items())


def test_figures_of_a_token_do_not_depend_on_the_batch(prepared: Prepared, student: Decoder) -> None:
    alone = {n: figures for (n,), _, figures, _ in batches(prepared, student, rows=range(3))}
    for numbers, _, figures, _ in batches(prepared, student):
        for key, values in figures.items():
            together = torch.cat([alone[n][key] for n in numbers])
            torch.testing.assert_close(values, together, rtol=1e-4, atol=1e-5)


def test_captured_states_are_those_at_the_supervised_positions(prepared: Prepared, student: Decoder) -> None:
    point = Point(1, "block")
    for (number,), _, _, found in batches(prepared, student, points=[point], rows=[0, 1]):
        expected = whole(student, prepared.inputs.heldout[number])[2][1]
        torch.testing.assert_close(found[point], expected, rtol=1e-4, atol=1e-5)


def test_the_default_recipe_and_a_baseline_are_aligned_at_their_own_interfaces(
    prepared: Prepared, student: Decoder
) -> None:
    cosine = replace(prepared, recipes={None: method("cosine")})
    ours, theirs = (heldout_figures(student, p, "x")["alignment"] for p in (prepared, cosine))
    assert ours.keys() == theirs.keys() == {p.place for p in PAIRS.pairs} and ours != theirs
    assert "positions.target.semantic.mlp.2" in prepared.stores.heldout.read(0)
    assert "semantic" in read_tensors(prepared.run.targets / "maps.safetensors")
