"""Plots of runs, steps and curves as SVG text. Pure functions of numbers; colours are CSS classes (c-...).

Layer diagrams are in `stacks`. Every mark has a hover title, every drawing an accessible name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from semalign.report import svg
from semalign.report.svg import Scale, el, pct
from semalign.report.words import number

MAX_POINTS = 240
"""A longer curve is drawn as means over equal stretches."""


@dataclass(frozen=True)
class Bar:
    """One labelled value of one run or step."""

    label: str
    value: float | None
    shown: str
    """The value as text."""
    kind: str
    """Colour class."""
    low: float | None = None
    high: float | None = None
    """Ends of the interval, where there is one."""


@dataclass(frozen=True)
class Series:
    """One curve: steps and values of equal length."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    kind: str
    """Class that sets colour and dashes."""


def gap_bars(bars: Sequence[Bar], name: str) -> str:
    """Shares of a gap: bars from 0 (untouched student), with lines at 0 and at 1 (teacher)."""
    row, head = 30, 24
    scale = _share_scale([bar.value for bar in bars if bar.value is not None])
    bottom = head + row * len(bars)
    parts = [
        _rule(scale.at(0), head - 4, bottom, "mark", "untouched", "end" if scale.at(0) > 35 else "start"),
        _rule(scale.at(1), head - 4, bottom, "mark teacher", "teacher", "mid"),
    ]
    for index, bar in enumerate(bars):
        y = head + row * index + row / 2
        parts.append(_gutter_texts(bar, y))
        if bar.value is not None:
            ends = sorted((scale.at(0), scale.at(bar.value)))
            thick = 16 if bar.kind == "c-after" else 8
            box = {"x": pct(ends[0]), "y": y - thick / 2, "width": pct(ends[1] - ends[0]), "height": thick}
            parts.append(
                el(
                    "rect",
                    box | {"rx": 1.5, "class": f"fill {bar.kind}"},
                    svg.title(f"{bar.label}: {bar.shown}"),
                )
            )
    return svg.drawing(parts, height=bottom + 4, name=name, margin=(116, 52))


def _share_scale(values: Sequence[float]) -> Scale:
    low, high = min([0.0, *values]), max([1.0, *values])
    return Scale(low * 1.04, max(1.0, high * 1.04) if high > 1 else 1.0)


def interval_rows(bars: Sequence[Bar], band: tuple[float, float] | None, name: str) -> str:
    """Accuracies between 0 and 1 with their intervals; `band` is the gap, shaded."""
    row, scale = 26, Scale(0.0, 1.0)
    bottom = row * len(bars) + 4
    parts = []
    if band is not None:
        left, right = sorted(scale.at(end) for end in band)
        parts.append(
            el(
                "rect",
                {"x": pct(left), "y": 0, "width": pct(right - left), "height": bottom, "class": "band"},
            )
        )
    parts += [_rule(scale.at(tick), 0, bottom, "grid") for tick in (0, 0.25, 0.5, 0.75, 1)]
    parts += [svg.label(f"{tick:.0%}", pct(100 * tick), bottom + 16, "tick mid") for tick in (0, 0.5, 1)]
    for index, bar in enumerate(bars):
        y = row * index + row / 2 + 2
        parts.append(_gutter_texts(bar, y))
        if bar.value is not None:
            parts.append(_interval(bar, scale, y))
    return svg.drawing(parts, height=bottom + 24, name=name, margin=(116, 48))


def _interval(bar: Bar, scale: Scale, y: float) -> str:
    """A dot with a whisker; teacher and untouched student also differ from the rest by shape."""
    assert bar.value is not None
    parts, words = [], f"{bar.label}: {bar.shown}"
    if bar.low is not None and bar.high is not None:
        ends = {"x1": pct(scale.at(bar.low)), "x2": pct(scale.at(bar.high)), "y1": y, "y2": y}
        parts.append(el("line", ends | {"class": f"whisker {bar.kind}"}))
        words += f" (95% interval {bar.low:.1%} to {bar.high:.1%})"
    shapes = {
        "c-teacher": el("path", {"d": "M0-6.5 6.5 0 0 6.5-6.5 0z", "class": f"fill {bar.kind}"}),
        "c-before": el("circle", {"r": 5, "class": f"hollow {bar.kind}"}),
        "c-after": el("circle", {"r": 6.5, "class": f"fill {bar.kind}"}),
    }
    other = el("rect", {"x": -4.5, "y": -4.5, "width": 9, "height": 9, "class": f"fill {bar.kind}"})
    parts.append(svg.at(scale.at(bar.value), y, shapes.get(bar.kind, other)))
    return el("g", {}, svg.title(words), *parts)


def mini_bar(value: float | None, longest: float, kind: str) -> str:
    """A thin bar for a table cell; decoration beside its number, so hidden from readers."""
    share = 0.0 if value is None or longest <= 0 else min(1.0, max(0.0, value / longest))
    bar = el("rect", {"width": pct(100 * share), "height": 4, "rx": 1, "class": f"fill {kind}"})
    return el("svg", {"class": "mini", "aria-hidden": "true"}, bar)


def dumbbells(rows: Sequence[tuple[str, float | None, float | None]], name: str) -> str:
    """Cosine before and after per pair: (label, before, after)."""
    row = 28 if len(rows) <= 16 else 15
    values = [value for _, *both in rows for value in both if value is not None]
    scale = svg.fitted(values, include=(0.0, 1.0) if min(values, default=0) >= 0 else (-0.2, 1.0))
    bottom = row * len(rows) + 4
    parts = []
    for tick in scale.ticks():
        parts.append(_rule(scale.at(tick), 0, bottom, "grid zero" if tick == 0 else "grid"))
        parts.append(svg.label(number(tick, 1), pct(scale.at(tick)), bottom + 16, "tick mid"))
    parts += [_dumbbell(row_, scale, row * index + row / 2 + 2, row) for index, row_ in enumerate(rows)]
    return svg.drawing(parts, height=bottom + 24, name=name, margin=(92, 48))


def _dumbbell(row: tuple[str, float | None, float | None], scale: Scale, y: float, height: int) -> str:
    label, before, after = row
    big = height > 20
    parts = [svg.title(f"{label}: cosine {number(before)} before, {number(after)} after")]
    parts.append(svg.label(label, -12, y + 4, "name"))
    if before is not None and after is not None:
        ends = {"x1": pct(scale.at(before)), "x2": pct(scale.at(after)), "y1": y, "y2": y}
        parts.append(el("line", ends | {"class": "whisker c-after"}))
    if before is not None:
        dot = {"cx": pct(scale.at(before)), "cy": y, "r": 5 if big else 3.5, "class": "hollow c-before"}
        parts.append(el("circle", dot))
    if after is not None:
        dot = {"cx": pct(scale.at(after)), "cy": y, "r": 6 if big else 4, "class": "fill c-after"}
        parts.append(el("circle", dot))
        # Fixed beside the drawing rather than beside its dot: a column of numbers can be read down.
        parts.append(
            el("svg", {"x": "100%", "overflow": "visible"}, svg.label(number(after, 2), 12, y + 4, "value"))
        )
    return el("g", {}, *parts)


def curves(series: Sequence[Series], name: str, *, height: int = 170, unit: str = "step") -> str:
    """Curves over the steps (or another unit), on a logarithmic scale when the values are positive and span a factor of 20."""
    thinned = [_thin(one) for one in series]
    values = [value for one in thinned for value in one.values]
    steps = [step for one in thinned for step in one.steps]
    log = min(values) > 0 and max(values) / min(values) >= 20
    y_scale = svg.fitted_log(values) if log else svg.fitted(values)
    x_scale = svg.fitted([max(steps)], include=(0.0,))
    x_scale = Scale(min(0.0, *steps), max(steps)) if max(steps) > 0 else x_scale
    parts = []
    for tick in y_scale.ticks():
        y = height * (1 - y_scale.at(tick) / 100)
        parts.append(el("line", {"x1": 0, "x2": "100%", "y1": y, "y2": y, "class": "grid"}))
        parts.append(svg.label(f"{tick:.4g}".replace("-", "−"), -8, y + 4, "tick end"))
    for index, tick in enumerate(x_scale.ticks(5)):
        anchor = "end" if x_scale.at(tick) > 95 else "mid"
        parts.append(
            svg.label(
                f"{tick:,.0f}" if index else f"{unit} {tick:,.0f}",
                pct(x_scale.at(tick)),
                height + 17,
                f"tick {anchor}",
            )
        )
    parts += [_curve(one, x_scale, y_scale, height) for one in thinned]
    parts.append(_hover_columns(thinned, x_scale, height, unit))
    return svg.drawing(
        parts, height=height + 22, name=name + (", logarithmic" if log else ""), margin=(46, 6)
    )


def _thin(series: Series) -> Series:
    """At most MAX_POINTS points, each the mean of an equal stretch."""
    width = -(-len(series.values) // MAX_POINTS)
    if width <= 1:
        return series
    starts = range(0, len(series.values), width)
    steps = [_mean(series.steps[i : i + width]) for i in starts]
    return Series(series.label, steps, [_mean(series.values[i : i + width]) for i in starts], series.kind)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _curve(series: Series, x_scale: Scale, y_scale: Scale, height: int) -> str:
    points = [(x_scale.at(x), y_scale.at(y)) for x, y in zip(series.steps, series.values, strict=True)]
    if len(points) == 1:
        spot = {"cx": pct(points[0][0]), "cy": height * (1 - points[0][1] / 100), "r": 3.5}
        return el("circle", spot | {"class": f"fill {series.kind}"})
    line = el(
        "polyline",
        {"points": " ".join(f"{x:.2f},{100 - y:.2f}" for x, y in points), "class": f"curve {series.kind}"},
    )
    box = {"width": "100%", "height": height, "viewBox": "0 0 100 100", "preserveAspectRatio": "none"}
    return el("svg", box | {"overflow": "visible"}, line)


def _hover_columns(series: Sequence[Series], x_scale: Scale, height: int, unit: str) -> str:
    """Invisible columns, one per step of the longest curve, that carry the values as hover text."""
    longest = max(series, key=lambda one: len(one.steps))
    known = [(one.label, dict(zip(one.steps, one.values, strict=True))) for one in series]
    width = 100 / len(longest.steps)
    parts = []
    for step in longest.steps:
        words = ", ".join(f"{label} {number(found[step], 4)}" for label, found in known if step in found)
        box = {
            "x": pct(x_scale.at(step) - width / 2),
            "y": 0,
            "width": pct(width),
            "height": height,
            "class": "hover",
        }
        parts.append(el("rect", box, svg.title(f"{unit} {step:,.0f}: {words}")))
    return el("g", {}, *parts)


def _rule(x: float, top: float, bottom: float, kind: str, name: str = "", anchor: str = "") -> str:
    """A vertical line, with a name over it where one is given."""
    line = el("line", {"x1": pct(x), "x2": pct(x), "y1": top, "y2": bottom, "class": kind})
    return line + (svg.label(name, pct(x), top - 6, f"{kind} {anchor}") if name else "")


def _gutter_texts(bar: Bar, y: float) -> str:
    """The label in the left margin and the value in the right one."""
    value = el(
        "svg", {"x": "100%", "overflow": "visible"}, svg.label(bar.shown, 12, y + 4, f"value {bar.kind}")
    )
    return svg.label(bar.label, -12, y + 4, f"name {bar.kind}") + value
