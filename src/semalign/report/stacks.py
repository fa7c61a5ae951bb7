"""Diagrams of layers as SVG text: attribution, pairing, weight movement, CKA. Layers count from 1.

All drawings but the heat map share one horizontal layout, depth from left to right over the full width for either
model, so they can stand above each other: layer k of n covers (k - 1)/n .. k/n.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from semalign.maths.pairing import LayerPair
from semalign.report import svg
from semalign.report.svg import el, pct
from semalign.report.words import number, percent

MARGIN = (62, 4)


def attribution_bars(
    scores: Mapping[int, float],
    paired: Collection[int],
    critical: Collection[int],
    name: str,
    *,
    height: int = 132,
) -> str:
    """One bar a teacher layer, paired ones filled and critical ones outlined; negative scores hang below the line."""
    count = max(scores)
    total = sum(abs(score) for score in scores.values()) or 1.0
    top, bottom = max(0.0, *scores.values()), min(0.0, *scores.values())
    unit = height / ((top - bottom) or 1.0)
    zero = top * unit
    parts = []
    for layer, score in sorted(scores.items()):
        share = abs(score) / total
        box = _span(layer, count) | {"y": zero - max(score, 0) * unit, "height": max(abs(score) * unit, 1.0)}
        kind = ("fill c-teacher" if layer in paired else "fill c-quiet") + (
            " critical" if layer in critical else ""
        )
        words = f"Teacher layer {layer}: score {number(score, 4)}, {percent(share, 1)} of all layers together"
        parts.append(el("rect", box | {"class": kind}, svg.title(words)))
    parts.append(el("line", {"x1": 0, "x2": "100%", "y1": zero, "y2": zero, "class": "grid zero"}))
    largest = max(abs(top), abs(bottom))
    parts.append(
        svg.label(
            number(largest if top >= -bottom else bottom), -10, 11 if top >= -bottom else height, "tick end"
        )
    )
    parts.append(svg.label("score", -10, 27 if top >= -bottom else height - 16, "tick end"))
    return svg.drawing(parts, height=height, name=name, margin=MARGIN)


def pairing(
    depths: tuple[int, int],
    links: Sequence[LayerPair],
    *,
    critical: Collection[int],
    trained: Collection[int],
    name: str,
) -> str:
    """The two stacks as rows of boxes (teacher above) with a line per pair; `depths` are the layer counts."""
    teacher, student = depths
    box, top, gap = 30, 22, 96
    low = top + box + gap
    paired = {layer for link in links for layer in link.blend}
    parts = [svg.label("Teacher", -10, top + box / 2 + 4, "name c-teacher")]
    parts.append(svg.label("Student", -10, low + box / 2 + 4, "name c-after"))
    knots = []
    for link in links:
        start, end = pct(_target(link, teacher)), pct(_centre(link.student, student))
        ends = {"x1": start, "y1": top + box, "x2": end, "y2": low, "class": "link"}
        parts.append(el("line", ends, svg.title(_pair_words(link))))
        knots.append(el("circle", {"cx": start, "cy": top + box, "r": 3, "class": "knot c-teacher"}))
        knots.append(el("circle", {"cx": end, "cy": low, "r": 3, "class": "knot c-after"}))
    for layer in range(1, teacher + 1):
        notes = [word for word, which in (("critical", critical), ("paired", paired)) if layer in which]
        words = ", ".join([f"Teacher layer {layer}", *notes])
        parts.append(_box(layer, teacher, (top, box), " ".join(["box", *notes]), words))
    for layer in range(1, student + 1):
        kind, note = ("box trained", "trained") if layer in trained else ("box", "frozen")
        parts.append(_box(layer, student, (low, box), kind, f"Student layer {layer}, {note}"))
    parts += knots + _numbers(teacher, top - 7) + _numbers(student, low + box + 17)
    return svg.drawing(parts, height=low + box + 24, name=name, margin=MARGIN)


def movement_bars(changes: Mapping[int, float], count: int, name: str, *, height: int = 64) -> str:
    """Relative weight change per student layer, hanging from the student's row."""
    most = max(changes.values(), default=0.0) or 1.0
    parts = [el("line", {"x1": 0, "x2": "100%", "y1": 0.5, "y2": 0.5, "class": "grid zero"})]
    for layer, change in sorted(changes.items()):
        box = _span(layer, count) | {
            "y": 0,
            "height": max(height * change / most, 1.0),
            "class": "fill c-after",
        }
        words = f"Student layer {layer}: weights moved by {percent(change, 2)} of their norm"
        parts.append(el("rect", box, svg.title(words)))
    parts.append(svg.label(percent(most, 1), -10, height, "tick end"))
    parts.append(svg.label("change", -10, height - 16, "tick end"))
    return svg.drawing(parts, height=height + 4, name=name, margin=MARGIN)


def _span(layer: int, count: int) -> dict[str, str | float]:
    """Horizontal extent of a layer, with a gap that stays visible at 80 layers and small at 4."""
    step = 100 / count
    gap = min(0.8, step * 0.16)
    return {"x": pct((layer - 1) * step + gap / 2), "width": pct(step - gap)}


def _centre(layer: float, count: int) -> float:
    return (layer - 0.5) * 100 / count


def _target(link: LayerPair, count: int) -> float:
    """Where a pair starts: at its teacher layer, or between two for a blend."""
    return _centre(min(link.teacher + link.fraction, count), count)


def _pair_words(link: LayerPair) -> str:
    if len(link.blend) == 1:
        return f"Teacher layer {next(iter(link.blend))} → student layer {link.student}"
    shares = " and ".join(f"{percent(weight)} of layer {layer}" for layer, weight in link.blend.items())
    return f"Teacher, {shares} → student layer {link.student}"


def _box(layer: int, count: int, rows: tuple[float, float], kind: str, words: str) -> str:
    place = _span(layer, count) | {"y": rows[0], "height": rows[1], "rx": 2 if count <= 40 else 0.5}
    return el("rect", place | {"class": kind}, svg.title(words))


def _numbers(count: int, y: float) -> list[str]:
    """Layer numbers under or over their layers, as many as fit a phone's width."""
    step = next(step for most, step in ((14, 1), (24, 3), (48, 5), (100, 10), (count, 20)) if count <= most)
    return [svg.label(str(k), pct(_centre(k, count)), y, "tick mid") for k in _shown(count, step)]


def _shown(count: int, step: int) -> list[int]:
    """The first layer and every `step`-th."""
    return [k for k in range(1, count + 1) if k % step == 0 or k == 1]


@dataclass(frozen=True)
class HeatScale:
    """Colour range shared by the heat maps of a page."""

    low: float
    high: float

    def level(self, value: float) -> int:
        """Colour step 0..20."""
        return round(20 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low))))


def heat_map(
    values_ts: Sequence[Sequence[float | None]],
    scale: HeatScale,
    *,
    before_ts: Sequence[Sequence[float | None]] | None = None,
    pairs: Collection[tuple[int, int]] = (),
    name: str,
) -> str:
    """CKA per teacher layer (rows, the first at the bottom) and student layer (columns); pairs are framed."""
    rows, columns = len(values_ts), len(values_ts[0])
    height = min(440, max(150, 34 * rows))
    shown = columns <= 8 and rows <= 16
    cells, labels, frames = [], [], []
    frame = "frame" if max(rows, columns) <= 30 else "frame thin"
    for t, row in enumerate(values_ts):
        for s, value in enumerate(row):
            old = before_ts[t][s] if before_ts else None
            cells.append(_cell(t, s, rows, (value, old), scale))
            if shown and value is not None:
                kind = "cell high" if scale.level(value) > 12 else "cell"
                y = height * (rows - t - 0.5) / rows + 4
                labels.append(svg.label(number(value, 2), pct(_centre(s + 1, columns)), y, kind))
    for t, s in sorted(pairs):
        if t <= rows and s <= columns:
            frames.append(el("rect", {"x": s - 1, "y": rows - t, "width": 1, "height": 1, "class": frame}))
    view = {
        "width": "100%",
        "height": height,
        "viewBox": f"0 0 {columns} {rows}",
        "preserveAspectRatio": "none",
    }
    grid = el("svg", view | {"class": "cells", "shape-rendering": "crispEdges"}, *cells, *frames)
    ticks = (
        svg.label("teacher layer", -44, -8, "tick start"),
        *_side_numbers(rows, height),
        *_numbers(columns, height + 16),
        svg.label("student layer", "50%", height + 33, "tick mid"),
    )
    body = el("svg", {"y": 18, "overflow": "visible"}, grid, *labels, *ticks)
    return svg.drawing([body], height=height + 58, name=name, margin=(48, 4))


def _cell(t: int, s: int, rows: int, values: tuple[float | None, float | None], scale: HeatScale) -> str:
    value, old = values
    words = f"T{t + 1}, S{s + 1}: {number(value, 2)}"
    if value is not None and old is not None:
        words += f" ({'+' if value >= old else '−'}{abs(value - old):.2f})"
    kind = "void" if value is None else f"q{scale.level(value)}"
    return el("path", {"class": kind, "d": f"M{s} {rows - t - 1}h1v1h-1z"}, svg.title(words))


def _side_numbers(count: int, height: float) -> list[str]:
    """Layer numbers left of the rows, the first at the bottom."""
    step = 1 if count <= 24 else 5 if count <= 48 else 10
    spots = [(k, height * (count - k + 0.5) / count + 4) for k in _shown(count, step)]
    return [svg.label(str(k), -8, y, "tick end") for k, y in spots]
