"""Answers are read exactly; gold answers pass and near misses fail."""

import time

import pytest
from problems import problems

from semalign import embedded
from semalign.errors import ConfigError, DataError
from semalign.evaluation.tasks import check_answer, check_answers

PROMPT = '''import math
from typing import List

LIMIT = 3


def area(r: float) -> float:
    """The helper."""
    return math.pi * r**2


def sums(rs: List[float]) -> float:
    """Add up at most LIMIT areas."""
'''
ANSWER = "def sums(rs: List[float]) -> float:\n    return math.fsum(area(r) for r in rs[:LIMIT])\n"
BODY = ANSWER.partition("\n")[2]
FORMS = {
    "whole": PROMPT + BODY,
    "from def on": ANSWER,
    "body": BODY,
    "fenced": f"Sure.\n```python\n{ANSWER}```\nThat is all.",
    "fence never closed": f"```python\n{ANSWER}",
    "fence never opened": f"{ANSWER}```\nThat is all.",
    "prose that begins as code": f"from now on:\n\n{ANSWER}\nIt adds.",
    "future": "from __future__ import annotations\n" + ANSWER,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_an_answer_has_what_its_prompt_defines_in_every_form(form: str, end: str) -> None:
    check = {
        "kind": "python",
        "entry": "sums",
        "prefix": PROMPT.replace("\n", end),
        "asserts": ["assert abs(sums([1, 1, 1, 5]) - 3 * area(1)) < 1e-9"],
    }
    right, wrong = FORMS[form], FORMS[form].replace("[:LIMIT]", "")
    row = {"id": "sums", "check": check}
    found = check_answers(
        [row, row], [text.replace("\n", end) for text in (right, wrong)], allow_code_execution=True
    )
    assert [verdict.correct for verdict in found] == [True, False], found
    assert found[0].code is not None and "def area" in found[0].code and "\r" not in found[0].code


def test_canonical_solutions_pass_whole_from_def_on_and_as_a_body() -> None:
    given = problems()
    rows = [
        {
            "id": p["task_id"],
            "check": {
                "kind": "python",
                "entry": p["entry_point"],
                "prefix": p["prompt"],
                "asserts": [p["test"], f"check({p['entry_point']})"],
            },
        }
        for p in given
    ]
    whole = [p["prompt"] + p["canonical_solution"] for p in given]
    defined = [text[text.index(f"def {p['entry_point']}") :] for text, p in zip(whole, given, strict=True)]
    for answers in (
        whole,
        defined,
        [f"```python\n{text}" for text in defined],
        [p["canonical_solution"] for p in given],
    ):
        for end in ("\n", "\r\n"):
            found = check_answers(
                rows, [text.replace("\n", end) for text in answers], allow_code_execution=True
            )
            assert [r["id"] for r, v in zip(rows, found, strict=True) if not v.correct] == []


def test_gold_answers_pass_fast() -> None:
    rows = embedded.rows("test")
    started = time.monotonic()
    verdicts = check_answers(rows, [row["messages"][1]["content"] for row in rows], allow_code_execution=True)
    assert all(verdict.correct and verdict.extracted for verdict in verdicts)
    assert time.monotonic() - started < 20


def test_answers_of_other_rows_fail() -> None:
    rows = [row for row in embedded.rows("test") if row["task"] != "knowledge"]
    answers = [row["messages"][1]["content"] for row in rows]
    verdicts = check_answers(rows, answers[1:] + answers[:1], allow_code_execution=True)
    assert sum(verdict.correct for verdict in verdicts) < 0.05 * len(rows)
    knowledge = [row for row in embedded.rows("test") if row["task"] == "knowledge"]
    wrong = ["The answer is: " + chr(65 + (ord(row["check"]["answer"]) - 64) % 4) for row in knowledge]
    assert not any(verdict.correct for verdict in check_answers(knowledge, wrong, allow_code_execution=False))


def test_code_needs_permission() -> None:
    row = next(row for row in embedded.rows("test") if row["task"] == "code_write")
    with pytest.raises(ConfigError, match="allow_code_execution"):
        check_answer(row, row["messages"][1]["content"], allow_code_execution=False)
    assert check_answer(row, "no code here", allow_code_execution=True).extracted is False


def test_mistakes_are_named() -> None:
    with pytest.raises(DataError, match="kind letter, number or python"):
        check_answer({"id": "r1", "check": {"kind": "essay"}}, "x", allow_code_execution=False)
    with pytest.raises(DataError, match="one completion for each of 1 rows"):
        check_answers([{}], [], allow_code_execution=False)
