"""Answers are read exactly; gold answers pass and near misses fail."""

import time

import pytest

from semalign import embedded
from semalign.errors import ConfigError, DataError
from semalign.evaluation.tasks import (
    check_answer,
    check_answers,
    extract_code,
    extract_letter,
    extract_number,
)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is: B", "B"),
        ("So the answer is: (C).", "C"),
        ("The answer is A, no, the answer is D", "D"),
        ("Answer: A", "A"),
        ("The answer is **B**.", "B"),
        ("B", "B"),
        ("B) Belmor", "B"),
        ("(D)", "D"),
        ("A town on a river", None),
        ("The answer is Belmor", None),
        ("The answer is: E", None),
        ("", None),
    ],
)
def test_letters(text: str, letter: str | None) -> None:
    assert extract_letter(text, 4) == letter


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = 7. So the answer is 7.", 7),
        ("The answer is 7. Check: 3 + 4.", 7),
        ("We get 1,250 and then -3", -3),
        ("#### 1,250", 1250),
        ("The answer is $2.50", 2.5),
        ("That makes 12.", 12),
        ("no idea", None),
        ("x2 is a name", None),
    ],
)
def test_numbers(text: str, number: float | None) -> None:
    assert extract_number(text) == number


def test_code_with_and_without_fences() -> None:
    plain = "def f(x):\n    return x + 1\n"
    assert extract_code(plain, "f") == plain
    assert extract_code(f"Sure:\n```python\n{plain}```\nDone.", "f") == plain
    assert extract_code(f"```\n{plain}", "f") == plain
    assert extract_code(plain.replace("\n", "\r\n"), "f") == plain
    assert extract_code("Here it is.\n" + plain + "This adds one.", "f") == plain
    assert extract_code("import math\n" + plain, "f") == "import math\n" + plain
    assert extract_code("    return x + 1", "f", "def f(x):\n") == plain
    assert extract_code("return x + 1", "f", "def f(x):\n") == plain
    assert extract_code("def g(x):\n    return x\n", "f") is None
    assert extract_code("def f(x", "f") is None


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
