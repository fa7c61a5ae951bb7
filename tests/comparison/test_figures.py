"""Figures against plain loops over the same lines, and intervals against what is known of them."""

from __future__ import annotations

import json
import random
import runpy
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest

from semalign.comparison.bootstrap import Bootstrap, Results
from semalign.comparison.figures import figures
from semalign.comparison.page import view
from semalign.comparison.table import table
from semalign.report.build import render

TASKS = ("letters", "sums")
ACCURACY = {"teacher": 0.95, "untouched": 0.3, "ours": 0.8, "kl": 0.7, "bad": 0.25}
KL = {"teacher": 0.0, "untouched": 0.8, "ours": 0.1, "kl": 0.2, "bad": 0.9}


def lines_of(*, seeds: int = 3, items: int = 60, rows: int = 25, luck: int = 0) -> list[dict[str, Any]]:
    """Results of a made-up comparison: independent draws around known accuracies."""
    dice = random.Random(luck)
    methods = ["ours", "kl", "bad"]
    found: list[dict[str, Any]] = [
        {"kind": "comparison", "default": "ours", "methods": methods, "tasks": list(TASKS), "seeds": seeds}
        | {"equal_time": ["kl"], "teacher": "big", "student": "small"}
    ]
    cells: list[dict[str, Any]] = [{"method": m} for m in ("untouched", "teacher")]
    cells += [
        {"method": m, "trained": t, "seed": s, "budget": b}
        for m in methods
        for t in TASKS
        for s in range(seeds)
        for b in (("rows", "time") if m == "kl" else ("rows",))
    ]
    for cell in cells:
        costs = {
            "wall_seconds": 2.0 + len(cell["method"]),
            "train_seconds": 1.0,
            "rows": 5,
            "steps": 7,
            "peak_rss_bytes": 9,
            "budget_seconds": 3.0 if cell.get("budget") == "time" else None,
        }
        found.append({"kind": "cell", **cell, **(costs if "seed" in cell else {})})
        for measured in TASKS:
            is_own = cell.get("trained") in (None, measured)
            share = ACCURACY[cell["method"]] if is_own else 0.28
            for n in range(items if is_own else items // 3):
                right = int(dice.random() < share)
                found.append(
                    {"kind": "item", **cell, "measured": measured, "item": f"i{n}"}
                    | {"correct": right, "extracted": int(right or dice.random() < 0.9)}
                )
            for n in range(rows):
                kl = (KL[cell["method"]] if is_own else 0.85) * (0.5 + dice.random())
                found.append(
                    {"kind": "row", **cell, "measured": measured, "row": n, "tokens": 3 + n % 5}
                    | {"kl": kl, "top1": 1 - kl / 4, "nll": kl + 0.1}
                )
    return found


def select(lines: list[dict[str, Any]], kind: str, **wanted: Any) -> list[dict[str, Any]]:
    return [x for x in lines if x["kind"] == kind and all(x.get(k) == v for k, v in wanted.items())]


def accuracy(lines: list[dict[str, Any]], **wanted: Any) -> float:
    return mean(x["correct"] for x in select(lines, "item", **wanted))


def kl(lines: list[dict[str, Any]], **wanted: Any) -> float:
    rows = select(lines, "row", **wanted)
    return sum(x["kl"] * x["tokens"] for x in rows) / sum(x["tokens"] for x in rows)


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
    assert (entry["wall_seconds"], entry["rows"], entry["steps"], entry["seeds"]) == (4.0, 5, 7, 3)
    ours = next(m for m in found["methods"] if m["default"])
    for key in ("accuracy_gap_closed", "kl_gap_closed", "retention", "kl_gap_closed_elsewhere"):
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


def test_the_mean_over_drawn_seeds_has_the_variance_of_a_mean_of_seeds() -> None:
    boot = Bootstrap(Results(lines_of(seeds=5)), 20_000, 0)
    boot.mean("ours", "rows", TASKS[0], "correct", TASKS[0])
    drawn = boot.seed_weights["ours", "rows", *range(5)][1:]
    values = np.array([0.1, 0.4, 0.35, 0.7, 0.2])
    variance = (drawn @ values / drawn.sum(1)).var()
    assert variance == pytest.approx(values.var(ddof=1) / 5, rel=0.05)


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


def test_the_page_shows_every_method_and_loads_nothing() -> None:
    lines = lines_of()
    lines[0]["teacher"] = "<big & bold>"
    found = figures(lines, draws=100)
    page = render(view(found, "runs", "seeds: 3\n", version="1", started="2026-01-01"))
    assert "&lt;big &amp; bold&gt;" in page and "<big" not in page
    for word in ("http:", "https:", "src=", "<script", "@import", "url("):
        assert word not in page.replace("http://www.w3.org", "")
    assert page.count('<svg class="plot"') == 4
    for method in ("ours", "kl", "bad"):
        assert page.count(method) >= 6
    assert "At equal time, kl took over 15% more or less" in page
    assert "closes <strong>" in page and "control: wrong task" in page


def test_thousands_of_draws_take_seconds() -> None:
    start = time.process_time()
    figures(lines_of(seeds=5, items=150, rows=150), draws=4000)
    assert time.process_time() - start < 15


def test_the_script_writes_the_same_figures_as_a_markdown_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = figures(lines_of(), draws=50)
    (tmp_path / "figures.json").write_text(json.dumps(found))
    script = Path(__file__).parents[2] / "scripts" / "comparison_table.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "figures.json")])
    runpy.run_path(str(script), run_name="__main__")
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head.count("equal time") == 2 and len(lines) == 3
    ours = next(m for m in found["methods"] if m["default"])
    assert lines[0].startswith(f"| **ours** (default) | {ours['accuracy_gap_closed']:.0%} [")
    assert all(line.count("|") == head.count("|") for line in lines)
