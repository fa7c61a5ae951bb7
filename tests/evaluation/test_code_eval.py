"""The harness' tasks that run code are graded in the jail, as pass@k."""

from __future__ import annotations

import pytest

from semalign.evaluation.code_eval import CodeEval, program_of
from semalign.jail.process import offered

PROMPT = "from math import sqrt\n\ndef root(x):\n"
RIGHT, WRONG = PROMPT + "    return sqrt(x)\n", PROMPT + "    return 1\n"
TESTS = "def check(candidate):\n    assert candidate(4) == 2\ncheck(root)"


def test_of_an_item_the_entry_is_the_answer_s_and_the_rest_the_prompt_s() -> None:
    program = program_of(RIGHT, TESTS, PROMPT)
    assert program.entries == ("root",) and program.prefix == PROMPT and program.asserts == (TESTS,)
    plain = program_of("def f(x): return x\n", "assert f(1) == 1\nassert g(2) == 2", "write f")
    assert plain.entries == ("f", "g") and not plain.prefix


@pytest.mark.skipif(offered() is None, reason="this machine offers no jail")
def test_pass_at_k_counts_right_answers_of_each_item() -> None:
    metric = CodeEval(True)
    metric.doc = {"prompt": PROMPT}
    rates, _ = metric.compute(
        references=[TESTS, TESTS], predictions=[[RIGHT, WRONG], [WRONG, WRONG]], k=[1, 2, 5]
    )
    assert rates == {"pass@1": 0.25, "pass@2": 0.5}
