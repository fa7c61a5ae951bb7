"""Figures and findings as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from semalign.data.check import QUANTILES
from semalign.data.samples import lines_of
from semalign.report.words import CLOSENESS, GAPS, MEND, finite, percent, percent_1, setback


def final_table(metrics: dict[str, Any], console: Console) -> None:
    """Before, baselines, after and teacher side by side, with the shares of the gaps closed."""
    from semalign.report.words import figure_name

    baselines = metrics.get("baselines") or {}
    names = ["before", *baselines, "after", "teacher"]
    # Names of recipes, baselines and tasks are the user's: what looks like markup in them is none.
    table = Table(title=escape(f"recipe {metrics.get('recipe')}"), title_justify="left")
    for column in ("", *map(escape, names)):
        table.add_column(column, justify="left" if not column else "right")
    tasks: dict[str, Any] = metrics.get("tasks") or {}
    for task, entry in tasks.items():
        table.add_row(
            escape(f"{task} (n={entry.get('n')})"), *(_shown(entry, n, "accuracy", percent_1) for n in names)
        )
    for entry in metrics.get("harness") or ():
        label = f"{entry['task']} {figure_name(entry)} (n={entry['n']})"
        table.add_row(escape(label), *(_shown(entry, n, "value") for n in names))
    if tasks:
        means = {"mean": metrics.get("accuracy") or {}}
        table.add_row("average accuracy", *(_shown(means, "mean", n, percent_1) for n in names), style="bold")
    near = metrics.get("closeness") or {}
    for m in CLOSENESS if near else ():
        table.add_row(m.title, *(_shown(near, n, m.key) for n in names))
    closed = {**baselines, "after": metrics}
    for key, label in GAPS:
        table.add_row(label, *(_shown(closed, n, key, percent) for n in names), style="bold")
    if (worse := setback(metrics)) is not None:
        console.print(f"{worse.sentence} {MEND}", style="bold red", markup=False, soft_wrap=True)
    console.print(table)
    if reason := metrics.get("no_gap"):
        console.print(f"no gap to close: {reason}", style="yellow")
    gpu = f", {_gib(metrics, 'peak_gpu_bytes')} GiB on the GPU" if "peak_gpu_bytes" in metrics else ""
    wall, training = (f"{finite(metrics.get(key)) or 0:.0f}" for key in ("wall_seconds", "train_seconds"))
    memory = _gib(metrics, "peak_rss_bytes")
    console.print(f"{wall} s in all, training {training} s, peak memory {memory} GiB{gpu}")


def _shown(
    entry: Mapping[str, Any], name: str, key: str, shown: Callable[[float | None], str] = "{:.3f}".format
) -> str:
    """A figure of one of the models, a dash where it was not measured."""
    value = finite((entry.get(name) or {}).get(key))
    return "-" if value is None else shown(value).replace("−", "-")


def _gib(metrics: Mapping[str, Any], key: str) -> str:
    return f"{(finite(metrics.get(key)) or 0) / 2**30:.2f}"


SHOWN = 20  # findings of a kind; --json has them all


def show(found: dict[str, Any], console: Console) -> None:
    """The findings for people."""
    kinds = ", ".join(f"{n} x {kind}" for kind, n in found["kinds"].items())
    line = f"{found['file']}: {found['rows']} rows of good form ({kinds or 'none'})"
    console.print(line, markup=False, emoji=False, soft_wrap=True)
    if found["tokens"]:
        _show_tokens(found, console)
    else:
        console.print("token lengths, masks and cuts: give --model to see them")
    _show_duplicates(found, console)
    _list("dropped", [f"{d['place']}: {d['reason']}" for d in found["dropped"]], console)
    _list("errors", [f"{e['place']}: {e['reason']}" for e in found["errors"]], console, style="red")
    for line in lines_of(found["tokens"] or {}):
        console.print(line, style="red", soft_wrap=True)


def _show_tokens(found: dict[str, Any], console: Console) -> None:
    tokens = found["tokens"]
    table = Table("tokens per row", *QUANTILES, title_justify="left")
    for label in ("row", "prompt", "supervised"):
        if label in tokens:
            table.add_row(label, *(str(tokens[label][q]) for q in QUANTILES))
    console.print(table)
    console.print(f"{tokens['total_supervised']} supervised tokens in all")
    _list(f"cut at {tokens['max_length']} tokens", tokens["cut"], console)
    _list("rows of which the chat template leaves something out", tokens["unseen"], console)
    if found["sample"]:
        console.print("one row, supervised part in brackets:")
        console.print(
            found["sample"], markup=False, emoji=False, highlight=False, style="dim", soft_wrap=True
        )


def _show_duplicates(found: dict[str, Any], console: Console) -> None:
    repeats, shared = found["duplicates"], found["overlap"]
    labels = {
        "rows": "equal rows",
        "prompts": "equal prompts, other answers",
        "near": "prompts that differ in case, punctuation or space only",
    }
    for key, label in labels.items():
        _list(label, [f"{d['place']} as {d['first']}" for d in repeats[key]], console)
    if shared is not None:
        console.print(
            f"evaluation: {len(shared['prompts'])} rows have a prompt of its {shared['items']} items"
        )
        _list("nearly an evaluation item", [f"{d['place']} as {d['first']}" for d in shared["near"]], console)


def _list(label: str, lines: list[str], console: Console, style: str | None = None) -> None:
    if not lines:
        return
    console.print(f"{label}: {len(lines)}", style=style)
    for line in lines[:SHOWN]:
        console.print(f"  {line}", markup=False, emoji=False, highlight=False, soft_wrap=True)
    if len(lines) > SHOWN:
        console.print(f"  and {len(lines) - SHOWN} more; --json lists all")
