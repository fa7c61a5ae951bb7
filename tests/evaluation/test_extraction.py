"""Letters, numbers and code are read from answers as their authors mean them."""

from __future__ import annotations

import ast
import textwrap

import pytest

from semalign.evaluation.extraction import (
    extract_code,
    extract_letter,
    extract_number,
    thinking_opened,
    without_thinking,
)

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
        ("The answer is $B$", "B"),
        (r"$\textbf{(B)}$", "B"),
        (r"$\mathbf{B}$", "B"),
        ("the answer: 'B'", "B"),
        ("The answer is B's", None),
        ("_B_", "B"),
        ("*Answer:* B", "B"),
        ("**Answer: _B_**", "B"),
        ("(b)", "B"),
        ("The answer is (c).", "C"),
        ("The answer is c", None),
        ("(a town)", None),
        ("*A* town on a river", None),
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
        (r"\boxed{2\frac{1}{2}}", 2.5),
        (r"The answer is $-2 \frac{1}{2}$, not 1.", -2.5),
        (r"The answer is $5 \times 3 = 15$.", 15),
        (r"The answer is \(20 \div 4 = 5\), from 3.", 5),
        (r"The answer is $5 \cdot 3 = 15$, from 3.", 15),
        ("The answer is 5 x 3 = 15, from 3.", 15),
        ("The answer is 2^3 = 8, from 3.", 8),
        ("The answer is 2 *3 = 6, from 4.", 6),
        ("The answer is 2 1/2 + 1 = 3.5, from 4.", 3.5),
        ("The answer is 2 + 4 = 5 + 1 = 6, from 4.", 6),
        ("The answer is 50% of 20 = 10, from 3.", 10),
        ("The answer is 5 red apples + 3 apples = 8 apples, from 3.", 8),
        ("The answer is (2 + 3) * $4 = $20, from 3.", 20),
        ("The answer is 18. 3 + 4 = 7 is less.", 18),
        ("The answer is 18 and 3 + 4 = 7.", 18),
        ("Answer: 12 (2 * 5 = 10, plus 2)", 12),
        ("The answer is $x = 5$, from 3 boxes.", 5),
        ("The answer is 12\n1/2 of 24 is 12.", 12),
        ("The answer is *18*. It has 3.", 18),
        ("The answer is **_18_**. It has 3.", 18),
        ("__18__", 18),
        ("The area is 18 cm^2", 18),
        ("The area is 18 cm^{2}", 18),
        ("The answer is - 5, from 3.", -5),
        ("The answer is:\n- 5 apples\n- 3 pears", 3),
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


@pytest.mark.parametrize("tail", ["-" * 9000, "not " * 7000, "~" * 7000])
def test_what_python_cannot_read_for_its_depth_is_no_code(tail: str) -> None:
    plain = "def f(x):\n    return x\n"
    assert extract_code(f"{plain}{tail}", "f") == plain
    assert extract_code(f"    return x\n{tail}", "f", "def f(x):\n") == plain
    assert extract_code("def f(x):\n    return x" + "+1" * 3000, "f") is None
    assert extract_code(plain, "f", f"{tail}\ndef f(x):\n") == plain


BODY = "    y = 0\n    for x in xs:\n        y = x\n    return y"


@pytest.mark.parametrize("start", ['def f(xs):\n    """The last."""\n', "def f(xs):\n"])
@pytest.mark.parametrize("end", ["", "\n\nThis gives the last."])
@pytest.mark.parametrize(
    "body",
    [BODY, BODY[1:], BODY.lstrip(), textwrap.dedent(BODY), textwrap.indent(textwrap.dedent(BODY), "  ")],
    ids=["whole", "a space lost", "first indent lost", "no indent", "another indent"],
)
def test_a_body_is_whole_however_it_is_indented(start: str, end: str, body: str) -> None:
    code = extract_code(body + end, "f", start)
    assert code is not None and ast.dump(ast.parse(code)) == ast.dump(ast.parse(start + BODY))


@pytest.mark.parametrize("answer", ["", "I do not know.", "y = (0"])
def test_a_prompt_alone_is_no_answer_though_it_compiles(answer: str) -> None:
    assert extract_code(answer, "f", 'def f(xs):\n    """The last."""\n') is None


HARMONY = "<|channel|>analysis<|message|>12? No.<|end|><|start|>assistant"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The answer is 3.", "The answer is 3."),
        ("<think>The answer is 12? No.</think>\n\n15", "\n\n15"),
        ("12? No.</think> 15", " 15"),
        ("<think>It may be 12", ""),
        ("<seed:think>12? No.</seed:think>15", "15"),
        ("[THINK]12? No.[/THINK]15", "15"),
        ("[THINK]12?", ""),
        (f"{HARMONY}<|channel|>final<|message|>15", "15"),
        (f"{HARMONY}<|channel|>commentary<|message|>12?", ""),
        ("<|channel|>analysis<|message|>12?", ""),
    ],
)
def test_what_is_thought_is_not_said(text: str, said: str) -> None:
    assert without_thinking(text) == said


@pytest.mark.parametrize(
    ("prompt", "mark"),
    [
        ("<|assistant|><think>\n", "<think>"),
        ("<|assistant|><think>\n\n</think>\n\n", ""),
        ("<|assistant|>", ""),
        ("<think>x</think><|assistant|>", ""),
    ],
)
def test_a_prompt_may_end_where_the_model_is_to_think(prompt: str, mark: str) -> None:
    assert thinking_opened(prompt) == mark
