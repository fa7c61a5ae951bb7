"""Figures -> page.html, in the look of a run's report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from semalign.comparison.plan import WRONG_TASK
from semalign.comparison.plots import Mark, Point, scatter, share_rows
from semalign.comparison.table import measured, method_table, ranked
from semalign.comparison.words import MEASURES, Figures, points, runs_of, shown
from semalign.report.blocks import Cell, Code, Legend, Panel, Panels, Report, Row, Section, Table, Tile
from semalign.report.build import render
from semalign.report.words import (
    CLOSENESS,
    GAPS,
    NBSP,
    Headline,
    count,
    listing,
    moment,
    number,
    percent,
    seconds,
)
from semalign.run.digests import sealed
from semalign.run.files import write_atomic

UNEVEN = 0.15
"""Share of the budget by which a training at equal time may miss it before the page says so."""


def write_page(figures: Figures, path: Path, config_text: str, *, version: str, started: str) -> None:
    """One file that loads nothing from elsewhere."""
    page = render(view(figures, path.parent.resolve().name, config_text, version=version, started=started))
    write_atomic(path, sealed(page.encode("utf-8", errors="replace"), ".html"))


def view(figures: Figures, name: str, config_text: str, *, version: str = "", started: str = "") -> Report:
    """The view model: every number, sentence and drawing of the page."""
    methods = ranked(figures)
    return Report(
        name=name,
        teacher=figures["teacher"],
        student=figures["student"],
        recipe=figures["default"],
        started=moment(started),
        version=version,
        headline=_headline(figures),
        notes=_notes(figures),
        gaps=_gaps(methods),
        tiles=_tiles(figures),
        sections=[
            _methods_section(methods, figures),
            _time_section(methods),
            _retention_section(methods),
            *(_task_section(methods, figures, task) for task in figures["trained"]),
            _failed_section(figures),
            Section("setup", "Setup", blocks=[Code("The comparison's config", config_text)]),
        ],
        kind="comparison",
    )


def _headline(figures: Figures) -> Headline:
    key = measured(figures)
    leads, write, rest = MEASURES[key]
    default = next(m for m in figures["methods"] if m["default"])
    if default[key] is None:
        return Headline(f"The default, {default['method']}, has no figure", "", ": see what failed.")
    others = [m for m in figures["methods"] if not m["default"] and m[key] is not None]
    rest += f", averaged over {_tasks(figures)} and {runs_of(default)}"
    if others:
        best = max(others, key=lambda m: m[key])
        which = f"the best of {len(others)} others" if len(others) > 1 else "the other"
        rest += f"; {which} at equal rows, {best['method']}, {write(best[key])}"
    return Headline(f"{default['method']} {leads}", write(default[key]), f"{rest}.")


def _tasks(figures: Figures) -> str:
    """3 tasks: those that students were trained on."""
    tasks = len(figures["trained"])
    return f"{tasks} task{'s' * (tasks != 1)}"


def _notes(figures: Figures) -> list[str]:
    key = measured(figures)
    lines = [
        "Intervals: 95%, from drawing items (the same for all methods) and seeds anew; tasks are fixed. "
        "A share below 0 means worse than the untouched student."
    ]
    for budget, name in (("", "equal rows"), ("equal_time", "equal time")):
        entries = [(m["method"], m[budget] if budget else m) for m in figures["methods"] if not m["default"]]
        compared = [
            (n, e[f"{key}_minus_default_interval"])
            for n, e in entries
            if e and e[f"{key}_minus_default_interval"]
        ]
        better = [n for n, ends in compared if ends[0] > 0]
        level = [n for n, ends in compared if ends[0] <= 0 <= ends[1]]
        if compared:
            lines.append(
                f"At {name}, better than the default: {listing(better) or 'none'}; not told apart from it: {listing(level) or 'none'}."
            )
    timed = [(m["method"], m["equal_time"]) for m in figures["methods"] if m["equal_time"]]
    off = [
        n
        for n, e in timed
        if e["budget_seconds"] and abs(e["wall_seconds"] / e["budget_seconds"] - 1) > UNEVEN
    ]
    if off:
        lines.append(
            f"At equal time, {listing(off)} took over {percent(UNEVEN)} more or less than planned: "
            "the machine was not evenly busy, so read that column with care."
        )
    control = figures["controls"][WRONG_TASK]
    if control["accuracy_gap_closed"] is not None:
        lines.append(
            f"Wrong task (the default's students of other tasks): {shown(control, 'accuracy_gap_closed')} of the accuracy gap."
        )
    if figures["failed"]:
        failed = len(figures["failed"])
        lines.append(
            f"{failed} {'cell' if failed == 1 else 'cells'} failed and {'is' if failed == 1 else 'are'} left out: see below."
        )
    if figures["seeds"] == 1:
        lines.append("One seed: the intervals hold no variation between trainings.")
    return lines


def _gaps(methods: Sequence[Figures]) -> Panels | None:
    panels = []
    for key, title in GAPS:
        rows = [
            (f"{m['method']} {n}", _marks(m, key)) for n, m in enumerate(methods, 1) if m[key] is not None
        ]
        if rows:
            words = ", ".join(f"{label} {percent(marks[0].value)}" for label, marks in rows)
            panels.append(Panel(title, Markup(share_rows(rows, f"{title}: {words}"))))
    return Panels(panels) if panels else None


def at_budgets(method: Figures) -> list[Figures]:
    """Figures at equal rows, then at equal time; the default has one, for it is the budget."""
    return [method] if method["default"] or not method["equal_time"] else [method, method["equal_time"]]


def _marks(method: Figures, key: str) -> list[Mark]:
    marks = []
    for entry in at_budgets(method):
        if entry[key] is not None:
            low, high = entry[f"{key}_interval"] or (entry[key], entry[key])
            marks.append(Mark(entry[key], low, high, _kind(method), entry is not method))
    return marks


def _kind(method: Figures) -> str:
    return "c-after" if method["default"] else "c-base1"


def _tiles(figures: Figures) -> list[Tile]:
    default = next(m for m in figures["methods"] if m["default"])
    tiles = [
        Tile(
            "Right answers",
            points(default["gain"]),
            f"points won by {default['method']}, {runs_of(default)}",
        ),
        Tile("Accuracy gap closed", percent(default["accuracy_gap_closed"]), f"default, {default['method']}"),
        Tile("KL gap closed", percent(default["kl_gap_closed"]), f"default, {default['method']}"),
        Tile("Retention", points(default["retention"]), "points, tasks not trained on"),
        Tile("Wall time", seconds(default["wall_seconds"]), "per student, preparation included"),
    ]
    return tiles


def _methods_section(methods: Sequence[Figures], figures: Figures) -> Section:
    titles, lines = method_table(figures)
    # The control, which is no method, has neither a place nor a colour.
    labels = {m["method"]: (f"{place}{NBSP}{m['method']}", _kind(m)) for place, m in enumerate(methods, 1)}
    rows = []
    for m, texts in lines:
        label, kind = labels.get(m["method"], (m["method"], ""))
        rows.append(Row(label, [Cell(text) for text in texts], kind))
    note = (
        "Points won are right answers on a student's own task, in percent of the items, above the untouched student's. Then shares of the gap "
        "between untouched student and teacher. All are averaged over tasks. Equal rows: every method has its own "
        "epochs over the same given rows, to which some add rows of the teacher's (see Rows). Equal time: every method trains for as "
        "long as the default takes, preparation included. Retention and the KL gap elsewhere are of tasks that a student was not "
        "trained on. Answers that were cut off had not ended at the most new tokens; they are graded as far as they go."
    )
    return Section(
        "methods", "Methods", note=note, blocks=[Table("Figures of every method", ["Method", *titles], rows)]
    )


def _legend(methods: Sequence[Figures]) -> Legend:
    return Legend([(_kind(m), f"{n} {m['method']}") for n, m in enumerate(methods, 1)])


def _time_section(methods: Sequence[Figures]) -> Section:
    dots = []
    for n, m in enumerate(methods, 1):
        for entry, budget in zip(at_budgets(m), ("equal rows", "equal time"), strict=False):
            # A student that something else has trained need not say what it cost.
            if None not in (entry["kl_gap_closed"], entry["wall_seconds"]):
                words = f"{m['method']}, {budget}: {percent(entry['kl_gap_closed'])} in {seconds(entry['wall_seconds'])}"
                y = max(-100.0, 100 * entry["kl_gap_closed"])
                dots.append(Point(n, entry["wall_seconds"], y, words, _kind(m), budget == "equal time"))
    if not dots:
        return Section("time", "KL against wall time", missing="No held-out rows were measured.")
    drawing = scatter(
        dots, ("seconds per student", "KL gap closed, %"), "KL gap closed against wall time", log_x=True
    )
    note = "Further up and further left is better. Filled: equal rows; hollow: equal time. Preparation is counted."
    return Section(
        "time",
        "KL against wall time",
        note=note,
        blocks=[Panels([Panel("", Markup(drawing))]), _legend(methods)],
    )


def _retention_section(methods: Sequence[Figures]) -> Section:
    known = [(n, m) for n, m in enumerate(methods, 1) if m["retention"] is not None and m["gain"] is not None]
    if not known:
        return Section(
            "retention", "Retention against gain", missing="No items of other tasks were answered."
        )
    dots = [
        Point(
            n,
            m["gain"],
            m["retention"],
            f"{m['method']}: {points(m['gain'])} points on its own task, {points(m['retention'])} elsewhere",
            _kind(m),
        )
        for n, m in known
    ]
    axes = ("points won on the own task", "points on other tasks")
    drawing = scatter(dots, axes, "Retention against gain")
    note = "Change of accuracy on the tasks a student was not trained on, against what it gained on its own."
    return Section(
        "retention",
        "Retention against gain",
        note=note,
        blocks=[Panels([Panel("", Markup(drawing))]), _legend(methods)],
    )


def _task_section(methods: Sequence[Figures], figures: Figures, task: str) -> Section:
    columns = [
        "Method",
        "Seeds",
        "Accuracy",
        "Gap closed",
        "KL",
        "KL gap closed",
        *(m.title for m in CLOSENESS[1:]),
    ]
    models = {name: figures["models"][name]["tasks"] for name in ("teacher", "untouched")}
    rows = [
        Row("teacher", _task_cells(models["teacher"][task]), "c-teacher"),
        *(Row(m["method"], _task_cells(m["tasks"][task]), _kind(m)) for m in methods),
        Row("untouched", _task_cells(models["untouched"][task]), "c-before"),
    ]
    blocks, note = [Table(f"Figures on {task}", columns, rows)], f"Students trained on {task}."
    answered = [
        t for t in dict.fromkeys((task, *figures["tasks"])) if models["untouched"][t]["accuracy"] is not None
    ]
    if answered:
        note += " The lower table has their change of accuracy against the untouched student on the items of every task, in points."
        changes = [Row(m["method"], _changes(m["tasks"][task], answered), _kind(m)) for m in methods]
        blocks.append(Table(f"Points won or lost after training on {task}", ["Points", *answered], changes))
    return Section(f"task-{task}", f"Task {task}", note=note, blocks=blocks)


def _task_cells(entry: Figures) -> list[Cell]:
    return [
        Cell(count(entry.get("seeds"))),
        Cell(shown(entry, "accuracy", lambda v: percent(v, 1))),
        Cell(shown(entry, "accuracy_gap_closed")),
        Cell(number(entry["kl"])),
        Cell(shown(entry, "kl_gap_closed")),
        Cell(percent(entry["top1"], 1)),
        Cell(number(entry["nll"])),
    ]


def _changes(entry: Figures, tasks: Sequence[str]) -> list[Cell]:
    values, ends = entry["accuracy_change"], entry["accuracy_change_interval"]
    return [Cell(shown({"at": values[t], "at_interval": ends[t]}, "at", points)) for t in tasks]


def _failed_section(figures: Figures) -> Section:
    if not figures["failed"]:
        return Section("failed", "Cells that failed", missing="None.")
    names = [
        [str(f[k]) for k in ("method", "trained", "seed", "budget") if k in f] for f in figures["failed"]
    ]
    rows = [Row(" ".join(n), [Cell(f["error"])]) for n, f in zip(names, figures["failed"], strict=True)]
    return Section("failed", "Cells that failed", blocks=[Table("Cells that failed", ["Cell", "Why"], rows)])
