"""Scales, ticks and escaping."""

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semalign.report import svg
from semalign.report.svg import Scale

NUMBERS = st.floats(-1e6, 1e6).map(lambda v: round(v, 4))


@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_a_fitted_scale_holds_its_values_and_has_readable_ticks(values: list[float]) -> None:
    scale = svg.fitted(values)
    slack = 1e-6 * max(1.0, *map(abs, values))
    assert scale.low <= min(values) + slack and scale.high >= max(values) - slack
    assert 2 <= len(scale.ticks()) <= 7


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_a_logarithmic_scale_holds_its_values_and_a_round_number(values: list[float]) -> None:
    scale = svg.fitted_log(values)
    assert scale.ticks()
    assert all(0 < scale.at(value) < 100 for value in values)
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks())


def test_positions_are_percentages() -> None:
    assert Scale(-1, 1).at(0) == 50
    assert Scale(0, 1).at(7) == 100
    assert Scale(1, 100, log=True).at(10) == pytest.approx(50)


def test_ticks_are_round() -> None:
    assert Scale(0, 90).ticks(5) == [0, 20, 40, 60, 80]
    assert Scale(0.0, 1.0).ticks(4) == [0, 0.5, 1.0]
    assert svg.fitted([0.13, 0.87]) == Scale(0.0, 1.0)


@given(st.text())
def test_any_text_survives_in_content_and_attributes(value: str) -> None:
    if any(0xD800 <= ord(c) <= 0xDFFF or ord(c) in (0xFFFE, 0xFFFF) for c in value):
        return
    node = ET.fromstring(svg.el("g", {"aria-label": value}, svg.title(value)))
    clean = "".join("\ufffd" if ord(c) < 32 and c not in "\t\n\r" else c for c in value)
    assert (node[0].text or "") == clean.replace("\r\n", "\n").replace("\r", "\n")


def test_markup_in_text_is_escaped() -> None:
    made = svg.el("g", {"aria-label": '"><script>'}, svg.text("<b>&"))
    assert "<script>" not in made and "<b>" not in made
