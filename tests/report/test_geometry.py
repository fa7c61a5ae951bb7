"""Sections on the layers: what is paired with what, how alike it is, and the scale it is drawn on."""

from __future__ import annotations

import random
from statistics import mean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semalign.report.blocks import HeatLegend, Legend, Panels, Section, Table
from semalign.report.build import view
from semalign.report.files import RunFiles, read_run
from semalign.report.geometry import alignment_section, cka_section, layers_section

from .pages import Edit, RunMaker, section

PLAN: dict[str, Any] = {
    "teacher_layers": 3,
    "student_layers": 2,
    "pairs": [{"teacher": 1, "student": 1, "fraction": 0.5}, {"teacher": 3, "student": 2, "fraction": 0.0}],
    "trained_layers": [1, 2],
    "critical_layers": [],
    "selection": "last",
}
HEADS = [
    {"teacher": 4, "student": 3, "fraction": 0.0, "teacher_head": 2, "student_head": 1},
    {"teacher": 4, "student": 3, "fraction": 0.0, "teacher_head": 1, "student_head": 2},
    {"teacher": 6, "student": 4, "fraction": 0.0, "teacher_head": 3, "student_head": 1},
]


def files(**parts: Any) -> RunFiles:
    """A run with a small plan and nothing else but what is given."""
    return RunFiles(**{"name": "run", "metrics": {}, "pairs": PLAN} | parts)


def table_of(part: Section) -> Table:
    return next(block for block in part.blocks if isinstance(block, Table))


def drawings(part: Section) -> dict[str, str]:
    """The drawings of a section by their titles."""
    return {p.title: str(p.svg) for block in part.blocks if isinstance(block, Panels) for p in block.panels}


def test_every_map_of_a_pair_is_listed_and_the_blend_keeps_its_name(
    make_run: RunMaker, edit_json: Edit
) -> None:
    run = make_run()
    fits = [
        {"teacher": 4, "student": 3, "interface": "block", "map": "ridge", "cosine": 0.9},
        {"teacher": 4, "student": 3, "interface": "mlp", "map": "semantic", "cosine": 0.06},
    ]
    edit_json(run / "targets" / "manifest.json", lambda m: m.update(alignment=fits))
    edit_json(run / "metrics.json", lambda m: m["alignment"][0].update(teacher=4.5))
    report = view(read_run(run))
    table = next(block for block in section(report, "layers").blocks if isinstance(block, Table))
    cells = [(row.name, *(cell.text for cell in row.cells[:3])) for row in table.rows]
    assert cells == [
        ("T4.5 → S3", "block", "ridge", "0.90"),
        ("T4.5 → S3", "mlp", "semantic", "0.06"),
        ("T6 → S4", "–", "–", "–"),
    ]
    (run / "pairs.json").unlink()
    for files in (report, view(read_run(run))):
        assert "T4.5 → S3" in str(section(files, "alignment").blocks[0])


def test_several_head_pairs_of_one_layer_have_labels_of_their_own(
    make_run: RunMaker, edit_json: Edit
) -> None:
    run = make_run()
    edit_json(run / "pairs.json", lambda p: p.update(heads=HEADS))
    fits = [pair | {"interface": "head", "map": "ridge", "cosine": n / 10} for n, pair in enumerate(HEADS)]
    edit_json(run / "targets" / "manifest.json", lambda m: m.update(alignment=fits))
    rows = [pair | {"interface": "head", "before": n / 10, "after": n / 5} for n, pair in enumerate(HEADS, 1)]
    edit_json(run / "metrics.json", lambda m: m.update(alignment=rows))
    report = view(read_run(run))
    labels = ["T4h2 → S3h1", "T4h1 → S3h2", "T6h3 → S4h1"]
    cells = [(row.name, *(c.text for c in row.cells[:3])) for row in table_of(section(report, "layers")).rows]
    # Each head has its own fit, and the two layers' pairs have none.
    assert cells == [
        ("T4.5 → S3", "–", "–", "–"),
        ("T6 → S4", "–", "–", "–"),
        ("T4h2 → S3h1", "head", "ridge", "0.00"),
        ("T4h1 → S3h2", "head", "ridge", "0.10"),
        ("T6h3 → S4h1", "head", "ridge", "0.20"),
    ]
    drawn = drawings(section(report, "alignment"))["Cosine with the target"]
    spoken = [f"{label} {n / 10:.2f} to {n / 5:.2f}" for n, label in enumerate(labels, 1)]
    assert f"Cosine before and after: {'; '.join(spoken)}" in drawn
    assert all(drawn.count(f">{label}</text>") == 1 for label in labels)


def test_the_finding_names_trained_and_highest_layers(make_run: RunMaker) -> None:
    part = layers_section(read_run(make_run()))
    assert part.finding == "Student layers 3 and 4 of 4 are trained; teacher layers 4 and 6 score highest."
    assert part.note.startswith("Selection: attribution. Supervised activation: block. ")


def test_without_critical_layers_the_largest_score_of_either_sign_is_named() -> None:
    scores = {"layers": [{"layer": n, "score": s} for n, s in ((1, 0.2), (2, -0.9), (3, 0.5))]}
    part = layers_section(files(scores=scores))
    assert part.finding.endswith("; teacher layer 2 scores highest.")
    assert "highest in layer 2" in drawings(part)["Attribution score per teacher layer"]
    (legend,) = (block for block in part.blocks if isinstance(block, Legend))
    assert not any("critical" in words for _, words in legend.items)


def test_a_layer_is_drawn_for_what_was_measured_of_it_alone() -> None:
    bare = layers_section(files())
    assert list(drawings(bare)) == ["Targets, from teacher to student"]
    assert bare.finding.endswith("the teacher's layers were not scored.")
    assert "Pairs: T1.5 → S1 and T3 → S2" in drawings(bare)["Targets, from teacher to student"]
    unknown = layers_section(files(scores={"layers": [{"layer": 1, "score": float("nan")}]}))
    assert list(drawings(unknown)) == list(drawings(bare)) and "No layer has a score" in unknown.note
    assert "the attribute step writes it" in layers_section(files(scores=None)).note
    metrics = {"movement": [{"layer": 2, "relative_change": 0.025}]}
    moved = layers_section(files(metrics=metrics))
    assert list(drawings(moved))[1:] == ["Relative weight change per student layer"]
    assert [row.cells[-1].text for row in table_of(moved).rows] == ["–", "2.50%"]


def test_the_supervised_activation_is_that_of_the_measured_pairs_where_the_plan_has_none() -> None:
    rows = [{"teacher": 3, "student": 2, "interface": "mlp", "before": 0.1, "after": 0.2}]
    assert "Supervised activation: mlp." in layers_section(files(metrics={"alignment": rows})).note
    assert "Supervised activation" not in layers_section(files()).note


def test_the_mean_cosine_is_over_the_pairs_that_were_measured() -> None:
    rows = [
        {"teacher": 1, "student": 1, "fraction": 0.5, "interface": "block", "before": 0.1, "after": 0.5},
        {"teacher": 3, "student": 2, "fraction": 0.0, "interface": "block", "before": 0.3, "after": 0.9},
        {"teacher": 2, "student": 1, "interface": "mlp", "before": None, "after": float("nan")},
    ]
    part = alignment_section(files(metrics={"alignment": rows}))
    assert part.finding == "The mean cosine with the targets rose from 0.20 to 0.70."
    assert "(block and mlp)" in part.note


def test_without_alignment_the_step_that_measures_it_is_named() -> None:
    assert "the evaluate step measures it" in alignment_section(files()).missing


def matrix(seed: int, rows: int = 3, columns: int = 2) -> list[list[float]]:
    dice = random.Random(seed)
    return [[round(dice.random(), 4) for _ in range(columns)] for _ in range(rows)]


def test_the_mean_cka_is_that_of_every_layer_that_a_pair_is_made_of() -> None:
    before, after = matrix(0), matrix(1)
    part = cka_section(files(metrics={"cka": {"before": before, "after": after}}))
    # T1.5 → S1 is made of teacher layers 1 and 2.
    means = [mean([m[0][0], m[1][0], m[2][1]]) for m in (before, after)]
    verb = "rose" if means[1] > means[0] else "fell"
    expected = f"The mean CKA of the paired layers {verb} from {means[0]:.2f} to {means[1]:.2f}."
    assert part.finding == expected
    for title, values in (("Untouched student", before), ("Trained student", after)):
        assert f"T3, S2: {values[2][1]:.2f}" in drawings(part)[title]


def test_pairs_outside_the_matrix_and_a_run_without_pairs_still_make_maps() -> None:
    small = {"before": matrix(0, rows=2), "after": matrix(1, rows=2)}
    part = cka_section(files(metrics={"cka": small}))
    assert part.finding.startswith("The mean CKA of the paired layers ")
    part = cka_section(files(metrics={"cka": small}, pairs=None))
    assert part.finding == "How alike each student layer is to each teacher layer."


@given(st.lists(st.integers(0, 10_000), min_size=4, max_size=4))
def test_both_maps_share_a_scale_between_tenths_that_holds_every_value(numbers: list[int]) -> None:
    values = [n / 10_000 for n in numbers]
    part = cka_section(files(metrics={"cka": {"before": [values[:2]], "after": [values[2:]]}}))
    (legend,) = (block for block in part.blocks if isinstance(block, HeatLegend))
    low, high = float(legend.low), float(legend.high)
    assert min(values) - 0.1 < low <= min(values) and max(values) <= high <= max(max(values), low) + 0.1


@pytest.mark.parametrize("after", [None, [], [[]], [[0.1, 0.2], [0.3]]])
def test_a_matrix_that_is_missing_empty_or_ragged_is_not_drawn(after: Any) -> None:
    part = cka_section(files(metrics={"cka": {"before": matrix(0), "after": after}}))
    assert "evaluation.cka_rows is above 0" in part.missing and not part.blocks


def test_without_a_layer_loss_no_layer_is_said_to_have_a_target() -> None:
    plan = PLAN | {"interface": None}
    part = layers_section(files(pairs=plan))
    assert (
        "the recipe's loss is at the output alone" in part.note and "Supervised activation" not in part.note
    )
    assert "Layers at equal depth" in drawings(part)
    assert "output alone" in str(alignment_section(files(pairs=plan)).missing)
    # A plan of an earlier version says nothing of it.
    older = {k: v for k, v in PLAN.items() if k != "interface"}
    assert "output alone" not in layers_section(files(pairs=older)).note
    assert "the evaluate step measures it" in str(alignment_section(files(pairs=older)).missing)
