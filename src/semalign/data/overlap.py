"""Whether held-out rows were trained on."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence

from semalign.data.chat import Message, conversation
from semalign.data.kinds import Kind, Row, row_kind, supervised_ids, tools_of, without_nulls


def disjoint(train_rows: Sequence[Row], heldout_rows: Sequence[Row]) -> int:
    """How many held-out rows have a prompt that is in the training rows too; 0 means disjoint.

    Prompts are compared as `prompt_of` gives them, letter case kept; roles do not count. A row without a prompt is compared as a whole.
    """
    seen = {prompt_of(row) for row in train_rows}
    return sum(prompt_of(row) in seen for row in heldout_rows)


def without_prompts_of(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """The rows whose prompt, compared as `disjoint` does, no other row has."""
    known = {prompt_of(row) for row in others}
    return [row for row in rows if prompt_of(row) not in known]


def prompt_of(row: Row) -> str:
    """What rows are compared by: NFC text of the tools and of all turns before the answer, calls included, white space runs as one space."""
    kind = row_kind(row)
    if kind is Kind.IDS:
        return _prompt_ids(row)
    if kind is Kind.TEXT:
        parts = ["", row["text"] or ""]
    elif kind is Kind.STRING_PAIR:
        parts = [row["prompt"], row.get("completion") or ""]
    else:
        turns = conversation(row, kind)
        answer = turns.pop() if turns and turns[-1]["role"] == "assistant" else {}
        parts = [" ".join([*map(_turn, turns), _json(tools_of(row))]), _turn(answer)]
    prompt, whole = normalised(parts[0]), normalised(" ".join(parts))
    return prompt or whole


def _turn(turn: Message) -> str:
    return f"{turn.get('content') or ''} {_json(turn.get('tool_calls'))}"


def _json(value: object) -> str:
    """Calls or tools as text; keys sorted, for Arrow changes their order, and nulls as absent."""
    return json.dumps(without_nulls(value), sort_keys=True, ensure_ascii=False) if value else ""


def _prompt_ids(row: Row) -> str:
    """The unsupervised ids, or all of them, as a string that no text of another kind equals."""
    ids = row["input_ids"] or []
    prompt = [i for i, supervised in zip(ids, supervised_ids(row), strict=True) if not supervised]
    return "\0ids " + " ".join(map(str, prompt or ids))


def normalised(text: str) -> str:
    """NFC text with every run of white space as one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())
