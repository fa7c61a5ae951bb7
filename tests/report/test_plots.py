"""Drawings of runs, steps and curves: well-formed, and with the marks where the numbers say."""

import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from semalign.report import plots
from semalign.report.plots import Bar, Series


def parsed(drawing: str) -> ET.Element:
    node = ET.fromstring(drawing)
    assert node.tag == "svg" and node.get("role") == "img" and node.get("aria-label")
    return node


def of_class(node: ET.Element, tag: str, kind: str) -> list[ET.Element]:
    return [e for e in node.iter(tag) if kind in (e.get("class") or "").split()]


def percentage(value: str | None) -> float:
    assert value is not None and value.endswith("%")
    return float(value[:-1])


def test_gap_bars_reach_from_nothing_to_the_share() -> None:
    node = parsed(
        plots.gap_bars([Bar("Ours", 0.5, "50%", "c-after"), Bar("Other", 0.25, "25%", "c-base1")], "gap")
    )
    ours, other = of_class(node, "rect", "c-after")[0], of_class(node, "rect", "c-base1")[0]
    assert percentage(ours.get("width")) == 50 and percentage(other.get("width")) == 25
    assert percentage(ours.get("x")) == percentage(other.get("x")) == 0


def test_gap_bars_beyond_either_end_stay_inside_and_the_teacher_line_moves() -> None:
    bars = [Bar("Ours", 1.5, "150%", "c-after"), Bar("Other", -0.5, "−50%", "c-base1")]
    node = parsed(plots.gap_bars(bars, "gap"))
    zero, teacher = (percentage(line.get("x1")) for line in of_class(node, "line", "mark"))
    ours, other = of_class(node, "rect", "c-after")[0], of_class(node, "rect", "c-base1")[0]
    assert percentage(ours.get("x")) == pytest.approx(zero, abs=0.01)
    assert percentage(ours.get("width")) == pytest.approx(1.5 * (teacher - zero), abs=0.01)
    assert percentage(other.get("x")) + percentage(other.get("width")) == pytest.approx(zero, abs=0.01)
    assert (
        percentage(other.get("x")) >= 0 and percentage(ours.get("x")) + percentage(ours.get("width")) <= 100
    )


def test_intervals_and_the_shaded_gap() -> None:
    bar = Bar("Ours", 0.5, "50%", "c-after", 0.4, 0.65)
    node = parsed(plots.interval_rows([bar], (0.3, 0.8), "task"))
    whisker, band = of_class(node, "line", "whisker")[0], of_class(node, "rect", "band")[0]
    assert (whisker.get("x1"), whisker.get("x2")) == ("40%", "65%")
    assert (band.get("x"), band.get("width")) == ("30%", "50%")
    assert "40.0% to 65.0%" in "".join(node.itertext())


def test_contenders_differ_by_shape_and_not_by_colour_alone() -> None:
    kinds = ("c-before", "c-after", "c-teacher", "c-base1")
    marks = []
    for kind in kinds:
        node = parsed(plots.interval_rows([Bar("x", 0.5, "50%", kind)], None, "task"))
        shape = next(
            e for e in node.iter() if kind in (e.get("class") or "") and e.tag in ("circle", "path", "rect")
        )
        marks.append((shape.tag, (shape.get("class") or "").split()[0]))
    assert len(set(marks)) == len(kinds)


@pytest.mark.parametrize("rows", [1, 80])
def test_dumbbells_have_a_row_a_pair(rows: int) -> None:
    node = parsed(plots.dumbbells([(f"T{k} → S{k}", 0.1, 0.9) for k in range(rows)], "alignment"))
    assert len(of_class(node, "circle", "c-after")) == len(of_class(node, "circle", "c-before")) == rows
    heights = sorted(float(e.get("cy") or 0) for e in of_class(node, "circle", "c-after"))
    assert all(b - a >= 14 for a, b in pairwise(heights)), "text of 12 px must not collide"


def test_a_pair_without_values_keeps_its_row() -> None:
    node = parsed(plots.dumbbells([("T1 → S1", None, None), ("T2 → S2", -0.1, 0.3)], "alignment"))
    assert "T1 → S1" in "".join(node.itertext()) and len(of_class(node, "circle", "c-after")) == 1


def test_curves_turn_logarithmic_only_for_a_wide_positive_range() -> None:
    steps = [1.0, 2.0, 3.0]
    assert "logarithmic" in (
        parsed(plots.curves([Series("loss", steps, [100.0, 10.0, 1.0], "c-after")], "l")).get("aria-label")
        or ""
    )
    for values in ([3.0, 2.0, 1.0], [100.0, 0.0, 1.0], [-1.0, 50.0, 2.0]):
        node = parsed(plots.curves([Series("loss", steps, values, "c-after")], "l"))
        assert "logarithmic" not in (node.get("aria-label") or "")


def test_a_long_curve_is_averaged_and_keeps_its_mean() -> None:
    values = [math.sin(k) + 2 for k in range(2400)]
    node = parsed(plots.curves([Series("loss", list(range(2400)), values, "c-after")], "l"))
    points = of_class(node, "polyline", "curve")[0].get("points")
    assert points is not None and len(points.split()) == plots.MAX_POINTS


@pytest.mark.parametrize("values", [[1.0], [0.0], [0.0, 0.0], [2.5, 2.5]])
def test_degenerate_curves_are_drawn(values: list[float]) -> None:
    node = parsed(
        plots.curves([Series("loss", [float(k + 1) for k in range(len(values))], values, "c-after")], "l")
    )
    assert of_class(node, "circle" if len(values) == 1 else "polyline", "c-after")


def test_mini_bars_are_shares_of_the_longest() -> None:
    assert 'width="25%"' in plots.mini_bar(1.0, 4.0, "c-after")
    assert 'width="0%"' in plots.mini_bar(None, 4.0, "c-after") and 'width="0%"' in plots.mini_bar(
        1.0, 0.0, "c-after"
    )
