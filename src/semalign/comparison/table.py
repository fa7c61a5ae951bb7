"""The table of methods, which the command line, the page and Markdown show alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.table import Table

from semalign.comparison.plan import WRONG_TASK
from semalign.comparison.words import MEASURES, Figures, points, runs_of, shown
from semalign.report.words import DASH, count, number, percent

COLUMNS: Mapping[str, Callable[[Figures], str]] = {
    "Points won": lambda m: shown(m, "gain", points),
    "Accuracy gap": lambda m: shown(m, "accuracy_gap_closed"),
    "KL gap": lambda m: shown(m, "kl_gap_closed"),
    "Equal time: accuracy": lambda m: shown(m.get("equal_time") or {}, "accuracy_gap_closed"),
    "Equal time: KL": lambda m: shown(m.get("equal_time") or {}, "kl_gap_closed"),
    "Retention, points": lambda m: shown(m, "retention", points),
    "KL gap elsewhere": lambda m: shown(m, "kl_gap_closed_elsewhere"),
    "No answer found": lambda m: percent(m.get("extraction_failures"), 1),
    "Cut off": lambda m: percent(m.get("cut_off"), 1),
    "Rows": lambda m: count(m.get("rows")),
    "Steps": lambda m: count(m.get("steps")),
    "Seconds": lambda m: number(m.get("wall_seconds"), 1),
}
AT_A_GLANCE = (
    "Points won",
    "Accuracy gap",
    "KL gap",
    "Equal time: accuracy",
    "Equal time: KL",
    "Retention, points",
    "Seconds",
)
"""What a terminal has room for."""


def measured(figures: Figures) -> str:
    """What the methods of a comparison are ranked by."""
    return next((k for k in MEASURES if any(m[k] is not None for m in figures["methods"])), "kl_gap_closed")


def ranked(figures: Figures) -> list[Figures]:
    """Methods by what they closed or won, the best first."""
    key = measured(figures)
    return sorted(figures["methods"], key=lambda m: -(m[key] if m[key] is not None else float("-inf")))


def method_table(
    figures: Figures, titles: Sequence[str] = tuple(COLUMNS)
) -> tuple[list[str], list[tuple[Figures, list[str]]]]:
    """Titles and lines: the methods, ranked, then the control of the wrong task, each with its texts.

    Columns in which nothing was measured are left out, and so is the control where it has no figure.
    """
    methods = ranked(figures)
    control = figures["controls"][WRONG_TASK]
    if control["accuracy_gap_closed"] is not None:
        methods.append({"method": "control: wrong task", "default": False, **control})
    columns = {title: [COLUMNS[title](m) for m in methods] for title in titles}
    kept = {title: texts for title, texts in columns.items() if set(texts) != {DASH}}
    return list(kept), [(m, [texts[n] for texts in kept.values()]) for n, m in enumerate(methods)]


def table(figures: Figures) -> Table:
    """The table of the command line."""
    tasks = ", ".join(figures["trained"])
    default = next(m for m in figures["methods"] if m["default"])
    found = Table(title=f"{tasks}; {runs_of(default)}; 95% intervals", title_justify="left")
    titles, lines = method_table(figures, AT_A_GLANCE)
    found.add_column("Method")
    for title in titles:
        found.add_column(title, justify="right")
    for method, texts in lines:
        label = method["method"] + " (default)" * method["default"]
        found.add_row(label, *texts, style="bold" if method["default"] else "")
    return found
