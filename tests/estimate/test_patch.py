"""The patch test: targets in the untouched student's stream, against whole forward passes and known answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from in_memory import CACHE, cached, prepared
from torch.nn.functional import kl_div

from semalign.config import RecipeConfig
from semalign.data.batches import batch_inputs
from semalign.estimate.patch import (
    FEWEST,
    FITTED,
    TRIED,
    Patch,
    PatchRows,
    compared,
    is_patchable,
    patch_rows,
)
from semalign.estimate.probe import Costs
from semalign.methods import method
from semalign.signals.prepared import Prepared


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("map_name", ["ridge", "agreement_ridge"])
def test_figures_are_those_of_whole_models_with_the_target_in_place(tmp_path: Path, map_name: Any) -> None:
    # Of every token, as the patch test has it.
    cache = replace(CACHE, top_k=140)
    made: Prepared = cached(tmp_path, cache=cache, recipe=RecipeConfig("aligned", map=map_name))
    rows = PatchRows(made.inputs.train, made.inputs.train[:3])
    patch = Patch(made.config, made.inputs, made.plan, rows)
    teacher, own = made.inputs.load_teacher(), made.inputs.load_student()
    found = patch.figures(own, *patch.of_teacher(teacher))
    assert [line["pair"] for line in found] == [p.label for p in made.plan.pairs]
    before, after = [], []
    pair = made.plan.pairs[-1]
    for n, row in enumerate(rows.tried):
        ids, states = batch_inputs(own, [row])
        p_T = teacher.model(ids).logits[states].log_softmax(-1)
        before.append(
            kl_div(own.model(ids).logits[states].log_softmax(-1), p_T, reduction="batchmean", log_target=True)
        )
        # The cache holds the very targets: its maps are fitted on the same rows.
        target = made.stores.teacher.read(n)[f"positions.target.{map_name}.block.{pair.place}"].float()

        def hook(
            module: object,
            args: object,
            output: torch.Tensor,
            states: torch.Tensor = states,
            target: torch.Tensor = target,
        ) -> torch.Tensor:
            output = output.clone()
            output[states] = target
            return output

        handle = own.layers[pair.student - 1].register_forward_hook(hook)
        after.append(
            kl_div(own.model(ids).logits[states].log_softmax(-1), p_T, reduction="batchmean", log_target=True)
        )
        handle.remove()
    line = found[-1]
    assert line["kl"] == pytest.approx(float(torch.stack(before).mean()), rel=1e-3)
    assert line["patched"] == pytest.approx(float(torch.stack(after).mean()), rel=2e-2)
    assert line["change"] == pytest.approx(line["patched"] - line["kl"]) and line["rows"] == 3


def test_a_verdict_needs_an_interval_on_one_side() -> None:
    assert compared([1.0] * 8, [0.5 + 0.01 * n for n in range(8)])["verdict"] == "nearer"
    assert compared([1.0] * 8, [1.5 + 0.01 * n for n in range(8)])["verdict"] == "further"
    assert compared([1.0] * 8, [0.5, 1.5] * 4)["verdict"] == "not told apart"
    one = compared([1.0], [0.0])
    assert one["verdict"] == "not told apart", "one row says nothing"
    assert one["low"] is one["high"] is None and one["change"] == -1.0


def test_rows_are_few_where_the_teacher_is_slow_and_tried_ones_are_not_fitted_on(tmp_path: Path) -> None:
    made = prepared(tmp_path)
    fast, slow = Costs({"cache_student": 1e-9}), Costs({"cache_student": 1e3})
    for inputs in (
        made.inputs,
        replace(made.inputs, heldout=[]),
        replace(made.inputs, train=made.inputs.train * 20, heldout=[]),
    ):
        for costs in (fast, slow):
            rows = patch_rows(inputs, costs)
            assert len(rows.tried) <= TRIED and len(rows.fitted) <= FITTED
            assert costs is fast or (len(rows.tried) <= FEWEST and len(rows.fitted) <= FEWEST)
    train = replace(made.inputs, train=made.inputs.train * 20, heldout=[])
    rows = patch_rows(train, fast)
    assert len(rows.tried) == TRIED and len(rows.fitted) == min(FITTED, len(train.train) - TRIED)


@pytest.mark.parametrize(
    ("count", "parts"), [(1, (0, 1)), (2, (1, 1)), (5, (4, 1)), (9, (6, 3)), (30, (22, 8))]
)
def test_of_few_rows_two_thirds_are_fitted_on(tmp_path: Path, count: int, parts: tuple[int, int]) -> None:
    made = prepared(tmp_path)
    inputs = replace(made.inputs, train=(made.inputs.train * 9)[:count], heldout=[])
    rows = patch_rows(inputs, Costs({"cache_student": 1e3 if count == 30 else 1e-9}))
    assert (len(rows.fitted), len(rows.tried)) == (parts if count < 30 else (FEWEST, FEWEST))


def test_recipes_without_an_aligned_target_have_no_test() -> None:
    names = {
        name for name in ("aligned", "cosine", "v2", "kl", "hidden_mse", "self") if is_patchable(method(name))
    }
    assert names == {"aligned", "cosine", "v2"}
