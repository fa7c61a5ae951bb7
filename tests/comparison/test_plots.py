"""Plots of many methods: marks stand where the numbers say, and nothing hides the default."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semalign.comparison.plots import Mark, Point, scatter, share_rows


def parsed(drawing: str) -> ET.Element:
    node = ET.fromstring(drawing)
    assert node.tag == "svg" and node.get("role") == "img" and node.get("aria-label")
    return node


def of_class(node: ET.Element, tag: str, kind: str) -> list[ET.Element]:
    return [e for e in node.iter(tag) if kind in (e.get("class") or "").split()]


def at(value: str | None) -> float:
    """A position in percent."""
    assert value is not None and value.endswith("%")
    return float(value[:-1])


def test_a_share_stands_between_untouched_and_teacher_as_far_as_it_is() -> None:
    node = parsed(share_rows([("ours 1", [Mark(0.25, 0.1, 0.5, "c-after")])], "gap"))
    untouched, teacher = (at(line.get("x1")) for line in of_class(node, "line", "mark"))
    (whisker,) = of_class(node, "line", "whisker")
    (dot,) = of_class(node, "circle", "c-after")
    places = [at(whisker.get("x1")), at(dot.get("cx")), at(whisker.get("x2"))]
    shares = [(place - untouched) / (teacher - untouched) for place in places]
    assert shares == pytest.approx([0.1, 0.25, 0.5], abs=1e-3)
    assert "ours 1, equal rows: 25% (95% interval 10% to 50%)" in "".join(node.itertext())


@given(st.lists(st.floats(-30, 3), min_size=1, max_size=6))
def test_all_shares_stay_inside_and_ruined_students_stand_at_the_left_end(values: list[float]) -> None:
    rows = [(f"m{n}", [Mark(v, v - 0.1, v + 0.1, "c-base1")]) for n, v in enumerate(values)]
    node = parsed(share_rows(rows, "gap"))
    untouched, teacher = (at(line.get("x1")) for line in of_class(node, "line", "mark"))
    dots = [at(dot.get("cx")) for dot in of_class(node, "circle", "c-base1")]
    assert all(0 <= x <= 100 for x in (*dots, untouched, teacher)) and untouched < teacher
    for value, dot in zip(values, dots, strict=True):
        if value < -1.1:
            assert dot == 0
        elif value >= -1:
            assert (dot - untouched) / (teacher - untouched) == pytest.approx(value, abs=2e-3)


def test_marks_at_equal_time_are_hollow_and_beside_those_at_equal_rows() -> None:
    marks = [Mark(0.5, 0.4, 0.6, "c-base1"), Mark(0.3, 0.2, 0.4, "c-base1", is_hollow=True)]
    node = parsed(share_rows([("kl 1", marks), ("ours 2", [Mark(0.4, 0.4, 0.4, "c-after")])], "gap"))
    (hollow,), filled = of_class(node, "circle", "hollow"), of_class(node, "circle", "fill")
    assert len(filled) == 2 and hollow.get("cy") != filled[0].get("cy")
    assert "kl 1, equal time: 30%" in "".join(node.itertext())
    # Rows are apart by more than marks of one row are.
    heights = sorted(float(e.get("cy") or 0) for e in (hollow, *filled))
    assert all(b - a > 4 for a, b in pairwise(heights))


def test_a_method_without_marks_keeps_its_row() -> None:
    node = parsed(share_rows([("gone", []), ("ours", [Mark(0.4, 0.4, 0.4, "c-after")])], "gap"))
    assert "gone" in "".join(node.itertext()) and len(list(node.iter("circle"))) == 1


def spots(drawing: str) -> dict[str, tuple[float, float]]:
    """Where the numbered points of a plot are: across in percent, down in pixels."""
    node = parsed(drawing)
    found = {}
    for place in node.iter("svg"):
        if (group := place.find("g")) is not None and (title := group.find("title")) is not None:
            found[title.text or ""] = (at(place.get("x")), float(place.get("y") or 0))
    return found


POINTS = [
    Point(1, 1.0, 50.0, "one", "c-after"),
    Point(2, 10.0, 20.0, "two", "c-base1"),
    Point(3, 100.0, 80.0, "three", "c-base1", is_hollow=True),
]


def test_points_go_right_and_up_with_their_figures() -> None:
    found = spots(scatter(POINTS, ("x", "y"), "plot"))
    assert found["one"][0] < found["two"][0] < found["three"][0]
    assert found["three"][1] < found["one"][1] < found["two"][1], "pixels count from the top"
    across = (found["two"][0] - found["one"][0]) / (found["three"][0] - found["one"][0])
    assert across == pytest.approx(9 / 99, abs=1e-3)


def test_a_logarithmic_axis_sets_equal_factors_at_equal_distances() -> None:
    found = spots(scatter(POINTS, ("seconds", "y"), "plot", log_x=True))
    assert found["two"][0] - found["one"][0] == pytest.approx(found["three"][0] - found["two"][0], abs=0.01)


def test_the_default_is_drawn_over_the_others() -> None:
    assert list(spots(scatter(POINTS, ("x", "y"), "plot")))[-1] == "one"


def test_points_carry_their_numbers_and_axes_their_names() -> None:
    node = parsed(scatter(POINTS, ("seconds <s>", "share, %"), "a & b"))
    said = [e.text for e in node.iter("text")]
    assert {"1", "2", "3", "seconds <s>", "share, %"} <= set(said) and node.get("aria-label") == "a & b"
    assert len(of_class(node, "circle", "hollow")) == 1 and len(of_class(node, "line", "zero")) == 1


def test_one_point_alone_is_drawn() -> None:
    for log_x in (False, True):
        assert len(spots(scatter([Point(1, 2.0, 0.0, "only", "c-after")], ("x", "y"), "p", log_x=log_x))) == 1
