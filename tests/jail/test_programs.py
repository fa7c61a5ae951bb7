"""Programs are graded in order, each alone, and what does not come back has not passed."""

from __future__ import annotations

import pytest

from semalign.jail.process import Limits
from semalign.jail.programs import Outcome, Program, run_programs
from tests.jail.jails import QUICK, best


def of(code: str, *asserts: str) -> Program:
    return Program(code, asserts, ("f",))


RIGHT = of("def f(x): return x + 1", "assert f(1) == 2", "assert f(-1) == 0")


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_outcomes_come_in_the_order_of_the_programs(workers: int) -> None:
    wrong, broken = of("def f(x): return x", "assert f(1) == 2"), of("def f(x: return x", "assert f(1) == 2")
    found = run_programs([RIGHT, wrong, RIGHT, broken, RIGHT], limits=QUICK, workers=workers, backend=best())
    assert [outcome.passed for outcome in found] == [True, False, True, False, True]
    assert (
        found[0] == Outcome(True, "passed")
        and "AssertionError" in found[1].reason
        and "SyntaxError" in found[3].reason
    )


@pytest.mark.parametrize(
    "code",
    [
        "def f(x):\n    while True: pass",
        "def f(x): return 'x' * 10**9",
        "import os\ndef f(x): os._exit(0)",
        "raise SystemExit(0)",
        "def f(x): return f(x)",
    ],
)
def test_a_program_that_does_not_come_back_has_not_passed_and_takes_no_other_along(code: str) -> None:
    found = run_programs(
        [of(code, "assert f(1) == 2"), RIGHT], limits=Limits(cpu_seconds=1), workers=1, backend=best()
    )
    assert [outcome.passed for outcome in found] == [False, True], found
    assert found[0].reason


def test_the_asserts_see_what_the_task_s_text_before_the_answer_defines() -> None:
    prefix = "import math\ndef near(a, b): return math.isclose(a, b)\n"
    code = prefix + "def f(x): return x / 3"
    assert run_programs([Program(code, ("assert near(f(1), 1 / 3)",), ("f",), prefix)], backend=best())[
        0
    ].passed
    # What the answer makes of them is not what the asserts call.
    cheat = code + "\ndef near(a, b): return True\ndef f(x): return 7"
    assert not run_programs([Program(cheat, ("assert near(f(1), 1 / 3)",), ("f",), prefix)], backend=best())[
        0
    ].passed


def test_nothing_to_run_asks_for_nothing() -> None:
    assert run_programs([]) == []
