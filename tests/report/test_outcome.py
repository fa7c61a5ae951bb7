"""Sections on what came out: who answered better and how surely, who is closest, which answers changed."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semalign.report import build_report
from semalign.report.blocks import Cell, Panels, Samples, Section, Table
from semalign.report.build import view
from semalign.report.files import read_run
from semalign.report.outcome import (
    SAMPLE_LIMIT,
    closeness_section,
    harness_section,
    overlap,
    samples_section,
    tasks_section,
)

from .pages import Edit, RunMaker, section


def task(before: float, after: float, teacher: float, half: float = 0.01) -> dict[str, Any]:
    """A task's results, each with an interval of `half` either way."""
    found = {"before": before, "after": after, "teacher": teacher}
    return {k: {"accuracy": v, "low": v - half, "high": v + half} for k, v in found.items()}


def table_of(part: Section | None) -> Table:
    assert part is not None
    return next(block for block in part.blocks if isinstance(block, Table))


def texts(part: Section | None) -> list[list[str]]:
    """Names and cells of the section's table."""
    return [[row.name, *(cell.text for cell in row.cells)] for row in table_of(part).rows]


def test_no_model_is_called_best_where_all_are_level(make_run: RunMaker, edit_json: Edit) -> None:
    run = make_run()
    names = ("before", "after", "cosine", "cross_entropy")
    edit_json(
        run / "metrics.json", lambda m: [m["closeness"][name].update(top1_agreement=0.5) for name in names]
    )
    table = next(b for b in section(view(read_run(run)), "closeness").blocks if isinstance(b, Table))
    assert [any(row.cells[column].best for row in table.rows) for column in range(3)] == [True, False, True]


@pytest.mark.parametrize(
    ("after", "interval", "finding"),
    [
        (0.9, (0.8, 0.95), "Better than before, with intervals apart."),
        (0.5, (0.4, 0.6), "Better than before, with intervals that overlap or are unknown."),
        (0.9, (None, None), "Better than before, with intervals that overlap or are unknown."),
        (0.3, (0.2, 0.4), "Not better than before."),
    ],
)
def test_one_task_is_judged_with_its_intervals(
    make_run: RunMaker,
    edit_json: Edit,
    after: float,
    interval: tuple[float | None, float | None],
    finding: str,
) -> None:
    run = make_run()

    def keep_one(m: dict[str, Any]) -> None:
        m["tasks"] = {"knowledge": m["tasks"]["knowledge"]}
        m["tasks"]["knowledge"]["after"] = {"accuracy": after, "low": interval[0], "high": interval[1]}

    edit_json(run / "metrics.json", keep_one)
    assert section(view(read_run(run)), "tasks").finding == finding


def test_long_answers_are_cut_with_a_count(make_run: RunMaker, edit_json: Edit) -> None:
    run = make_run()
    edit_json(
        run / "metrics.json", lambda m: m.update(samples=[m["samples"][0] | {"after": "y" * 1_000_000}] * 60)
    )
    path = build_report(run)
    assert path.stat().st_size < 3_000_000 and "996,000 more characters" in path.read_text(encoding="utf-8")


@given(*[st.tuples(st.integers(0, 12), st.integers(0, 4)) for _ in range(2)])
def test_intervals_overlap_when_they_have_a_point_in_common(
    first: tuple[int, int], second: tuple[int, int]
) -> None:
    (low_a, more_a), (low_b, more_b) = first, second
    entry = {
        "before": {"low": low_a, "high": low_a + more_a},
        "after": {"low": low_b, "high": low_b + more_b},
    }
    common = {*range(low_a, low_a + more_a + 1)} & {*range(low_b, low_b + more_b + 1)}
    assert overlap(entry) is bool(common)
    for key, end in (("before", "low"), ("after", "high")):
        assert overlap(entry | {key: entry[key] | {end: None}}) is None


@pytest.mark.parametrize(
    ("tasks", "finding"),
    [
        ([task(0.2, 0.5, 0.9), task(0.2, 0.21, 0.9), task(0.5, 0.4, 0.9)],
         "Better than before on 2 of 3 tasks, on 1 of them with intervals apart."),
        ([task(0.2, 0.5, 0.9), task(0.5, 0.5, 0.9)], "Better than before on 1 of 2 tasks, with intervals apart."),
        ([task(0.5, 0.4, 0.9), task(0.5, 0.5, 0.9)], "Not better than before on any of 2 tasks."),
        ([task(0.2, 0.21, 0.9), task(0.5, 0.4, 0.9)],
         "Better than before on 1 of 2 tasks, with intervals that overlap or are unknown."),
    ],
)  # fmt: skip
def test_tasks_are_counted_by_what_the_intervals_allow(tasks: list[Any], finding: str) -> None:
    assert tasks_section({"tasks": {f"t{n}": t for n, t in enumerate(tasks)}}).finding == finding


@pytest.mark.parametrize(
    ("results", "aside"),
    [
        (task(0.4, 0.6, 0.8), "50% of the gap closed"),
        (task(0.4, 0.2, 0.8), "gap wider by 50%"),
        (task(0.8, 0.9, 0.8), "no gap: the teacher is not ahead"),
        ({"before": {"accuracy": 0.4}, "after": {"accuracy": 0.5}}, "no gap: the teacher is not ahead"),
    ],
)
def test_a_task_says_what_became_of_its_gap(results: dict[str, Any], aside: str) -> None:
    part = tasks_section({"tasks": {"long_sums": results | {"n": 1200}}})
    (panels,) = (block for block in part.blocks if isinstance(block, Panels))
    assert [(p.title, p.aside) for p in panels.panels] == [("Long sums · 1,200 items", aside)]


def test_the_table_has_a_row_for_every_model_that_was_measured() -> None:
    results = task(0.4, 0.6, 0.8)
    results |= {"cosine": {"accuracy": 0.2, "extraction_failures": 0.25, "ended": 0.9}}
    metrics = {"recipe": "aligned", "baselines": {"cosine": {}, "kl": {}}, "tasks": {"sums": results}}
    assert texts(tasks_section(metrics)) == [
        ["Untouched", "Sums", "40.0%", "39.0% to 41.0%", "–", "–", "–"],
        ["Cosine", "Sums", "20.0%", "–", "−50%", "25.0%", "10.0%"],
        ["Aligned (ours)", "Sums", "60.0%", "59.0% to 61.0%", "50%", "–", "–"],
        ["Teacher", "Sums", "80.0%", "79.0% to 81.0%", "–", "–", "–"],
    ]


def test_figures_of_the_harness_have_a_row_for_every_model_that_has_one(make_run: RunMaker) -> None:
    metrics = read_run(make_run()).metrics
    part = harness_section(metrics)
    assert part is not None and part.finding == "Higher than before in 1 of 2 figures."
    assert texts(part) == [
        ["Untouched", "gsm8k", "exact_match, strict-match", "0.210", "0.150 to 0.270", "200"],
        ["Aligned (ours)", "gsm8k", "exact_match, strict-match", "0.340", "0.270 to 0.410", "200"],
        ["Teacher", "gsm8k", "exact_match, strict-match", "0.520", "0.450 to 0.590", "200"],
        ["Untouched", "mmlu", "acc", "0.441", "–", "400"],
        ["Aligned (ours)", "mmlu", "acc", "0.438", "–", "400"],
        ["Teacher", "mmlu", "acc", "0.600", "–", "400"],
    ]
    one = harness_section({"harness": metrics["harness"][:1]})
    assert one is not None and one.finding == "Higher than before in 1 of 1 figure."
    assert harness_section({}) is None


def test_closeness_says_how_both_measures_moved(make_run: RunMaker) -> None:
    part = closeness_section(read_run(make_run()).metrics)
    assert part.finding == (
        "KL to the teacher fell from 0.284 to 0.080; the share of positions with the teacher's next token rose from 84.2% to 92.2%."
    )
    assert "64 held-out rows, 2,816 tokens" in part.note
    assert table_of(part).columns == ["Model", "KL to the teacher", "Top-1 agreement", "NLL"]
    assert texts(part)[-1] == ["Teacher", "–", "–", "0.910"]


def width(cell: Cell) -> float:
    """Of the bar in a cell, in percent."""
    (found,) = re.findall(r'width="([\d.]+)%"', str(cell.bar))
    return float(found)


def test_an_agreement_is_drawn_against_one_and_the_others_against_the_largest(make_run: RunMaker) -> None:
    rows = {row.name: row.cells for row in table_of(closeness_section(read_run(make_run()).metrics)).rows}
    assert width(rows["Aligned (ours)"][1]) == pytest.approx(92.2)
    assert width(rows["Cosine"][0]) == pytest.approx(100)
    assert width(rows["Aligned (ours)"][0]) == pytest.approx(100 * 0.0795 / 0.316, abs=0.01)
    assert rows["Teacher"][0].bar is None


def test_the_teacher_is_never_the_best_student(make_run: RunMaker, edit_json: Edit) -> None:
    run = make_run()
    edit_json(run / "metrics.json", lambda m: m["closeness"]["teacher"].update(nll=0.01))
    best = [row.name for row in table_of(closeness_section(read_run(run).metrics)).rows if row.cells[2].best]
    assert best == ["Cross-entropy"]


@pytest.mark.parametrize(
    ("make", "step"),
    [
        (tasks_section, "Set evaluation.tasks and run the evaluate step"),
        (closeness_section, "the evaluate step measures it on held-out rows"),
        (samples_section, "the evaluate step keeps some when evaluation.tasks is set"),
    ],
)
def test_what_was_not_measured_names_what_measures_it(make: Any, step: str) -> None:
    part = make({})
    assert step in part.missing and not part.blocks


def sample(before: bool | None, after: bool | None) -> dict[str, Any]:
    verdicts = {"before": before, "after": after, "teacher": True}
    kept = {k: v for k, v in verdicts.items() if v is not None}
    return {"task": "sums", "prompt": "1 + 1", "gold": "2"} | dict.fromkeys(verdicts, "2") | {"correct": kept}


def test_turns_are_counted_over_all_samples_and_only_some_are_shown() -> None:
    samples = (
        [sample(False, True)] * 20 + [sample(True, False)] * 9 + [sample(True, True), sample(None, True)]
    )
    part = samples_section({"samples": samples})
    assert part.finding == "31 samples: 20 turned from wrong to right, 9 from right to wrong."
    (shown,) = part.blocks
    assert isinstance(shown, Samples) and len(shown.samples) == SAMPLE_LIMIT < len(samples)
    one = samples_section({"samples": [sample(False, True)]}).finding
    assert one == "1 sample: 1 turned from wrong to right, 0 from right to wrong."


def test_a_sample_has_the_answers_that_were_given_with_their_verdicts() -> None:
    unjudged = sample(None, True) | {"before": ""}
    del unjudged["teacher"]
    (block,) = samples_section({"samples": [unjudged], "recipe": "kl"}).blocks
    assert isinstance(block, Samples)
    (shown,) = block.samples
    assert (shown.task, shown.prompt, shown.gold) == ("Sums", "1 + 1", "2")
    answers = [(a.label, a.text, a.correct) for a in shown.answers]
    assert answers == [("Untouched", "", None), ("Full KL (ours)", "2", True)]
