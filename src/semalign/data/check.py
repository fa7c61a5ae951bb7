"""What a run would meet in a file of rows: every bad row, what is dropped or cut, duplicates, overlap, lengths.

Nothing stops at the first finding. An *error* is what a run would stop at; the rest is told and left to the reader.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from semalign.config import ModelConfig, Supervise
from semalign.data import effective_max_length
from semalign.data.drawing import embedded_rows
from semalign.data.kinds import ACCEPTED, TRAINED, Kind, Row, checked_kind, row_kind, without_nulls
from semalign.data.marking import Drop, cut_to, drop_of, mark_row, rendered_ahead
from semalign.data.overlap import Prompts, prompt_of
from semalign.data.rows import entries
from semalign.data.samples import Sample, render_example, unseen_counts
from semalign.errors import DataError
from semalign.models.finding import load_shape, load_tokenizer

Placed = tuple[str, Row]
Finding = dict[str, str]
QUANTILES = {"min": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "99%": 0.99, "max": 1.0}


@dataclass(frozen=True)
class Tokens:
    """How rows become tokens."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """Tokens a row may have."""
    supervise: Supervise = "completion"
    """Which tokens are supervised."""


def check_rows(
    entries: Iterable[tuple[str, Row | str]],
    *,
    tokens: Tokens | None = None,
    evaluation: Iterable[tuple[str, Row | str]] = (),
    max_dropped: float = 0.1,
) -> dict[str, Any]:
    """Findings as plain JSON.

    Args:
        entries: (place, row), or (place, reason) for a line that is no row.
        tokens: without it, lengths, masks and cuts are not known.
        evaluation: rows that must not be trained on.
        max_dropped: largest share of rows that a run may drop.

    Returns:
        rows, kinds: how many rows have a good form, in all and per kind. errors, dropped: place and reason each.
        duplicates: places of equal rows, of equal prompts with another answer, and of prompts that differ only in case,
        punctuation or white space, each with the place of the first. overlap: the same against `evaluation`, or None.
        tokens: see `lengths`, or None. sample: a row as text, its supervised part in brackets, or None.
    """
    placed, errors = _formed(entries)
    others, bad_others = _formed(evaluation, is_one_kind=False)
    supervise = tokens.supervise if tokens else "completion"
    reasons = [(place, drop_of(row, row_kind(row), supervise)) for place, row in placed]
    dropped = [_finding(place, str(reason)) for place, reason in reasons if reason]
    found: dict[str, Any] = {
        "rows": len(placed),
        "kinds": dict(Counter(str(row_kind(row)) for _, row in placed)),
        "duplicates": duplicates(placed),
        "overlap": overlap(placed, others) if others else None,
        "tokens": None,
        "sample": None,
    }
    if tokens:
        blank = {place for place, reason in reasons if reason}
        measured = lengths([p for p in placed if p[0] not in blank], tokens)
        errors += measured.pop("errors")
        dropped += measured.pop("dropped")
        found["sample"] = measured.pop("sample")
        found["tokens"] = measured
    errors += bad_others + _whole(placed, errors, dropped, max_dropped)
    errors += [
        _finding(p["place"], f"is an evaluation item too: {p['first']}")
        for p in (found["overlap"] or {}).get("prompts", [])
    ]
    return found | {"errors": errors, "dropped": dropped}


def _finding(place: str, reason: str) -> Finding:
    return {"place": place, "reason": reason}


def _formed(
    entries: Iterable[tuple[str, Row | str]], *, is_one_kind: bool = True
) -> tuple[list[Placed], list[Finding]]:
    """Rows of good form with their places, and what is wrong with the others."""
    placed: list[Placed] = []
    errors: list[Finding] = []
    first: Kind | None = None
    for place, entry in entries:
        try:
            if isinstance(entry, str):
                raise DataError(entry)
            kind = checked_kind(entry)
            first = first or kind
            if is_one_kind and kind is not first:
                raise DataError(f"a row of {kind} after rows of {first}; all rows of a file are of one kind")
        except DataError as error:
            errors.append(_finding(place, str(error)))
        else:
            placed.append((place, entry))
    return placed, errors


def _whole(
    placed: Sequence[Placed], errors: Sequence[Finding], dropped: Sequence[Finding], max_dropped: float
) -> list[Finding]:
    """Errors of the file as a whole."""
    if not placed:
        return [] if errors else [_finding("rows", f"there are none; expected rows with {ACCEPTED}")]
    if len(dropped) == len(placed):
        return [_finding("rows", "all have to be dropped, none is left to train on")]
    if len(dropped) > max_dropped * len(placed):
        share = f"{len(dropped)} of {len(placed)} have to be dropped"
        return [_finding("rows", f"{share}, more than the share of {max_dropped:g} that a run allows")]
    return []


def loosely(prompt: str) -> str:
    """The words of a prompt, lower case: equal for prompts that differ in case, punctuation or white space only."""
    return " ".join(re.findall(r"\w+", prompt.casefold())) or prompt


def duplicates(placed: Sequence[Placed]) -> dict[str, list[dict[str, str]]]:
    """Rows that repeat an earlier one: as a whole, in the prompt alone, or nearly."""
    seen: tuple[dict[str, str], ...] = ({}, {}, {})
    found: dict[str, list[dict[str, str]]] = {"rows": [], "prompts": [], "near": []}
    for place, row in placed:
        prompt = prompt_of(row)
        whole = without_nulls([row.get(column) for column in TRAINED[row_kind(row)]])
        keys = json.dumps(whole, sort_keys=True, ensure_ascii=False), prompt, loosely(prompt)
        for label, key, known in zip(found, keys, seen, strict=True):
            if key in known:
                found[label].append({"place": place, "first": known[key]})
                break
        for key, known in zip(keys, seen, strict=True):
            known.setdefault(key, place)
    return found


def overlap(placed: Sequence[Placed], evaluation: Sequence[Placed]) -> dict[str, Any]:
    """Rows whose prompt is an evaluation item's, exactly or nearly."""
    exact = Prompts(evaluation)
    near = {loosely(prompt_of(row)): place for place, row in reversed(evaluation)}
    found: dict[str, Any] = {"items": len(evaluation), "prompts": [], "near": []}
    for place, row in placed:
        loose = loosely(prompt_of(row))
        if (first := exact.find(row)) is not None:
            found["prompts"].append({"place": place, "first": first})
        elif loose in near:
            found["near"].append({"place": place, "first": near[loose]})
    return found


def lengths(placed: Sequence[Placed], tokens: Tokens) -> dict[str, Any]:
    """Tokens of the rows.

    Returns:
        row, prompt, supervised: quantiles of tokens per row; before cutting, but for supervised. total_supervised;
        max_length; cut: places of rows cut at max_length; the counts of `unseen_counts`, and unseen: the places of those rows;
        and errors, dropped and sample as in `check_rows`.
    """
    found: dict[str, Any] = {"errors": [], "dropped": [], "cut": [], "unseen": [], "sample": None}
    samples = []
    counts: Mapping[str, list[int]] = {"row": [], "prompt": [], "supervised": []}
    ahead = rendered_ahead([row for _, row in placed], tokens.tokenizer, tokens.supervise)
    for (place, row), texts in zip(placed, ahead, strict=True):
        try:
            marked = mark_row(row, tokens.tokenizer, tokens.supervise, place, texts=texts)
        except DataError as error:
            found["errors"].append(_finding(place, str(error).removeprefix(f"{place}: ")))
            continue
        kept = marked if isinstance(marked, Drop) else cut_to(marked, tokens.max_length)
        if isinstance(marked, Drop) or isinstance(kept, Drop):
            found["dropped"].append(_finding(place, str(kept)))
            continue
        sample = Sample(kept.input_ids, kept.mask, place, None, {}, kept.unseen, kept.lacks_thinking)
        whole = len(marked.input_ids)
        for label, count in zip(counts, (whole, marked.mask.index(True), sample.supervised), strict=True):
            counts[label].append(count)
        if len(kept.input_ids) < whole:
            found["cut"].append(place)
        if kept.unseen or kept.lacks_thinking:
            found["unseen"].append(place)
        samples.append(sample)
        found["sample"] = found["sample"] or render_example(sample, tokens.tokenizer)
    figures = {label: quantiles(values) for label, values in counts.items() if values}
    found |= figures | unseen_counts(samples)
    return found | {"total_supervised": sum(counts["supervised"]), "max_length": tokens.max_length}


def quantiles(values: Sequence[int]) -> dict[str, int]:
    """Nearest-rank quantiles: each is one of the values."""
    ordered = sorted(values)
    return {name: ordered[max(0, math.ceil(q * len(ordered)) - 1)] for name, q in QUANTILES.items()}


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
        tokens = Tokens(tokenizer, effective_max_length(tokenizer, load_shape(loaded).positions, max_length))
    found = check_rows(_entries(file), tokens=tokens, evaluation=_entries(against) if against else ())
    return {"file": file, **found, "exit_code": DataError.exit_code if found["errors"] else 0}


def _entries(name: str) -> Any:
    if not name.startswith("embedded:"):
        return entries(name)
    return ((f"{name}:{n}", row) for n, row in enumerate(embedded_rows(name), start=1))
