"""Figures against plain loops over the same lines, and intervals against what is known of them."""

from __future__ import annotations

import json
import random
import runpy
import sys
from pathlib import Path
from statistics import mean
from types import FrameType

import numpy as np
import pytest

from semalign.comparison.figures import figures
from semalign.comparison.page import view
from semalign.comparison.table import table
from semalign.report.build import render

from .made_up import ACCURACY, TASKS, accuracy, kl, lines_of, select


@pytest.mark.parametrize("budget", ["rows", "time"])
def test_every_figure_equals_a_plain_loop_over_the_lines(budget: str) -> None:
    lines = lines_of()
    found = figures(json.loads(json.dumps(lines)), draws=50)
    entry = next(m for m in found["methods"] if m["method"] == "kl")
    entry = entry if budget == "rows" else entry["equal_time"]
    shares, kl_shares, changes, elsewhere, failures = [], [], [], [], []
    for t in TASKS:
        before, top = (accuracy(lines, method=m, measured=t) for m in ("untouched", "teacher"))
        after = accuracy(lines, method="kl", trained=t, measured=t, budget=budget)
        shares.append((after - before) / (top - before))
        kl_shares.append(
            1
            - kl(lines, method="kl", trained=t, measured=t, budget=budget)
            / kl(lines, method="untouched", measured=t)
        )
        own = select(lines, "item", method="kl", trained=t, measured=t, budget=budget)
        failures.append(mean(1 - x["extracted"] for x in own))
        assert entry["tasks"][t]["accuracy"] == pytest.approx(after, abs=1e-6)
        assert entry["tasks"][t]["accuracy_change"][t] == pytest.approx(100 * (after - before), abs=1e-5)
        for other in TASKS:
            if other != t:
                few = {f"i{n}" for n in range(20)}
                untouched = [
                    x for x in select(lines, "item", method="untouched", measured=other) if x["item"] in few
                ]
                there = accuracy(lines, method="kl", trained=t, measured=other, budget=budget)
                changes.append(100 * (there - mean(x["correct"] for x in untouched)))
                assert entry["tasks"][t]["accuracy_change"][other] == pytest.approx(changes[-1], abs=1e-5)
                moved = kl(lines, method="kl", trained=t, measured=other, budget=budget)
                elsewhere.append(1 - moved / kl(lines, method="untouched", measured=other))
    assert entry["kl_gap_closed_elsewhere"] == pytest.approx(mean(elsewhere), abs=1e-6)
    assert entry["accuracy_gap_closed"] == pytest.approx(mean(shares), abs=1e-6)
    assert entry["kl_gap_closed"] == pytest.approx(mean(kl_shares), abs=1e-6)
    assert entry["retention"] == pytest.approx(mean(changes), abs=1e-6)
    assert entry["extraction_failures"] == pytest.approx(mean(failures), abs=1e-6)
    assert entry["cut_off"] == pytest.approx(0.25), "of the made-up items every fourth has not ended"
    assert (entry["wall_seconds"], entry["rows"], entry["steps"], entry["seeds"]) == (4.0, 5, 7, 3)
    ours = next(m for m in found["methods"] if m["default"])
    for key in ("gain", "accuracy_gap_closed", "kl_gap_closed", "retention", "kl_gap_closed_elsewhere"):
        assert entry[f"{key}_minus_default"] == pytest.approx(entry[key] - ours[key], abs=2e-6)


def test_intervals_agree_with_a_bootstrap_written_as_loops() -> None:
    lines = lines_of(items=20, rows=8)
    dice, drawn = random.Random(1), []
    right = {
        (m, t, s): {x["item"]: x["correct"] for x in select(lines, "item", method=m, measured=t, trained=tr, seed=s)
                    if x.get("budget") in (None, "rows")}
        for t in TASKS
        for m, tr, s in [("untouched", None, None), ("teacher", None, None), *(("ours", t, s) for s in range(3))]
    }  # fmt: skip
    for _ in range(3000):
        seeds = [dice.randrange(3) for _ in range(2)]
        shares = []
        for t in TASKS:
            items = [f"i{dice.randrange(20)}" for _ in range(20)]
            before, top = (mean(right[m, t, None][i] for i in items) for m in ("untouched", "teacher"))
            after = mean(right["ours", t, s][i] for i in items for s in seeds)
            shares.append((after - before) / (top - before))
        drawn.append(mean(shares))
    expected = np.quantile(drawn, (0.025, 0.975))
    entry = next(m for m in figures(lines, draws=4000)["methods"] if m["default"])
    assert entry["accuracy_gap_closed_interval"] == pytest.approx(list(expected), abs=0.03)


def test_the_same_students_under_another_label_differ_by_less_than_two_separate_draws_would() -> None:
    lines = lines_of(seeds=1)
    twin = [x | {"method": "bad"} for x in lines if x.get("method") == "ours"]
    lines = [x for x in lines if x.get("method") != "bad"] + twin
    bad = next(m for m in figures(lines)["methods"] if m["method"] == "bad")
    # With one seed only items are drawn, the same ones for both.
    assert bad["accuracy_gap_closed_minus_default_interval"] == [0.0, 0.0]
    assert bad["kl_gap_closed_minus_default_interval"] == [0.0, 0.0]
    assert bad["accuracy_gap_closed_interval"][0] < bad["accuracy_gap_closed_interval"][1]


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    truth = (ACCURACY["ours"] - ACCURACY["untouched"]) / (ACCURACY["teacher"] - ACCURACY["untouched"])
    hits = []
    for luck in range(60):
        entry = figures(lines_of(items=40, rows=2, luck=luck), draws=300)["methods"][0]
        low, high = entry["accuracy_gap_closed_interval"]
        hits.append(low <= truth <= high)
    assert 0.85 <= mean(hits) <= 1.0


def test_an_unfinished_seed_counts_for_its_tasks_alone_and_a_method_without_cells_has_no_figures() -> None:
    lines = lines_of()
    cut = [
        x
        for x in lines
        if not (x.get("method") == "kl" and x.get("trained") == "sums" and x.get("seed") == 1)
    ]
    cut = [x for x in cut if x.get("method") != "bad"]
    cut.append(
        {"kind": "failed", "method": "bad", "trained": "sums", "seed": 0, "budget": "rows", "error": "no"}
    )
    found = figures(cut, draws=50)
    by_name = {m["method"]: m for m in found["methods"]}
    kept = [x for x in lines if x.get("method") != "kl" or x.get("seed") != 1]
    other = {m["method"]: m for m in figures(kept, draws=50)["methods"]}
    assert by_name["kl"]["seeds"] == 2
    assert by_name["kl"]["accuracy_gap_closed"] == other["kl"]["accuracy_gap_closed"]
    whole = next(m for m in figures(lines, draws=50)["methods"] if m["method"] == "kl")["tasks"]
    tasks, two = by_name["kl"]["tasks"], other["kl"]["tasks"]
    assert (tasks["letters"]["seeds"], tasks["sums"]["seeds"]) == (3, 2)
    assert tasks["letters"]["accuracy_change"] == whole["letters"]["accuracy_change"]
    assert tasks["sums"]["accuracy_change"] == two["sums"]["accuracy_change"]
    assert by_name["bad"]["accuracy_gap_closed"] is None and by_name["bad"]["seeds"] == 0
    assert found["failed"] == [
        {"method": "bad", "trained": "sums", "seed": 0, "budget": "rows", "error": "no"}
    ]
    assert "no" in render(view(found, "x", ""))
    json.dumps(found, allow_nan=False)


def test_a_task_that_is_only_measured_is_elsewhere_for_every_student() -> None:
    lines = [x for x in lines_of() if x.get("trained") != "sums"]
    lines[0] |= {"measured_only": ["sums"]}
    found = figures(lines, draws=50)
    ours = next(m for m in found["methods"] if m["method"] == "ours")
    assert found["trained"] == ["letters"] and list(ours["tasks"]) == ["letters"] and ours["seeds"] == 3
    assert ours["accuracy_gap_closed"] == ours["tasks"]["letters"]["accuracy_gap_closed"]
    assert ours["retention"] == ours["tasks"]["letters"]["accuracy_change"]["sums"]
    assert ours["gain"] == ours["tasks"]["letters"]["accuracy_change"]["letters"]
    answered = {x["item"] for x in select(lines, "item", method="ours", measured="sums")}
    assert len(answered) == 20
    after = accuracy(lines, method="ours", measured="sums")
    same = [x for x in select(lines, "item", method="untouched", measured="sums") if x["item"] in answered]
    assert ours["retention"] == pytest.approx(100 * (after - mean(x["correct"] for x in same)), abs=1e-5)
    assert "letters; 3 seeds" in str(table(found).title)
    page = render(view(found, "x", ""))
    assert "averaged over 1 task and 3 seeds" in page and "Task letters" in page and "Task sums" not in page


def test_without_items_or_without_rows_the_rest_stands() -> None:
    lines = lines_of()
    without = figures([x for x in lines if x["kind"] != "item"], draws=50)
    assert all(
        m["accuracy_gap_closed"] is None and m["kl_gap_closed"] is not None for m in without["methods"]
    )
    none = figures([x for x in lines if x["kind"] != "row"], draws=50)
    assert all(m["accuracy_gap_closed"] is not None and m["kl_gap_closed"] is None for m in none["methods"])
    for found in (without, none):
        assert "<html" in render(view(found, "x", ""))
        assert table(found).row_count >= 3


def test_thousands_of_draws_take_as_many_calls_as_a_few() -> None:
    lines = lines_of()

    def calls(draws: int) -> int:
        """Function calls from Python; a loop over the draws, or a pass over the lines for each, would add some per draw."""
        count = 0

        def counted(frame: FrameType, event: str, argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(counted)
        try:
            figures(lines, draws=draws)
        finally:
            sys.setprofile(before)
        return count

    calls(2)  # what is done once in a process
    assert calls(4000) <= calls(40) + 400, "not one in ten draws adds one"


def test_the_default_stands_at_equal_time_only_beside_others() -> None:
    lines = lines_of()
    lines[0]["equal_time"] = []
    assert [m["equal_time"] for m in figures(lines, draws=20)["methods"]] == [None] * 3


def test_the_script_writes_the_same_figures_as_a_markdown_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = figures(lines_of(), draws=50)
    (tmp_path / "figures.json").write_text(json.dumps(found))
    script = Path(__file__).parents[2] / "scripts" / "comparison_table.py"
    told = tmp_path / "answers.json"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "figures.json"), "--answers", str(told)])
    runpy.run_path(str(script), run_name="__main__")
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head.count("Equal time") == 2 and len(lines) == 4
    ours = next(m for m in found["methods"] if m["default"])
    assert lines[0].startswith(f"| **ours** (default) | {ours['gain']:+.1f} [")
    assert all(line.count("|") == head.count("|") for line in lines)
    rows = json.loads(told.read_text())["rows"]
    assert len(rows) == 3 * len(TASKS)
    row = next(r for r in rows if r["method"] == "kl" and r["task"] == TASKS[1])
    entry = next(m for m in found["methods"] if m["method"] == "kl")["tasks"][TASKS[1]]
    assert (row["default"], row["items"], row["seeds"]) == (False, entry["items"], entry["seeds"])
    assert row["items"] == len(select(lines_of(), "item", method="untouched", measured=TASKS[1]))
    assert row["accuracy"] == pytest.approx(100 * entry["accuracy"], abs=0.01)
    assert row["change"] == round(entry["accuracy_change"][TASKS[1]], 2)
    assert [row["low"], row["high"]] == [round(v, 2) for v in entry["accuracy_change_interval"][TASKS[1]]]
    others = [v for t, v in entry["accuracy_change"].items() if t != TASKS[1]]
    assert row["elsewhere"] == pytest.approx(mean(others), abs=0.01)


def test_a_gap_that_may_be_chance_is_no_measure_of_shares() -> None:
    lines = json.loads(json.dumps(lines_of()))
    few = TASKS[0]
    # The teacher is right once where the untouched student is not, on one task.
    untouched = {x["item"]: x["correct"] for x in select(lines, "item", method="untouched", measured=few)}
    once = next(name for name, correct in untouched.items() if not correct)
    for line in select(lines, "item", method="teacher", measured=few):
        line["correct"] = 1 if line["item"] == once else untouched[line["item"]]
    entry = next(m for m in figures(lines, draws=200)["methods"] if m["method"] == "kl")
    assert entry["tasks"][few]["accuracy_gap_closed"] is None and entry["tasks"][few]["accuracy"] is not None
    others = [entry["tasks"][task]["accuracy_gap_closed"] for task in TASKS[1:]]
    assert entry["accuracy_gap_closed"] == pytest.approx(mean(others), abs=1e-5)
