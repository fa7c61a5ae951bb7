"""The top of a page: what it claims first, and what it warns of."""

from __future__ import annotations

from typing import Any

import pytest

from semalign.report.build import view
from semalign.report.files import RunFiles, read_run
from semalign.report.top import gap_panels, notes, tiles, top_line

from .pages import Checker, Edit, RunMaker, page_of, section


def gaps(accuracy: float | None, near: float | None, **baselines: Any) -> dict[str, Any]:
    """metrics.json of a run that closed these shares, with the shares of KL that its baselines closed."""
    found = {"recipe": "aligned", "accuracy_gap_closed": accuracy, "kl_gap_closed": near}
    return found | {"baselines": {name: {"kl_gap_closed": share} for name, share in baselines.items()}}


def test_lost_tasks_and_overlapping_intervals_are_told(make_run: RunMaker) -> None:
    report = view(read_run(make_run()))
    assert any("Below the untouched student on retention (−2.0 points)" in note for note in report.notes)
    assert any("overlapping 95% intervals on retention" in note for note in report.notes)
    assert section(report, "tasks").finding.startswith("Better than before on 3 of 4 tasks, on all of them")


def test_a_baseline_that_is_better_by_kl_is_told_below_the_headline(
    make_run: RunMaker, edit_json: Edit
) -> None:
    run = make_run()
    edit_json(run / "metrics.json", lambda m: m["baselines"]["cosine"].update(kl_gap_closed=0.8))
    assert (
        "closed 72% of the gap; the cosine baseline did better and closed 80%."
        in view(read_run(run)).notes[0]
    )


def test_a_better_baseline_is_in_the_headline(make_run: RunMaker, edit_json: Edit) -> None:
    run = make_run()
    edit_json(run / "metrics.json", lambda m: m["baselines"]["cross_entropy"].update(accuracy_gap_closed=0.9))
    assert "the cross-entropy baseline did better and closed 90%" in Checker(page_of(run)).text


def test_closeness_alone_makes_a_headline_about_kl(make_run: RunMaker, edit_json: Edit) -> None:
    run = make_run()
    edit_json(run / "metrics.json", lambda m: m.update(accuracy_gap_closed=None, tasks={}, samples=[]))
    report = view(read_run(run))
    assert report.headline.sentence.startswith("Aligned training closed 72% of the KL gap")
    assert "closeness only" in section(report, "tasks").missing and report.gaps is not None
    assert len(report.gaps.panels) == 1
    Checker(page_of(run))


def test_a_run_without_a_gap_says_why() -> None:
    found = top_line(
        {"recipe": "aligned", "kl_gap_closed": None, "no_gap": "the teacher is the student", "baselines": {}}
    )
    assert found.sentence.endswith(
        "no gap between student and teacher was measured: the teacher is the student."
    )


def test_the_headline_is_about_accuracy_where_it_was_measured() -> None:
    assert top_line(gaps(0.5, 0.9)).sentence.startswith("Aligned training closed 50% of the accuracy gap")
    assert top_line(gaps(None, 0.9)).sentence.startswith("Aligned training closed 90% of the KL gap")
    assert "no gap between student and teacher was measured" in top_line({}).sentence


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (gaps(0.5, 0.7), "training closed 70% of the gap."),
        (gaps(0.5, -0.2), "training widened the gap by 20%."),
        (gaps(0.5, 0.7, kl=0.1, cosine=None), "training closed 70% of the gap, more than the baseline (full KL, 10%)."),
    ],
)  # fmt: skip
def test_the_other_measure_is_told_below(metrics: dict[str, Any], said: str) -> None:
    assert notes(metrics)[0] == f"By KL divergence to the teacher's predictions, {said}"


def test_one_measure_alone_is_not_told_twice_and_one_run_is_always_called_one() -> None:
    (only,) = notes(gaps(None, 0.7))
    assert only == "One run with one seed: repeat it with other seeds before relying on small differences."
    assert notes({}) == [only]


def test_this_run_is_drawn_first_and_baselines_that_were_not_measured_are_not() -> None:
    found = gap_panels(gaps(None, 0.72, cosine=-0.11, kl=None, cross_entropy=0.18))
    assert found is not None
    (panel,) = found.panels
    assert panel.title == "KL gap closed"
    spoken = "KL gap closed: Aligned (ours) 72%, Cosine −11%, Cross-entropy 18%"
    assert f'aria-label="{spoken}"' in panel.svg
    both = gap_panels(gaps(0.5, 0.7))
    assert both is not None and [p.title for p in both.panels] == ["Accuracy gap closed", "KL gap closed"]
    assert gap_panels({}) is None


def test_tiles_hold_what_was_measured_and_nothing_else() -> None:
    metrics = {
        "tasks": {"sums": {"before": {"accuracy": 0.2}, "after": {"accuracy": 0.6}, "teacher": {"accuracy": 0.8}}},
        "closeness": {"before": {"kl": 0.5}, "after": {"kl": 0.25, "top1_agreement": 0.9}},
        "wall_seconds": 90.0,
        "peak_rss_bytes": 2e9,
        "peak_gpu_bytes": 5e9,
    }  # fmt: skip
    plan = {"trained_layers": [3, 4, 5], "student_layers": 8}
    found = [
        (t.label, t.value.replace("\u00a0", " "), t.note.replace("\u00a0", " "))
        for t in tiles(RunFiles("run", metrics, pairs=plan))
    ]
    assert found == [
        ("Mean accuracy, 1 task", "60%", "untouched 20%, teacher 80%"),
        ("KL to the teacher", "0.250", "untouched 0.500"),
        ("Top-1 agreement", "90.0%", "untouched –"),
        ("Student layers trained", "3", "of 8: 3–5"),
        ("Wall time", "1 min 30 s", "all steps"),
        ("Peak memory", "2 GB", "resident, highest step; 5 GB on the GPU"),
    ]
    assert tiles(RunFiles("run", {"wall_seconds": float("nan")})) == []


@pytest.mark.parametrize(
    ("before", "after", "share", "end"),
    [
        (0.247, 1.860, None, "KL to the teacher rose from 0.247 to 1.860."),
        (0.247, 0.300, 0.5, "KL to the teacher rose from 0.247 to 0.300."),
        (0.247, 0.200, -0.25, "mean accuracy fell from 40.0% to 30.0%."),
        (
            0.2,
            0.4,
            -0.25,
            "KL to the teacher rose from 0.200 to 0.400, and mean accuracy fell from 40.0% to 30.0%.",
        ),
    ],
)
def test_a_student_further_from_its_teacher_is_told_first(
    before: float, after: float, share: float | None, end: str
) -> None:
    metrics = {"closeness": {"before": {"kl": before}, "after": {"kl": after}}, "accuracy_gap_closed": share}
    metrics["accuracy"] = {"before": 0.4, "after": 0.3, "teacher": 0.8}
    assert top_line(metrics).sentence == f"This student ends further from its teacher than it began: {end}"
    assert "train.learning_rate" in notes(metrics)[0]


@pytest.mark.parametrize(("low", "is_told"), [(0.45, True), (0.10, False)])
def test_answers_that_became_clearly_worse_are_told_where_the_teacher_s_lead_may_be_chance(
    low: float, is_told: bool
) -> None:
    task = {
        "before": {"accuracy": 0.6, "low": low, "high": 0.7},
        "after": {"accuracy": 0.2, "low": 0.1, "high": 0.3},
    }
    metrics = {
        "closeness": {"before": {"kl": 1.0}, "after": {"kl": 0.8}},
        "accuracy": {"before": 0.6, "after": 0.2, "teacher": 0.63},
        "accuracy_gap_closed": None,
        "kl_gap_closed": 0.2,
        "tasks": {"sums": task},
    }
    said = "This student answers worse than before: mean accuracy fell from 60.0% to 20.0%."
    assert (top_line(metrics).sentence == said) is is_told


def test_a_student_that_stays_where_it_was_is_no_setback() -> None:
    near = {"closeness": {"before": {"kl": 0.2470}, "after": {"kl": 0.2471}}, "kl_gap_closed": -0.0004}
    assert "further" not in top_line(near).sentence and "train.learning_rate" not in notes(near)[0]
