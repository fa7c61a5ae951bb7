"""Figures of a comparison as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from semalign.report.words import NBSP, number, percent

Figures = Mapping[str, Any]


def shown(figure: Figures, key: str, write: Callable[[float | None], str] = percent) -> str:
    """58% [52, 63]; the ends are in the value's unit."""
    ends = figure.get(f"{key}_interval")
    value = write(figure.get(key))
    return f"{value} [{_bare(write(ends[0]))},{NBSP}{_bare(write(ends[1]))}]" if ends else value


def _bare(value: str) -> str:
    return value.removesuffix("%").removeprefix("+")


def runs_of(method: Figures) -> str:
    """3 seeds."""
    return f"{method['seeds']} seed{'s' * (method['seeds'] != 1)}"


def points(value: float | None) -> str:
    """A change in percentage points, with its sign."""
    if value is None:
        return number(None)
    rounded = round(value, 1)
    return ("+" if rounded > 0 else "") + number(rounded, 1)


MEASURES: Mapping[str, tuple[str, Callable[[float | None], str], str]] = {
    "accuracy_gap_closed": ("closes ", percent, " of the accuracy gap"),
    "gain": ("wins ", points, " points of right answers"),
    "kl_gap_closed": ("closes ", percent, " of the KL gap"),
}
"""What methods are ranked by, the first that was measured: how it is written, and the headline's words around it."""
