"""The page of a comparison: what it claims, what it warns of, and how a figure is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from semalign.comparison.figures import figures
from semalign.comparison.page import at_budgets, view, write_page
from semalign.comparison.table import method_table, ranked
from semalign.comparison.words import points, shown
from semalign.errors import CacheError
from semalign.report.blocks import Report, Section, Table
from semalign.report.build import render

from .made_up import lines_of

KEYS = ("gain", "accuracy_gap_closed", "kl_gap_closed", "retention", "kl_gap_closed_elsewhere")


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


def method(
    name: str,
    accuracy: float | None,
    near: float | None = 0.5,
    *,
    ahead: tuple[float, float] | None = None,
    gain: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A method's figures; `ahead` is the interval of its lead over the default."""
    closed = {"accuracy_gap_closed": accuracy, "kl_gap_closed": near, "gain": gain}
    entry: dict[str, Any] = {"method": name, "default": name == "ours", "seeds": 3, "equal_time": None}
    for key in KEYS:
        entry |= {key: closed.get(key, 0.0), f"{key}_interval": None, f"{key}_minus_default_interval": ahead}
    costs = {"wall_seconds": 10.0, "budget_seconds": None, "rows": 12, "steps": 7, "extraction_failures": 0.0}
    return entry | costs | {"tasks": {}} | more


def comparison(*methods: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Figures of a comparison on no task, as the page reads them."""
    return {
        "teacher": "big",
        "student": "small",
        "default": "ours",
        "tasks": [],
        "trained": [],
        "seeds": 3,
        "methods": list(methods),
        "controls": {"wrong_task": {"accuracy_gap_closed": None}},
        "models": {"teacher": {"tasks": {}}, "untouched": {"tasks": {}}},
        "failed": [],
    } | more


def section(report: Report, key: str) -> Section:
    return next(part for part in report.sections if part.key == key)


def table(part: Section, number: int = 0) -> Table:
    return [block for block in part.blocks if isinstance(block, Table)][number]


def test_methods_are_ranked_by_accuracy_where_any_has_it_and_those_without_come_last() -> None:
    found = comparison(method("ours", 0.4, 0.9), method("none", None, 0.99), method("kl", 0.6, 0.1))
    assert [m["method"] for m in ranked(found)] == ["kl", "ours", "none"]
    found = comparison(method("ours", None, 0.4), method("gone", None, None), method("kl", None, 0.6))
    assert [m["method"] for m in ranked(found)] == ["kl", "ours", "gone"]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"x": 0.584, "x_interval": [0.52, 0.631]}, "58% [52, 63]"),
        ({"x": -0.05, "x_interval": [-0.1, 0.0]}, "−5% [−10, 0]"),
        ({"x": 0.5, "x_interval": None}, "50%"),
        ({"x": None}, "–"),
        ({}, "–"),
    ],
)
def test_the_ends_of_an_interval_are_in_the_unit_of_its_value(entry: dict[str, Any], text: str) -> None:
    assert shown(entry, "x").replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("value", "text"), [(2.34, "+2.3"), (-2.34, "−2.3"), (0.04, "0.0"), (-0.04, "0.0"), (None, "–")]
)
def test_points_carry_their_sign_where_they_have_one(value: float | None, text: str) -> None:
    assert points(value) == text


def test_points_with_an_interval_have_signs_at_the_value_alone() -> None:
    entry = {"x": 2.0, "x_interval": [-1.0, 5.0]}
    assert shown(entry, "x", points).replace("\u00a0", " ") == "+2.0 [−1.0, 5.0]"


def test_a_method_at_equal_time_has_two_entries_and_the_default_one() -> None:
    timed = method("kl", 0.2)
    both = method("kl", 0.4, equal_time=timed)
    assert at_budgets(both) == [both, timed] and at_budgets(method("kl", 0.4)) == [method("kl", 0.4)]
    ours = method("ours", 0.4, equal_time=method("ours", 0.4))
    assert at_budgets(ours) == [ours]


def test_the_table_leaves_out_what_nobody_measured_and_ends_with_the_control() -> None:
    timed = comparison(method("kl", 0.4, gain=3.21, equal_time=method("kl", 0.2)), method("ours", 0.3))
    titles, lines = method_table(timed)
    assert titles[:6] == [
        "Points won",
        "Accuracy gap",
        "KL gap",
        "Equal time: accuracy",
        "Equal time: KL",
        "Retention, points",
    ]
    assert "Cut off" not in titles
    assert lines[0][1][:6] == ["+3.2", "40%", "50%", "20%", "50%", "0.0"]
    assert lines[1][1][:6] == ["–", "30%", "50%", "–", "–", "0.0"]
    controlled = comparison(method("ours", 0.3), controls={"wrong_task": {"accuracy_gap_closed": 0.12}})
    titles, lines = method_table(controlled, ["Accuracy gap", "Seconds"])
    assert titles == ["Accuracy gap", "Seconds"]
    assert [(m["method"], texts) for m, texts in lines] == [
        ("ours", ["30%", lines[0][1][1]]),
        ("control: wrong task", ["12%", "–"]),
    ]


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (comparison(method("ours", 0.4), method("kl", 0.6), method("b", 0.1), tasks=[]),
         "ours closes 40% of the accuracy gap, averaged over 0 tasks and 3 seeds; the best of 2 others at equal rows, kl, 60%."),
        (comparison(method("ours", None, 0.4, seeds=1), method("kl", None, 0.3)),
         "ours closes 40% of the KL gap, averaged over 0 tasks and 1 seed; the other at equal rows, kl, 30%."),
        (comparison(method("ours", 0.4), method("kl", None)),
         "ours closes 40% of the accuracy gap, averaged over 0 tasks and 3 seeds."),
        # The teacher did not answer, so that there is no gap to close.
        (comparison(method("ours", None, 0.4, gain=10.64), method("kl", None, 0.9, gain=-2.0)),
         "ours wins +10.6 points of right answers, averaged over 0 tasks and 3 seeds; the other at equal rows, kl, −2.0."),
        (comparison(method("ours", None), method("kl", 0.3)),
         "The default, ours, has no figure: see what failed."),
    ],
)  # fmt: skip
def test_the_headline_sets_the_default_beside_the_best_other(found: dict[str, Any], sentence: str) -> None:
    assert view(found, "x", "").headline.sentence == sentence


def test_methods_are_better_or_level_by_the_interval_of_their_lead() -> None:
    timed = method("fast", 0.5, ahead=(0.01, 0.2))
    found = comparison(
        method("ours", 0.4, ahead=(0.0, 0.0)),
        method("fast", 0.5, ahead=(0.02, 0.1), equal_time=timed),
        method("even", 0.4, ahead=(-0.1, 0.1)),
        method("touching", 0.4, ahead=(-0.1, 0.0)),
        method("barely", 0.4, ahead=(0.0, 0.1)),
        method("worse", 0.2, ahead=(-0.3, -0.1)),
    )
    notes = view(found, "x", "").notes
    assert (
        "At equal rows, better than the default: fast; not told apart from it: even, touching and barely."
        in notes
    )
    assert "At equal time, better than the default: fast; not told apart from it: none." in notes


def test_a_comparison_without_other_methods_compares_nothing() -> None:
    assert not any(
        "better than the default" in note for note in view(comparison(method("ours", 0.4)), "x", "").notes
    )


@pytest.mark.parametrize(("seconds", "told"), [(114.0, False), (116.0, True), (84.0, True), (86.0, False)])
def test_a_training_that_missed_its_budget_is_told(seconds: float, told: bool) -> None:
    timed = method("kl", 0.4, budget_seconds=100.0, wall_seconds=seconds)
    notes = view(comparison(method("ours", 0.4), method("kl", 0.4, equal_time=timed)), "x", "").notes
    assert any("At equal time, kl took over 15% more or less than planned" in note for note in notes) is told


def test_failures_one_seed_and_the_wrong_task_are_told() -> None:
    failed = [{"method": "kl", "trained": "sums", "seed": 0, "budget": "rows", "error": "no <space>"}] * 2
    controls = {"wrong_task": {"accuracy_gap_closed": 0.05, "accuracy_gap_closed_interval": [-0.1, 0.2]}}
    report = view(comparison(method("ours", 0.4), seeds=1, failed=failed, controls=controls), "x", "")
    notes = " ".join(report.notes).replace("\u00a0", " ")
    alone = view(comparison(method("ours", 0.4), failed=failed[:1]), "x", "").notes
    assert "1 cell failed and is left out: see below." in alone
    assert "2 cells failed and are left out" in notes and "One seed: the intervals hold no variation" in notes
    assert "Wrong task (the default's students of other tasks): 5% [−10, 20] of the accuracy gap." in notes
    rows = table(section(report, "failed")).rows
    assert [(r.name, r.cells[0].text) for r in rows] == [("kl sums 0 rows", "no <space>")] * 2
    assert "no &lt;space&gt;" in render(report)
    whole = view(comparison(method("ours", 0.4)), "x", "")
    assert section(whole, "failed").missing == "None." and not any("One seed" in note for note in whole.notes)


def test_every_method_and_both_ends_have_a_row_on_every_task() -> None:
    found = figures(lines_of(), draws=20)
    report = view(found, "x", "")
    for task in ("letters", "sums"):
        rows = {
            row.name: [cell.text for cell in row.cells] for row in table(section(report, f"task-{task}")).rows
        }
        assert list(rows) == ["teacher", *(m["method"] for m in ranked(found)), "untouched"]
        for entry in found["methods"]:
            own = entry["tasks"][task]
            text = rows[entry["method"]]
            assert text[0] == "3" and text[1].startswith(f"{own['accuracy']:.1%} [")
            assert text[3] == f"{own['kl']:.3f}" and text[6] == f"{own['nll']:.3f}"
        changes = table(section(report, f"task-{task}"), 1)
        assert changes.columns == ["Points", task, *({"letters", "sums"} - {task})]
        ours = next(m for m in found["methods"] if m["default"])["tasks"][task]["accuracy_change"]
        (row,) = (row for row in changes.rows if row.name == "ours")
        for column, cell in zip(changes.columns[1:], row.cells, strict=True):
            value = f"{round(ours[column], 1):+.1f}".replace("-", "−")
            assert cell.text.startswith(f"{value} [")


def test_ruined_students_are_drawn_at_the_floor_and_named_with_what_they_lost() -> None:
    report = view(comparison(method("ours", 0.4, 0.4), method("bad", -30.0, -40.0)), "x", "")
    drawing = str(section(report, "time").blocks[0].panels[0].svg).replace("\u00a0", " ")
    ticks = re.findall(r">(−?[\d.]+)</text>", drawing)
    assert min(float(tick.replace("−", "-")) for tick in ticks) == -100
    assert "bad, equal rows: −4000% in 10 s" in drawing


def test_what_was_won_stands_beside_what_was_lost_elsewhere_without_a_teacher_too() -> None:
    report = view(comparison(method("ours", None, gain=10.6, retention=0.8)), "x", "")
    drawing = str(section(report, "retention").blocks[0].panels[0].svg).replace("\u00a0", " ")
    assert "ours: +10.6 points on its own task, +0.8 elsewhere" in drawing


def test_what_was_not_measured_is_said() -> None:
    report = view(comparison(method("ours", None, None)), "x", "")
    assert section(report, "time").missing == "No held-out rows were measured."
    assert section(report, "retention").missing == "No items of other tasks were answered."
    assert report.gaps is None
    columns = table(section(report, "methods")).columns
    assert "Retention, points" in columns and "Points won" not in columns and "Equal time: KL" not in columns
    assert [row.name for row in table(section(report, "methods")).rows] == ["1\u00a0ours"]
    render(report)


def test_the_page_is_written_whole_with_the_name_of_its_folder(tmp_path: Path) -> None:
    found, path = comparison(method("ours", 0.4)), tmp_path / "my-comparison" / "page.html"
    write_page(found, path, "seeds: 3\n", version="9.9", started="2026-01-02T03:04:05+0000")
    page = path.read_text(encoding="utf-8")
    for words in ("my-comparison", "seeds: 3", "SemAlign 9.9", "2026-01-02 03:04 UTC"):
        assert words in page
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    # Half of a character, as a model may write it.
    write_page(found, path, "a\ud800b", version="", started="")
    assert "a?b" in path.read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match=r"page\.html: cannot be written"):
        write_page(
            comparison(method("ours", 0.4)), tmp_path / "file" / "page.html", "", version="", started=""
        )
