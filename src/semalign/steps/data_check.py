"""`semalign data check`: what a run would meet in a file of rows, before any run."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from semalign.config import ModelConfig
from semalign.data import effective_max_length
from semalign.data.check import QUANTILES, Tokens, check_rows
from semalign.data.rows import entries
from semalign.errors import DataError
from semalign.loading import load_config, load_tokenizer
from semalign.steps.inputs import embedded_rows

SHOWN = 20  # findings of a kind; --json has them all


def check_data(file: str, model: str | None, against: str | None, max_length: int) -> dict[str, Any]:
    """Findings of `semalign.data.check.check_rows`, with `exit_code`: 0, or DataError's where there are errors.

    Args:
        file: rows, as data.dataset_name names them.
        model: whose tokenizer and chat template count; None: lengths and masks are not known.
        against: rows that must not be trained on, named likewise.
        max_length: tokens a row may have, if the model allows as many.
    """
    tokens = None
    if model is not None:
        loaded = ModelConfig(model)
        tokenizer = load_tokenizer(loaded)
        tokens = Tokens(tokenizer, effective_max_length(tokenizer, load_config(loaded), max_length))
    found = check_rows(_entries(file), tokens=tokens, evaluation=_entries(against) if against else ())
    return {"file": file, **found, "exit_code": DataError.exit_code if found["errors"] else 0}


def _entries(name: str) -> Any:
    if not name.startswith("embedded:"):
        return entries(name)
    return ((f"{name}:{n}", row) for n, row in enumerate(embedded_rows(name), start=1))


def show(found: dict[str, Any], console: Console) -> None:
    """The findings for people."""
    kinds = ", ".join(f"{n} x {kind}" for kind, n in found["kinds"].items())
    line = f"{found['file']}: {found['rows']} rows of good form ({kinds or 'none'})"
    console.print(line, markup=False, soft_wrap=True)
    if found["tokens"]:
        _show_tokens(found, console)
    else:
        console.print("token lengths, masks and cuts: give --model to see them")
    _show_duplicates(found, console)
    _list("dropped", [f"{d['place']}: {d['reason']}" for d in found["dropped"]], console)
    _list("errors", [f"{e['place']}: {e['reason']}" for e in found["errors"]], console, style="red")


def _show_tokens(found: dict[str, Any], console: Console) -> None:
    tokens = found["tokens"]
    table = Table("tokens per row", *QUANTILES, title_justify="left")
    for label in ("row", "prompt", "supervised"):
        if label in tokens:
            table.add_row(label, *(str(tokens[label][q]) for q in QUANTILES))
    console.print(table)
    console.print(f"{tokens['total_supervised']} supervised tokens in all")
    _list(f"cut at {tokens['max_length']} tokens", tokens["cut"], console)
    if found["sample"]:
        console.print("one row, supervised part in brackets:")
        console.print(found["sample"], markup=False, highlight=False, style="dim", soft_wrap=True)


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
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    if len(lines) > SHOWN:
        console.print(f"  and {len(lines) - SHOWN} more; --json lists all")
