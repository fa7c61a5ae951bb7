"""Items that cannot be answered or graded stop before a model is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from semalign.data.items import as_item, with_check
from semalign.errors import DataError

TURNS = [{"role": "user", "content": "sum of 1 and 2"}, {"role": "assistant", "content": "3"}]


def item(**changes: Any) -> dict[str, Any]:
    row = {"task": "sum", "messages": TURNS, "check": {"kind": "number", "answer": 3}} | changes
    return {k: v for k, v in row.items() if v != "absent"}


@pytest.mark.parametrize(
    "check",
    [
        {"kind": "number", "answer": 3},
        {"kind": "number", "answer": "3.5"},
        {"kind": "letter", "answer": "D"},
        {"kind": "letter", "answer": "B", "options": ["x", "y"]},
        {"kind": "python", "entry": "f", "asserts": ["assert f() == 1"], "prefix": "def f():\n"},
    ],
)
def test_a_good_item_stays_as_it_is(check: dict[str, Any]) -> None:
    assert as_item(item(check=check), "x") == item(check=check)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"check": None}, "check: expected"),
        ({"check": "absent"}, "check: found nothing there"),
        ({"task": "absent"}, "task: found nothing there"),
        ({"task": 3}, "task: expected a text, got 3"),
        ({"check": {"kind": "exact"}}, "check.*'letter', 'number', 'python'"),
        ({"check": {"kind": "number"}}, "answer: found nothing there"),
        ({"check": {"kind": "number", "answer": "2 apples"}}, "expected a number, got '2 apples'"),
        ({"check": {"kind": "number", "answer": "nan"}}, "expected a number"),
        ({"check": {"kind": "number", "answer": True}}, "answer"),
        ({"check": {"kind": "letter", "answer": "E"}}, "letter of an option, got 'E'"),
        ({"check": {"kind": "letter", "answer": "C", "options": ["x", "y"]}}, "letter of an option, got 'C'"),
        ({"check": {"kind": "letter", "answer": "A", "options": []}}, "options"),
        ({"check": {"kind": "python", "asserts": ["assert f()"]}}, "entry: found nothing there"),
        ({"check": {"kind": "python", "entry": "f"}}, "asserts: found nothing there"),
        ({"check": {"kind": "python", "entry": "f", "asserts": []}}, "asserts"),
        ({"check": {"kind": "python", "entry": "f(", "asserts": ["assert f()"]}}, "name of a function"),
        ({"check": {"kind": "python", "entry": "f", "asserts": ["assert ("]}}, "expected Python"),
        ({"messages": "absent", "prompt": "1 and 2", "completion": "3"}, "expected messages"),
        ({"messages": "absent", "text": "1 and 2 is 3"}, "expected messages"),
        ({"messages": TURNS[1:]}, "expected messages"),
        ({"messages": "absent"}, "found columns"),
    ],
)  # fmt: skip
def test_a_bad_item_is_one_sentence_with_its_place(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(
        DataError, match=rf"^items\.jsonl: item 2: .*{said}.*mend it, see the docs on tasks\.$"
    ):
        as_item(item(**changes), "items.jsonl: item 2")


def test_prompt_and_completion_as_message_lists_become_messages() -> None:
    given = item(messages="absent", prompt=TURNS[:1], completion=TURNS[1:])
    assert as_item(given, "x") == item()


def test_a_null_id_is_none() -> None:
    assert "id" not in as_item(item(id=None), "items: item 1")
    assert as_item(item(id=0), "items: item 1")["id"] == 0


def test_what_other_rows_of_a_parquet_file_have_is_not_missed() -> None:
    check = {"kind": "letter", "answer": "B", "options": None, "entry": None, "prefix": None}
    row = {"task": "t", "messages": [{"role": "user", "content": "?"}], "check": check}
    assert as_item(row, "row 1")["check"] == {"kind": "letter", "answer": "B"}
    assert with_check({"check": check}, "row 1")["check"] == {"kind": "letter", "answer": "B"}


@pytest.mark.parametrize(
    "check",
    [
        {"kind": "number", "answer": "1,000"},
        {"kind": "number"},
        {"kind": "python", "asserts": ["f()"]},
        {"kind": "letter", "answer": "b"},
        None,
    ],
)
def test_a_check_that_can_grade_nothing_is_refused(check: Any) -> None:
    with pytest.raises(DataError, match="row 3: expected a check of its answers, but"):
        with_check({"check": check}, "row 3")
