"""Drawings of layers: positions by depth, blends between two layers, legible at 80 layers."""

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from semalign.maths.pairing import LayerPair
from semalign.report import stacks
from semalign.report.stacks import HeatScale


def of_class(drawing: str, tag: str, kind: str) -> list[ET.Element]:
    return [e for e in ET.fromstring(drawing).iter(tag) if kind in (e.get("class") or "").split()]


def test_a_blend_starts_between_its_two_teacher_layers() -> None:
    link = LayerPair(2, 2, 0.5)
    drawing = stacks.pairing((4, 2), [link], critical=[2], trained=[2], name="pairs")
    line = of_class(drawing, "line", "link")[0]
    assert (line.get("x1"), line.get("x2")) == (
        "50%",
        "75%",
    )  # centres of layers 2 and 3 of 4 are 37.5% and 62.5%
    assert len(of_class(drawing, "rect", "paired")) == 2 and len(of_class(drawing, "rect", "trained")) == 1
    assert link.label == "T2.5 → S2" and link.blend == {2: 0.5, 3: 0.5}


@pytest.mark.parametrize(("fraction", "layer"), [(0.0, 2), (1.0, 3)])
def test_a_whole_layer_is_no_blend(fraction: float, layer: int) -> None:
    link = LayerPair(2, 1, fraction)
    assert list(link.blend) == [layer] and link.label == f"T{layer} → S1"


def test_the_last_layer_blended_with_a_weight_stays_inside() -> None:
    drawing = stacks.pairing((2, 2), [LayerPair(2, 2, 0.3)], critical=[], trained=[2], name="pairs")
    assert of_class(drawing, "line", "link")[0].get("x1") == "75%"


def test_bars_are_as_high_as_their_scores_and_negative_ones_hang() -> None:
    drawing = stacks.attribution_bars(
        {1: 1.0, 2: 0.5, 3: -0.5}, paired=[1], critical=[2], name="scores", height=150
    )
    bars = of_class(drawing, "rect", "fill")
    assert [float(bar.get("height") or 0) for bar in bars] == [100, 50, 50]
    assert [float(bar.get("y") or 0) for bar in bars] == [0, 50, 100]
    assert "c-teacher" in (bars[0].get("class") or "") and "critical" in (bars[1].get("class") or "")


def test_scores_that_are_all_zero_are_drawn() -> None:
    assert len(of_class(stacks.attribution_bars({1: 0.0, 2: 0.0}, [], [], "scores"), "rect", "fill")) == 2


def test_movement_hangs_below_its_student_layer() -> None:
    bar = of_class(stacks.movement_bars({4: 0.1}, 4, "moved", height=60), "rect", "fill")[0]
    assert float((bar.get("x") or "").rstrip("%")) > 75 and bar.get("height") == "60"


@pytest.mark.parametrize("count", [1, 4, 14, 24, 48, 80, 126])
def test_layer_numbers_fit_a_phone(count: int) -> None:
    drawing = stacks.pairing((count, count), [], critical=[], trained=[], name="pairs")
    ticks = of_class(drawing, "text", "tick")
    spots = sorted({float((tick.get("x") or "").rstrip("%")) for tick in ticks})
    assert all((b - a) / 100 * 262 >= 7 * len(str(count)) for a, b in pairwise(spots)), (
        "262 px are left at 360"
    )


def test_eighty_layers_keep_visible_boxes() -> None:
    links = [LayerPair(k, k) for k in range(1, 81)]
    drawing = stacks.pairing((80, 80), links, critical=[80], trained=range(1, 81), name="pairs")
    boxes = of_class(drawing, "rect", "box")
    assert len(boxes) == 160 and all(
        float((b.get("width") or "").rstrip("%")) > 0.8 * 100 / 80 for b in boxes
    )
    assert len(of_class(drawing, "line", "link")) == 80


def test_heat_map_counts_layers_from_the_bottom_left_and_tells_the_change() -> None:
    scale = HeatScale(0.0, 1.0)
    after, before = [[0.2, 0.4], [0.6, 1.0]], [[0.2, 0.5], [0.5, None]]
    drawing = stacks.heat_map(after, scale, before_ts=before, pairs=[(2, 1)], name="cka")
    cells = {cell[0].text: cell for cell in ET.fromstring(drawing).iter("path")}
    assert set(cells) == {
        "T1, S1: 0.20 (+0.00)",
        "T1, S2: 0.40 (−0.10)",
        "T2, S1: 0.60 (+0.10)",
        "T2, S2: 1.00",
    }
    assert cells["T1, S1: 0.20 (+0.00)"].get("d") == "M0 1h1v1h-1z"
    assert cells["T2, S2: 1.00"].get("d") == "M1 0h1v1h-1z" and cells["T2, S2: 1.00"].get("class") == "q20"
    frame = of_class(drawing, "rect", "frame")[0]
    assert (frame.get("x"), frame.get("y")) == ("0", "0")


def test_small_maps_print_their_values_and_large_ones_do_not() -> None:
    scale = HeatScale(0.0, 1.0)
    assert len(of_class(stacks.heat_map([[0.1] * 4] * 6, scale, name="cka"), "text", "cell")) == 24
    large = stacks.heat_map([[0.1] * 80] * 80, scale, name="cka")
    assert not of_class(large, "text", "cell") and len(large) < 700_000
