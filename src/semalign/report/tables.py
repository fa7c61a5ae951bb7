"""Figures and findings as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from semalign.data.check import QUANTILES
from semalign.data.samples import lines_of
from semalign.report.words import CLOSENESS, GAPS


def final_table(metrics: dict[str, Any], console: Console) -> None:
    """Before, baselines, after and teacher side by side, with the shares of the gaps closed."""
    from semalign.report.words import figure_name

    names = ["before", *metrics["baselines"], "after", "teacher"]
    # Names of recipes, baselines and tasks are the user's: what looks like markup in them is none.
    table = Table(title=escape(f"recipe {metrics['recipe']}"), title_justify="left")
    for column in ("", *map(escape, names)):
        table.add_column(column, justify="left" if not column else "right")
    for task, entry in metrics["tasks"].items():
        table.add_row(
            escape(f"{task} (n={entry['n']})"), *(f"{100 * entry[n]['accuracy']:.1f}%" for n in names)
        )
    for entry in metrics["harness"]:
        label = f"{entry['task']} {figure_name(entry)} (n={entry['n']})"
        table.add_row(escape(label), *(f"{entry[n]['value']:.3f}" if n in entry else "-" for n in names))
    if metrics["tasks"]:
        table.add_row(
            "average accuracy", *(f"{100 * metrics['accuracy'][n]:.1f}%" for n in names), style="bold"
        )
    near = metrics.get("closeness", {})
    for m in CLOSENESS if near else ():
        table.add_row(
            m.title, *(f"{near[n][m.key]:.3f}" if n in near and m.key in near[n] else "-" for n in names)
        )
    closed = {**metrics["baselines"], "after": metrics}
    for key, label in GAPS:
        table.add_row(label, *(_share(closed[n][key]) if n in closed else "-" for n in names), style="bold")
    console.print(table)
    if reason := metrics.get("no_gap"):
        console.print(f"no gap to close: {reason}", style="yellow")
    seconds, memory = metrics["wall_seconds"], metrics["peak_rss_bytes"] / 2**30
    gpu = f", {metrics['peak_gpu_bytes'] / 2**30:.2f} GiB on the GPU" if "peak_gpu_bytes" in metrics else ""
    console.print(
        f"{seconds:.0f} s in all, training {metrics['train_seconds']:.0f} s, peak memory {memory:.2f} GiB{gpu}"
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


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
