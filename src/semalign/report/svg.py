"""SVG text: elements with escaping, scales and ticks.

Horizontal positions are percentages of the drawing's width and vertical ones are pixels, so a plot fills any column
while its text keeps its size. Labels stand in margins outside the drawing (overflow is visible).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

Attributes = Mapping[str, object]

_CONTROL = {code: "\ufffd" for code in range(32) if code not in (9, 10, 13)}


def text(value: str) -> str:
    """`value` escaped; characters that XML forbids become the replacement character."""
    return escape(value.translate(_CONTROL))


def el(tag: str, attributes: Attributes, *children: str) -> str:
    """One element. Children are markup already; attribute values are escaped here."""
    parts = "".join(f" {name}={quoteattr(_value(value))}" for name, value in attributes.items())
    return f"<{tag}{parts}>{''.join(children)}</{tag}>" if children else f"<{tag}{parts}/>"


def title(value: str) -> str:
    """Hover text of the element it stands in."""
    return el("title", {}, text(value))


def label(value: str, x: str | float, y: float, kind: str = "") -> str:
    """A text element; `kind` is its class."""
    return el("text", {"x": x, "y": y} | ({"class": kind} if kind else {}), text(value))


def pct(value: float) -> str:
    """A percentage coordinate."""
    return f"{round(value, 3):g}%"


def drawing(
    parts: Iterable[str], *, height: float, name: str, margin: tuple[int, int] = (0, 0), kind: str = ""
) -> str:
    """The outer element: as wide as its column less the left and right `margin` in pixels."""
    left, right = margin
    style = f"margin-left:{left}px;width:calc(100% - {left + right}px);height:{height:g}px"
    attributes = {"class": f"plot {kind}".strip(), "role": "img", "aria-label": name, "style": style}
    return el("svg", attributes, *parts)


def at(x: float, y: float, *parts: str) -> str:
    """A group whose origin is x percent across and y pixels down."""
    return el("svg", {"x": pct(x), "y": y, "overflow": "visible"}, *parts)


def _value(value: object) -> str:
    if isinstance(value, str):
        return value.translate(_CONTROL)
    assert isinstance(value, int | float), value
    return f"{round(value, 3):g}"


@dataclass(frozen=True)
class Scale:
    """Maps low..high to 0..100 (percent), linearly or by logarithm."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Position of `value`, in percent; outside values are held at the ends."""
        low, high, here = (
            (math.log10(v) for v in (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
        return min(100.0, max(0.0, 100 * (here - low) / (high - low)))

    def ticks(self, wanted: int = 4) -> list[float]:
        """Round values within the scale."""
        if self.log:
            return _log_ticks(self.low, self.high, wanted)
        step = _step((self.high - self.low) / max(1, wanted))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(k * step, 12) for k in range(first, last + 1)]


def fitted(values: Sequence[float], *, include: Sequence[float] = (), wanted: int = 4) -> Scale:
    """A linear scale with round ends around `values` and `include`."""
    numbers = [*values, *include] or [0.0, 1.0]
    low, high = min(numbers), max(numbers)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = abs(high) / 2 or 0.5
        low, high = low - pad * (low not in include), high + pad
    step = _step((high - low) / wanted)
    return Scale(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step)


def fitted_log(values: Sequence[float]) -> Scale:
    """A logarithmic scale around positive `values`, a little wider than they are, and wide enough for a round number."""
    low, high = min(values), max(values)
    room = max(1.1, 1.6 / math.sqrt(high / low))
    return Scale(low / room, high * room, log=True)


def _step(raw: float) -> float:
    """The round step (1, 2 or 5 times a power of ten) at or above `raw`."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if raw <= power * factor * (1 + 1e-9))


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(found) >= min(3, wanted):
            break
    stride = max(1, math.ceil(len(found) / (2 * wanted)))
    return found[::stride]
