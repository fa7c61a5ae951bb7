"""Figures -> the table of the command line."""

from __future__ import annotations

from rich.table import Table

from semalign.comparison.page import ranked
from semalign.comparison.plan import WRONG_TASK
from semalign.comparison.words import Figures, figure_texts, runs_of, shown
from semalign.report.words import number


def table(figures: Figures) -> Table:
    """The table of the command line."""
    tasks = ", ".join(figures["trained"])
    default = next(m for m in figures["methods"] if m["default"])
    found = Table(title=f"{tasks}; {runs_of(default)}; 95% intervals", title_justify="left")
    for column in ("method", "accuracy gap", "KL gap", "equal time: accuracy", "KL", "retention", "seconds"):
        found.add_column(column, justify="left" if column == "method" else "right")
    for m in ranked(figures):
        texts = [*figure_texts(m), number(m["wall_seconds"], 1)]
        found.add_row(m["method"] + " (default)" * m["default"], *texts, style="bold" if m["default"] else "")
    control = figures["controls"][WRONG_TASK]
    if control["accuracy_gap_closed"] is not None:
        found.add_row("control: wrong task", shown(control, "accuracy_gap_closed"), *["–"] * 5)
    return found
