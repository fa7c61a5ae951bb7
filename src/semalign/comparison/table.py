"""Figures -> the table of the command line."""

from __future__ import annotations

from rich.table import Table

from semalign.comparison.page import ranked
from semalign.comparison.plan import WRONG_TASK
from semalign.comparison.words import Figures, figure_texts, known_columns, runs_of, shown
from semalign.report.words import DASH, number


def table(figures: Figures) -> Table:
    """The table of the command line."""
    tasks = ", ".join(figures["trained"])
    default = next(m for m in figures["methods"] if m["default"])
    found = Table(title=f"{tasks}; {runs_of(default)}; 95% intervals", title_justify="left")
    columns = ["points won", "accuracy gap", "KL gap", "equal time: accuracy", "KL", "retention", "seconds"]
    rows = [
        (
            m["method"] + " (default)" * m["default"],
            [*figure_texts(m), number(m["wall_seconds"], 1)],
            m["default"],
        )
        for m in ranked(figures)
    ]
    control = figures["controls"][WRONG_TASK]
    if control["accuracy_gap_closed"] is not None:
        texts = [DASH, shown(control, "accuracy_gap_closed"), *[DASH] * 5]
        rows.append(("control: wrong task", texts, False))
    measured = known_columns([texts for _, texts, _ in rows])
    found.add_column("method")
    for n in measured:
        found.add_column(columns[n], justify="right")
    for name, texts, is_default in rows:
        found.add_row(name, *(texts[n] for n in measured), style="bold" if is_default else "")
    return found
