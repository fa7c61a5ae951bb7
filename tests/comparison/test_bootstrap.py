"""results.jsonl as arrays, and draws of their averages against plain loops."""

from __future__ import annotations

from statistics import mean
from typing import Any

import numpy as np
import pytest

from semalign.comparison.bootstrap import Bootstrap, Results

from .made_up import TASKS, accuracy, kl, lines_of, select


def test_the_mean_over_drawn_seeds_has_the_variance_of_a_mean_of_seeds() -> None:
    boot = Bootstrap(Results(lines_of(seeds=5)), 20_000, 0)
    boot.mean("ours", "rows", TASKS[0], "correct", TASKS[0])
    drawn = boot.seed_weights["ours", "rows", *range(5)][1:]
    values = np.array([0.1, 0.4, 0.35, 0.7, 0.2])
    variance = (drawn @ values / drawn.sum(1)).var()
    assert variance == pytest.approx(values.var(ddof=1) / 5, rel=0.05)


def test_lines_become_arrays_of_seeds_and_items_in_the_untouched_students_order() -> None:
    lines = lines_of(items=6, rows=4)
    found = Results([*reversed(lines[1:]), lines[0]])  # in whatever order they come
    names = [x["item"] for x in select(lines, "item", method="untouched", measured="sums")]
    assert sorted(found.names("item", "sums")) == sorted(names)
    assert sorted(found.names("row", "sums")) == [0, 1, 2, 3]
    cells = [("kl", "time", "sums", s) for s in range(3)]
    for key, kind in (("correct", "item"), ("extracted", "item"), ("nll", "row"), ("tokens", "row")):
        values = found.values(key, cells, "sums")
        assert values.shape == (3, len(found.names(kind, "sums")))
        for s in range(3):
            own = select(lines, kind, method="kl", trained="sums", measured="sums", seed=s, budget="time")
            by_name = {x[kind]: x[key] for x in own}
            assert list(values[s]) == [by_name[n] for n in found.names(kind, "sums")]


def test_what_a_cell_did_not_answer_is_unknown() -> None:
    found = Results(lines_of(items=6))
    values = found.values("correct", [("ours", "rows", "letters", 0)], "sums")
    # A student answers a third of the items of another task.
    assert [n for n, v in zip(found.names("item", "sums"), values[0], strict=True) if v == v] == ["i0", "i1"]
    assert np.isnan(found.values("correct", [("nobody", "rows", "sums", 0)], "sums")).all()
    assert found.values("correct", [], "sums").shape == (0, 6)


def test_a_seed_is_whole_where_no_task_lacks_its_cell() -> None:
    def lost(line: dict[str, Any]) -> bool:
        return line["kind"] == "cell" and (line.get("method"), line.get("trained"), line.get("seed")) == (
            "ours",
            "sums",
            1,
        )

    failure = {
        "kind": "failed",
        "method": "ours",
        "trained": "sums",
        "seed": 1,
        "budget": "rows",
        "error": "no",
    }
    found = Results([*(x for x in lines_of() if not lost(x)), failure])
    assert found.seeds("ours", "rows") == [0, 2] and found.seeds("ours", "rows", "letters") == [0, 1, 2]
    assert found.seeds("ours", "time") == [] and found.failed == [failure]


def test_every_draw_takes_as_many_items_as_there_are_and_the_first_takes_each_once() -> None:
    boot = Bootstrap(Results(lines_of(items=7, rows=4)), 30, 0)
    for task in TASKS:
        for kind, count in (("item", 7), ("row", 4)):
            weights = boot.weights[kind, task]
            assert weights.shape == (31, count) and (weights[0] == 1).all()
            assert (weights.sum(1) == count).all() and len(np.unique(weights, axis=0)) > 10


def test_draw_zero_is_the_plain_mean_and_kl_counts_by_tokens() -> None:
    lines = lines_of()
    boot = Bootstrap(Results(lines), 5, 0)
    for task in TASKS:
        wanted = {"method": "kl", "trained": task, "measured": task, "budget": "rows"}
        assert boot.mean("kl", "rows", task, "correct", task)[0] == pytest.approx(accuracy(lines, **wanted))
        assert boot.mean("kl", "rows", task, "kl", task)[0] == pytest.approx(kl(lines, **wanted))
        before = boot.mean("untouched", None, None, "kl", task)
        assert before[0] == pytest.approx(kl(lines, method="untouched", measured=task))


def test_a_draw_is_the_mean_over_its_own_items_and_seeds() -> None:
    boot = Bootstrap(Results(lines_of(items=9)), 4, 3)
    found = boot.mean("ours", "rows", "sums", "correct", "sums")
    values = boot.results.values("correct", [("ours", "rows", "sums", s) for s in range(3)], "sums")
    items, seeds = boot.weights["item", "sums"], boot.seed_weights["ours", "rows", 0, 1, 2]
    for draw in range(5):
        drawn = [
            values[s][n]
            for s in range(3)
            for n in range(9)
            for _ in range(int(seeds[draw][s] * items[draw][n]))
        ]
        assert found[draw] == pytest.approx(mean(drawn))


def test_means_of_different_methods_come_from_the_same_items() -> None:
    lines = lines_of(items=20)
    twins = [x | {"method": "bad"} for x in lines if x.get("method") == "ours" and x["kind"] != "comparison"]
    boot = Bootstrap(Results([x for x in lines if x.get("method") != "bad"] + twins), 50, 0)
    same = [boot.mean(m, "rows", "sums", "correct", "sums", seeds=[0]) for m in ("ours", "bad")]
    assert (same[0] == same[1]).all() and len(np.unique(same[0])) > 5


def test_a_subset_and_chosen_seeds_leave_the_rest_out() -> None:
    lines = lines_of(items=9)
    boot = Bootstrap(Results(lines), 5, 0)
    subset = boot.answered("ours", "rows", "letters", "sums")
    names = [n for n, kept in zip(boot.results.names("item", "sums"), subset, strict=True) if kept]
    assert names == ["i0", "i1", "i2"]
    of_few = boot.mean("untouched", None, None, "correct", "sums", subset=subset)[0]
    own = select(lines, "item", method="untouched", measured="sums")
    assert of_few == pytest.approx(mean(x["correct"] for x in own if x["item"] in names))
    second = boot.mean("ours", "rows", "sums", "correct", "sums", seeds=[1])[0]
    wanted = {"method": "ours", "trained": "sums", "measured": "sums", "budget": "rows", "seed": 1}
    assert second == pytest.approx(accuracy(lines, **wanted))


def test_where_nothing_was_measured_there_is_no_mean() -> None:
    boot = Bootstrap(Results([x for x in lines_of() if x["kind"] != "item"]), 5, 0)
    assert np.isnan(boot.mean("ours", "rows", "sums", "correct", "sums")).all()
    assert np.isnan(boot.mean("nobody", "rows", "sums", "kl", "sums")).all()
    assert boot.answered("ours", "rows", "letters", "sums").shape == (0,)
