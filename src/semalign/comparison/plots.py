"""Plots of many methods as SVG text: shares of a gap with intervals, and one figure against another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from semalign.report import svg
from semalign.report.svg import Scale, el, pct
from semalign.report.words import percent

FLOOR = -1.0
"""Shares below this are drawn at it: how far a student was ruined matters less than what the others reached."""


@dataclass(frozen=True)
class Mark:
    """A value with its interval; `kind` is the colour class, hollow marks are those at equal time."""

    value: float
    low: float
    high: float
    kind: str
    is_hollow: bool = False


@dataclass(frozen=True)
class Point:
    """One method in a plot of one figure against another, shown by its number."""

    number: int
    x: float
    y: float
    words: str
    kind: str
    is_hollow: bool = False


def share_rows(rows: Sequence[tuple[str, Sequence[Mark]]], name: str) -> str:
    """A row per method, with lines at 0 (untouched student) and 1 (teacher)."""
    row, head = 24, 22
    ends = [e for _, marks in rows for m in marks for e in (m.low, m.high)]
    scale = Scale(max(FLOOR, min([0.0, *ends])) - 0.04, max([1.0, *ends]) + 0.02)
    bottom = head + row * len(rows)
    parts = [
        el(
            "line",
            {"x1": pct(scale.at(x)), "x2": pct(scale.at(x)), "y1": head - 4, "y2": bottom, "class": kind},
        )
        + svg.label(word, pct(scale.at(x)), head - 9, f"{kind} mid")
        for x, word, kind in ((0.0, "untouched", "mark"), (1.0, "teacher", "mark teacher"))
    ]
    parts += [svg.label(percent(t), pct(scale.at(t)), bottom + 15, "tick mid") for t in scale.ticks(4)]
    for index, (label, marks) in enumerate(rows):
        y = head + row * index + row / 2
        kind = marks[0].kind if marks else ""
        parts.append(svg.label(label, -10, y + 4, f"name {kind}"))
        shift = 0 if len(marks) < 2 else 4
        parts += [_mark(m, scale, y + (shift if m.is_hollow else -shift), label) for m in marks]
    return svg.drawing(parts, height=bottom + 22, name=name, margin=(158, 20))


def _mark(mark: Mark, scale: Scale, y: float, label: str) -> str:
    budget = "equal time" if mark.is_hollow else "equal rows"
    words = (
        f"{label}, {budget}: {percent(mark.value)} (95% interval {percent(mark.low)} to {percent(mark.high)})"
    )
    ends = {"x1": pct(scale.at(mark.low)), "x2": pct(scale.at(mark.high)), "y1": y, "y2": y}
    dot = {"cx": pct(scale.at(mark.value)), "cy": y, "r": 4 if mark.is_hollow else 5}
    shape = f"{'hollow' if mark.is_hollow else 'fill'} {mark.kind}"
    return el(
        "g",
        {},
        svg.title(words),
        el("line", ends | {"class": f"whisker {mark.kind}"}),
        el("circle", dot | {"class": shape}),
    )


def scatter(points: Sequence[Point], axes: tuple[str, str], name: str, *, log_x: bool = False) -> str:
    """One figure (up) against another (right); each point is a method's number."""
    height = 300
    xs, ys = [p.x for p in points], [p.y for p in points]
    x_scale = svg.fitted_log(xs) if log_x else svg.fitted(xs, include=(0.0,))
    y_scale = svg.fitted(ys, include=(0.0,))
    parts = []
    for tick in y_scale.ticks():
        y = height * (1 - y_scale.at(tick) / 100)
        kind = "grid zero" if tick == 0 else "grid"
        parts.append(el("line", {"x1": 0, "x2": "100%", "y1": y, "y2": y, "class": kind}))
        parts.append(svg.label(f"{tick:g}".replace("-", "−"), -8, y + 4, "tick end"))
    for tick in x_scale.ticks():
        x = pct(x_scale.at(tick))
        parts.append(el("line", {"x1": x, "x2": x, "y1": 0, "y2": height, "class": "grid"}))
        parts.append(svg.label(f"{tick:g}".replace("-", "−"), x, height + 16, "tick mid"))
    parts.append(svg.label(axes[1], 0, -8, "tick start"))
    parts.append(svg.label(axes[0], "100%", height + 32, "tick end"))
    # The default last, so that nothing hides it.
    for point in sorted(points, key=lambda p: p.kind == "c-after"):
        parts.append(_numbered(point, x_scale.at(point.x), height * (1 - y_scale.at(point.y) / 100)))
    return svg.drawing(parts, height=height + 40, name=name, margin=(46, 16))


def _numbered(point: Point, x: float, y: float) -> str:
    shape = f"hollow {point.kind}" if point.is_hollow else f"fill {point.kind}"
    return svg.at(
        x,
        y,
        el(
            "g",
            {},
            svg.title(point.words),
            el("circle", {"r": 9, "class": shape}),
            svg.label(str(point.number), 0, 4, "mid" if point.is_hollow else "mid on"),
        ),
    )
