"""What makes a row one of the kinds that can be supervised, and why another is none."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semalign.data.kinds import CONVERSATIONS, Kind, row_kind, supervised_ids
from semalign.errors import DataError

TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"input_ids": [1, 2]}, Kind.IDS),
        ({"input_ids": [1, 2], "labels": [-100, 2]}, Kind.IDS),
        ({"input_ids": [1, 2], "completion_mask": [False, True]}, Kind.IDS),
        ({"messages": TURNS}, Kind.MESSAGES),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, Kind.CHAT_PAIR),
        ({"prompt": "Q", "completion": "A"}, Kind.STRING_PAIR),
        ({"text": "Q"}, Kind.TEXT),
    ],
)
def test_a_row_of_each_kind_is_known_whatever_else_it_holds(row: dict[str, Any], kind: Kind) -> None:
    assert row_kind(row) is kind
    assert row_kind(row | {"id": 3, "task": "t", "anything": [{}]}) is kind
    assert (kind in CONVERSATIONS) == any(value == TURNS[:1] or value == TURNS for value in row.values())


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"input_ids": None}, Kind.IDS),
        ({"input_ids": [], "labels": []}, Kind.IDS),
        ({"input_ids": [1], "labels": None, "completion_mask": None}, Kind.IDS),
        ({"messages": None}, Kind.MESSAGES),
        ({"messages": []}, Kind.MESSAGES),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}, Kind.MESSAGES),
        ({"messages": [{"role": "user"}]}, Kind.MESSAGES),
        ({"prompt": TURNS, "completion": None}, Kind.CHAT_PAIR),
        ({"prompt": "Q", "completion": None}, Kind.STRING_PAIR),
        ({"text": None}, Kind.TEXT),
    ],
)
def test_a_null_or_empty_value_is_no_mistake_of_form(row: dict[str, Any], kind: Kind) -> None:
    assert row_kind(row) is kind


def test_a_prompt_alone_is_a_pair_that_awaits_its_completion() -> None:
    assert row_kind({"prompt": "Q"}) is Kind.STRING_PAIR
    assert row_kind({"prompt": TURNS[:1]}) is Kind.CHAT_PAIR


def test_of_several_kinds_the_first_that_is_not_null_decides() -> None:
    row: dict[str, Any] = {"text": "Q", "prompt": "Q", "completion": "A", "messages": TURNS, "input_ids": [1]}
    order = {"input_ids": Kind.IDS, "messages": Kind.MESSAGES, "prompt": Kind.STRING_PAIR, "text": Kind.TEXT}
    for column, kind in order.items():
        assert row_kind(row) is kind
        row[column] = None
    assert row_kind(row) is Kind.IDS, "with nothing but null the first column does"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "found columns [], expected messages, prompt + completion, text, or input_ids"),
        ({"question": 1, 7: 2}, "found columns ['7', 'question'], expected messages"),
        ({"completion": "A"}, "found columns ['completion'], expected"),
        ({"text": 5}, "text is a number, expected a string"),
        ({"text": 0.5}, "text is a number, expected a string"),
        ({"text": True}, "text is a boolean, expected a string"),
        ({"text": b"Q"}, "text is bytes, expected a string"),
        ({"messages": TURNS[0]}, "messages is an object, expected a list of messages"),
        (
            {"messages": [*TURNS, "Q"]},
            "messages, message 3: expected an object with role and content, got 'Q'",
        ),
        (
            {"messages": [{"role": 1}]},
            "messages, message 1: expected an object with role and content, got {'role': 1}",
        ),
        (
            {"messages": [*TURNS, {"role": "user", "content": ["Q"]}]},
            "messages, message 3: content is a list, expected a string",
        ),
        ({"prompt": ["Q"], "completion": []}, "prompt, message 1: expected an object with role and content"),
        (
            {"prompt": [], "completion": [{"role": "assistant", "content": 4}]},
            "completion, message 1: content is a number",
        ),
        ({"prompt": None, "completion": None}, "prompt is null and completion is null, expected two strings"),
        ({"prompt": "Q", "completion": TURNS}, "prompt is a string and completion is a list, expected two"),
        ({"prompt": TURNS, "completion": "A"}, "prompt is a list and completion is a string, expected two"),
        ({"input_ids": "12"}, "input_ids is not a list of token ids"),
        ({"input_ids": [1, True]}, "input_ids is not a list of token ids"),
        ({"input_ids": [1, 2.0]}, "input_ids is not a list of token ids"),
        (
            {"input_ids": [1, 2], "labels": [1]},
            "labels is not a list of 2 integers, one for each of input_ids",
        ),
        ({"input_ids": [1, 2], "completion_mask": [1, None]}, "completion_mask is not a list of 2 integers"),
        ({"input_ids": [1, 2], "completion_mask": [1, 1, 1]}, "completion_mask is not a list of 2 integers"),
        (
            {"input_ids": [1, 2, 3], "labels": [-100, 3, -100]},
            "labels[1] is 3, expected -100 or input_ids[1] = 2 (labels are not shifted)",
        ),
    ],
)
def test_what_fits_no_kind_has_its_reason_without_a_place(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match="^" + re.escape(reason)):
        row_kind(row)


def test_a_long_message_is_not_quoted_in_full() -> None:
    with pytest.raises(DataError) as caught:
        row_kind({"messages": ["x" * 10_000]})
    assert len(str(caught.value)) < 200


columns = st.sampled_from(
    ["input_ids", "labels", "completion_mask", "messages", "prompt", "completion", "text"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-100, 3) | st.text(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content"]), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(st.dictionaries(columns, values))
def test_every_row_has_a_kind_or_a_reason(row: dict[str, Any]) -> None:
    try:
        kind = row_kind(row)
    except DataError as error:
        assert "expected" in str(error) or "is not a list of" in str(error)
    else:
        assert any(column in row for column in re.findall(r"\w+", kind))
        if kind is Kind.IDS and row["input_ids"] is not None:
            assert len(supervised_ids(row)) == len(row["input_ids"])


def test_labels_come_before_the_mask_and_without_either_every_id_is_supervised() -> None:
    row: dict[str, Any] = {"input_ids": [5, 6, 7], "labels": [-100, 6, -100], "completion_mask": [1, 0, 1]}
    assert supervised_ids(row) == [False, True, False]
    assert supervised_ids(row | {"labels": None}) == [True, False, True]
    assert supervised_ids({"input_ids": [5, 6, 7]}) == [True] * 3
    assert supervised_ids({"input_ids": None}) == []


def test_a_row_without_ids_supervises_nothing() -> None:
    for row in (
        {"input_ids": None, "labels": [5]},
        {"input_ids": None, "completion_mask": [1]},
        {"input_ids": None},
    ):
        assert supervised_ids(row) == []
