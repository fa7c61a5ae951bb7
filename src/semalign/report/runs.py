"""Several run folders -> one page that sets them side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from semalign.config import differences
from semalign.errors import ConfigError
from semalign.report import plots, words
from semalign.report.blocks import Cell, Panel, Panels, Report, Row, Section, Table
from semalign.report.build import model_names, options_of, render, write_page
from semalign.report.files import RunFiles, read_run
from semalign.report.outcome import task_name
from semalign.report.plots import Bar
from semalign.report.words import (
    CLOSENESS,
    DASH,
    GAPS,
    Headline,
    finite,
    listing,
    percent,
    percent_1,
    seconds,
    size,
)

Shown = Callable[[float | None], str]
COSTS: tuple[tuple[str, str, Shown], ...] = (
    ("train_seconds", "Training", seconds),
    ("wall_seconds", "All steps", seconds),
    ("peak_rss_bytes", "Peak memory", size),
)


def build_comparison(folders: Sequence[Path], path: Path) -> Path:
    """Write one page about several evaluated runs.

    Raises:
        ConfigError: the same run twice.
        CacheError: a run that was not evaluated.
    """
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise ConfigError("report: expected different runs, got one of them twice; leave it out.")
    runs = [read_run(folder) for folder in folders]
    return write_page(path, render(view(runs, _names(resolved))))


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell the runs apart."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def view(runs: Sequence[RunFiles], names: Sequence[str]) -> Report:
    """The view model: runs in the order given."""
    models = [model_names(run.config_text) for run in runs]
    notes = [
        "One training each: repeat runs with other seeds, or use semalign compare, before relying on small differences."
    ]
    if len({tuple(m.items()) for m in models}) > 1:
        notes.insert(0, "The runs have different models, so shares of a gap are shares of different gaps.")
    if len({_rows(run) for run in runs}) > 1:
        notes.insert(0, "The runs were not measured on the same number of held-out rows and items.")
    return Report(
        name=listing(names),
        teacher=listing(list(dict.fromkeys(m["teacher"] for m in models))),
        student=listing(list(dict.fromkeys(m["student"] for m in models))),
        recipe="",
        started="",
        version=str((runs[0].environment or {}).get("semalign") or ""),
        headline=_headline(runs, names),
        notes=notes,
        gaps=_gaps(runs, names),
        tiles=[],
        sections=[_figures(runs, names), _options(runs, names)],
        kind="comparison of runs",
    )


def _rows(run: RunFiles) -> tuple[Any, ...]:
    tasks = run.metrics.get("tasks") or {}
    return (run.metrics.get("closeness") or {}).get("rows"), tuple((n, t.get("n")) for n, t in tasks.items())


def _headline(runs: Sequence[RunFiles], names: Sequence[str]) -> Headline:
    for key, title in GAPS:
        shares = {
            n: share
            for n, run in zip(names, runs, strict=True)
            if (share := finite(run.metrics.get(key))) is not None
        }
        if len(shares) == len(runs):
            best = max(shares, key=lambda n: shares[n])
            others = [f"{n} {percent(share)}" for n, share in shares.items() if n != best]
            gap = title.removesuffix(" closed").replace("Accuracy", "accuracy")
            return Headline(f"{best} closes ", percent(shares[best]), f" of the {gap}, {listing(others)}.")
    return Headline("The runs share no measured gap", "", ": compare the figures below.")


def _gaps(runs: Sequence[RunFiles], names: Sequence[str]) -> Panels | None:
    panels = []
    for key, title in GAPS:
        bars = [
            Bar(name, share, percent(share), f"c-base{n % 4 + 1}")
            for n, (name, run) in enumerate(zip(names, runs, strict=True))
            if (share := finite(run.metrics.get(key))) is not None
        ]
        if bars:
            spoken = f"{title}: " + ", ".join(f"{bar.label} {bar.shown}" for bar in bars)
            panels.append(Panel(title, Markup(plots.gap_bars(bars, spoken))))
    return Panels(panels) if panels else None


def _figures(runs: Sequence[RunFiles], names: Sequence[str]) -> Section:
    """Every figure that some run has, a line each."""
    lines: list[tuple[str, list[float | None], Shown]] = [
        (title, [finite(run.metrics.get(key)) for run in runs], percent) for key, title in GAPS
    ]
    for task in dict.fromkeys(t for run in runs for t in run.metrics.get("tasks") or {}):
        found = [words.accuracy((run.metrics.get("tasks") or {}).get(task) or {}, "after") for run in runs]
        lines.append((f"Accuracy: {task_name(task)}", found, percent_1))
    for m in CLOSENESS:
        values = [((run.metrics.get("closeness") or {}).get("after") or {}).get(m.key) for run in runs]
        lines.append((m.title, [finite(value) for value in values], m.shown))
    lines += [(title, [finite(run.metrics.get(key)) for run in runs], shown) for key, title, shown in COSTS]
    rows = [
        Row(title, [Cell(shown(value)) for value in values])
        for title, values, shown in lines
        if any(value is not None for value in values)
    ]
    note = "Of the trained students; seconds and memory as each run's machine gave them."
    return Section("figures", "Figures", note=note, blocks=[Table("Figures of all runs", ["", *names], rows)])


def _options(runs: Sequence[RunFiles], names: Sequence[str]) -> Section:
    """The options in which runs differ from the first one."""
    configs = [options_of(run.config_text) for run in runs]
    lines = [line for config in configs[1:] for line in differences(configs[0], config)]
    changed = dict.fromkeys(line.split(": ")[0] for line in lines)
    rows = [
        Row(key, [Cell(_value(config, key)) for config in configs]) for key in changed if key != "output_dir"
    ]
    finding = "" if rows else "The runs have the same options."
    blocks = [Table("Options that differ", ["", *names], rows)] if rows else []
    return Section("options", "Options that differ", finding, blocks=blocks)


def _value(config: Any, key: str) -> str:
    found = _at(config, key)
    return DASH if found is None else words.clip(str(found), 80)


def _at(config: Any, key: str) -> Any:
    """The value at a dotted path, of which a part may have dots of its own, as the names of files have."""
    if not key:
        return config
    if not isinstance(config, dict):
        return None
    for name in sorted(config, key=len, reverse=True):
        if (key + ".").startswith(f"{name}."):
            return _at(config[name], key[len(str(name)) + 1 :])
    return None
