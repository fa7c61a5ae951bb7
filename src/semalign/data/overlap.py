"""Whether held-out rows were trained on."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

from semalign.data.chat import Message, conversation
from semalign.data.kinds import CONVERSATIONS, Kind, Row, row_kind, supervised_ids, tools_of, without_nulls

Place = TypeVar("Place", bound=Hashable)


class Prompts(Generic[Place]):
    """Where prompts stand that are known.

    They are compared as `prompt_of` gives them, letter case kept; roles do not count. A row without a prompt is compared as a whole. A
    prompt with a system turn is also the same without it, but not the same with another one.
    """

    def __init__(self, placed: Iterable[tuple[Place, Row]] = ()) -> None:
        self._whole: dict[str, Place] = {}
        self._with_system: dict[str, Place] = {}
        self._without: dict[str, Place] = {}
        for place, row in placed:
            self.add(place, row)

    def add(self, place: Place, row: Row) -> None:
        """Know a row's prompt too; the first place stays."""
        rest, whole = _without_system(row), prompt_of(row)
        self._whole.setdefault(whole, place)
        if rest is None:
            self._without.setdefault(whole, place)
        else:
            self._with_system.setdefault(prompt_of(rest), place)

    def find(self, row: Row) -> Place | None:
        """Where a row's prompt stands; None where it is not known."""
        rest, whole = _without_system(row), prompt_of(row)
        if whole in self._whole:
            return self._whole[whole]
        return self._with_system.get(whole) if rest is None else self._without.get(prompt_of(rest))

    def shared(self, rows: Sequence[Row]) -> int:
        """How many rows have a prompt that is known."""
        return sum(self.find(row) is not None for row in rows)


def disjoint(train_rows: Sequence[Row], heldout_rows: Sequence[Row]) -> int:
    """How many held-out rows have a prompt that is in the training rows too, compared as `Prompts` does; 0 means disjoint."""
    return Prompts(enumerate(train_rows)).shared(heldout_rows)


def without_prompts_of(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """The rows whose prompt, compared likewise, no other row has."""
    known = Prompts(enumerate(others))
    return [row for row in rows if known.find(row) is None]


def _without_system(row: Row) -> Row | None:
    """A conversation without its system turns; None where it has none, or the row is something else."""
    kind = row_kind(row)
    turns = conversation(row, kind) if kind in CONVERSATIONS else []
    kept = [turn for turn in turns if turn["role"] not in ("system", "developer")]
    if len(kept) == len(turns):
        return None
    return {k: v for k, v in row.items() if k not in ("prompt", "completion")} | {"messages": kept}


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
