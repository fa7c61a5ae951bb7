"""Letters, numbers and code are read from answers as their authors mean them."""

from __future__ import annotations

import pytest

from semalign.evaluation.extraction import extract_code, extract_letter, extract_number, without_thinking

from .test_tasks import ANSWER, PROMPT


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is: B", "B"),
        ("So the answer is: (C).", "C"),
        ("The answer is A, no, the answer is D", "D"),
        ("Answer: A", "A"),
        ("The answer is **B**.", "B"),
        ("**Answer:** B", "B"),
        ("**Answer**: B", "B"),
        (r"The answer is \boxed{B}", "B"),
        (r"\(\boxed{\text{C}}\)", "C"),
        ("The correct answer is option B", "B"),
        ("The correct option is D.", "D"),
        ("The answer is B. Answer A is wrong, because", "B"),
        ("The answer is (B), not answer C.", "B"),
        ("Option A: 5\nOption B: 6\nAnswer: A", "A"),
        ("I choose answer C", "C"),
        ("**B**", "B"),
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
        ("The answer is **18** dollars. 18 is less than 20.", 18),
        (r"Thus, \(\boxed{18}\) apples are in 3 boxes.", 18),
        (r"The answer is $\boxed{\dfrac{1}{2}}$.", 0.5),
        (r"$1{,}000$", 1000),
        (r"\$18", 18),
        ("The answer is approximately 18, from 3 boxes", 18),
        ("Answer: 18 (3 + 15)", 18),
        ("The answer is 5 + 3 = 8, as 2 * 4.", 8),
        ("The answer is x = 5, from 3", 5),
        ("The answer is 5 a box. So, 20 in all", 5),
        ("3/4", 0.75),
        ("2 1/2", 2.5),
        ("3 4/0", 3),
        ("3/" + 5000 * "9", 0),
        ("-$5", -5),
        ("−5", -5),
        ("10 - 5", 5),
        ("US$5", 5),
        ("1e5", 1e5),
        (".5", 0.5),
        ("[1,2]", 2),
        ("1,00,000", 100_000),
        ("2**3", 3),
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


def test_what_an_answer_defines_anew_replaces_the_prompt_s() -> None:
    code = extract_code("LIMIT = 1\n\n" + ANSWER, "sums", PROMPT)
    assert code is None or code.index("LIMIT = 3") < code.index("def sums")
    code = extract_code("import math\nLIMIT = 1\n" + ANSWER, "sums", PROMPT)
    assert code is not None and code.index("LIMIT = 3") < code.index("LIMIT = 1") < code.index("def sums")


def test_a_prompt_without_the_wanted_function_gives_its_names() -> None:
    setup = "import heapq as given\n"
    code = extract_code("def least(xs):\n    return given.nsmallest(1, xs)[0]\n", "least", setup)
    assert code is not None and code.startswith("import heapq as given\n")
    assert extract_code("return 1", "least", setup) is None


def test_a_draft_that_does_not_compile_is_no_answer_where_a_later_one_does() -> None:
    draft = "```python\ndef f(x:\n```"
    assert (
        extract_code(f"{draft} no:\n```python\ndef f(x):\n    return x\n```", "f")
        == "def f(x):\n    return x\n"
    )
    # Nor is the prompt alone, which may compile without a body of its own.
    assert extract_code(draft, "f", 'def f(x):\n    """Gives x."""\n') is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The answer is 3.", "The answer is 3."),
        ("<think>The answer is 12? No.</think>\n\n15", "\n\n15"),
        ("12? No.</think> 15", " 15"),
        ("<think>It may be 12", ""),
    ],
)
def test_what_is_thought_is_not_said(text: str, said: str) -> None:
    assert without_thinking(text) == said
