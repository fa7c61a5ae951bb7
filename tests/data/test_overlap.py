"""Prompts that are known: the same text, whatever stands around it, and with a system turn or without."""

from __future__ import annotations

from typing import Any

import pytest

from semalign.data.overlap import Prompts, disjoint, without_prompts_of


def chat(*turns: str, system: str | None = None) -> dict[str, Any]:
    """User and assistant in turn, below a system turn if one is given."""
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *messages]}


PLAIN, KIND, GRUFF = (
    chat("2 + 3?", "5"),
    chat("2 + 3?", "5", system="Be kind."),
    chat("2 + 3?", system="Be gruff."),
)


@pytest.mark.parametrize(
    ("trained", "held", "is_known"),
    [
        (PLAIN, chat("2  +\n3?"), True),
        (PLAIN, chat("2 + 4?"), False),
        (KIND, PLAIN, True),
        (PLAIN, KIND, True),
        (KIND, KIND, True),
        (KIND, GRUFF, False),
        ({"prompt": KIND["messages"][:2], "completion": KIND["messages"][2:]}, PLAIN, True),
        ({"prompt": "2 + 3?", "completion": "5"}, KIND, True),
        (chat("2 + 3?", "5", "And 4?"), chat("And 4?"), False),
    ],
)
def test_a_prompt_is_known_with_a_system_turn_or_without(
    trained: dict[str, Any], held: dict[str, Any], is_known: bool
) -> None:
    assert disjoint([trained], [held]) == is_known
    assert without_prompts_of([held], [trained]) == ([] if is_known else [held])


def test_the_first_place_of_a_prompt_is_told() -> None:
    known = Prompts([("a", KIND), ("b", PLAIN), ("c", PLAIN)])
    assert known.find(PLAIN) == "b" and known.find(KIND) == "a" and known.find(GRUFF) == "b"
    known.add("d", chat("new"))
    assert known.find(chat("new", system="Be kind.")) == "d" and known.find(chat("newer")) is None
