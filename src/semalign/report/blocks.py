"""What a page is made of: plain values that the template prints. No HTML here but finished SVG (Markup)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from markupsafe import Markup

from semalign.report.files import Json
from semalign.report.words import Headline, recipe_name


@dataclass(frozen=True)
class Panel:
    """One drawing with its heading and, at the right of it, a figure to take away."""

    title: str
    svg: Markup
    aside: str = ""


@dataclass(frozen=True)
class Panels:
    """Drawings side by side where the page is wide enough; `stacked` sets them above each other without gaps."""

    type: ClassVar[str] = "panels"
    panels: Sequence[Panel]
    stacked: bool = False


@dataclass(frozen=True)
class Legend:
    """Marks and what they mean: (class of the swatch, words)."""

    type: ClassVar[str] = "legend"
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class HeatLegend:
    """The colour ramp with its ends."""

    type: ClassVar[str] = "heat"
    low: str
    high: str


@dataclass(frozen=True)
class Cell:
    """A table cell: text, perhaps a bar under it, perhaps the best of its column."""

    text: str
    bar: Markup | None = None
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A table row; `kind` is the colour class of its name."""

    name: str
    cells: Sequence[Cell]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table; with `summary` it is folded under that line."""

    type: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]
    summary: str = ""


@dataclass(frozen=True)
class GridCell:
    """A token: its text, a shade from 0 to 20, whether it is marked, and words for who points at it."""

    text: str
    shade: int | None = None
    same: bool = False
    title: str = ""


@dataclass(frozen=True)
class GridRow:
    """A named row of tokens."""

    name: str
    cells: Sequence[GridCell]


@dataclass(frozen=True)
class Grid:
    """Tokens side by side, one column each; with `summary` it is folded under that line."""

    type: ClassVar[str] = "grid"
    caption: str
    columns: Sequence[str]
    rows: Sequence[GridRow]
    summary: str = ""


@dataclass(frozen=True)
class Text:
    """A short text with a heading."""

    type: ClassVar[str] = "text"
    title: str
    text: str


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    type: ClassVar[str] = "facts"
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """A text as it is, folded under a summary line."""

    type: ClassVar[str] = "code"
    summary: str
    text: str


@dataclass(frozen=True)
class Answer:
    """One model's answer; `correct` is None when it was not judged."""

    label: str
    kind: str
    text: str
    correct: bool | None


@dataclass(frozen=True)
class Sample:
    """A prompt, the expected answer, and what the models said."""

    task: str
    prompt: str
    gold: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Samples:
    """Sample answers."""

    type: ClassVar[str] = "samples"
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Section:
    """A part of the page: what was found, how to read it, and the blocks; or why there are none."""

    key: str
    title: str
    finding: str = ""
    note: str = ""
    blocks: Sequence[Any] = ()
    missing: str = ""


@dataclass(frozen=True)
class Tile:
    """A number to remember."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Report:
    """The whole page."""

    name: str
    teacher: str
    student: str
    recipe: str
    started: str
    version: str
    headline: Headline
    notes: Sequence[str]
    gaps: Panels | None
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    kind: str = "transfer report"
    """What the page calls itself."""


@dataclass(frozen=True)
class Contender:
    """One of the models compared, as the result files call it."""

    key: str
    label: str
    kind: str


def contenders(metrics: Json) -> list[Contender]:
    """Untouched student, baselines, this run, teacher: the order of every comparison on the page."""
    names = baseline_names(metrics)
    recipe = recipe_name(str(metrics.get("recipe") or "this run"))
    return [
        Contender("before", "Untouched", "c-before"),
        *(Contender(name, recipe_name(name), f"c-base{index % 4 + 1}") for index, name in enumerate(names)),
        Contender("after", f"{recipe} (ours)", "c-after"),
        Contender("teacher", "Teacher", "c-teacher"),
    ]


def baseline_names(metrics: Json) -> list[str]:
    """Baselines in the order of metrics.json, with those that appear under closeness or a task only."""
    groups: list[Mapping[str, Any]] = [metrics.get("closeness") or {}, *(metrics.get("tasks") or {}).values()]
    named = list(metrics.get("baselines") or {})
    named += [key for group in groups for key, value in group.items() if isinstance(value, Mapping)]
    return [key for key in dict.fromkeys(named) if key not in ("before", "after", "teacher")]
