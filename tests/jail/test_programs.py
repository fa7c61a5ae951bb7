"""Programs and their outcomes: in order, whatever each does, and right for all that is known to be right."""

from __future__ import annotations

import pytest
from jail.jails import KINDS, QUICK, backend, best
from problems import problems

from semalign import embedded
from semalign.evaluation.tasks import extract_code
from semalign.jail import programs as module
from semalign.jail.programs import Program, jails_kept, run_programs

RIGHT, WRONG = "def f(x): return x + 1", "def f(x): return x"
ASSERTS = ("assert f(1) == 2",)


def test_outcomes_come_in_order_and_a_jail_that_ends_costs_one_program() -> None:
    codes = [RIGHT, WRONG, "import os\nos._exit(0)", RIGHT, "while True: pass", RIGHT, WRONG]
    for workers in (1, 2, 9):
        outcomes = run_programs(
            [Program(c, ASSERTS, ("f",)) for c in codes], limits=QUICK, workers=workers, backend=best()
        )
        assert [outcome.passed for outcome in outcomes] == [code == RIGHT for code in codes]
        assert all(outcome.passed == (outcome.reason == "passed") for outcome in outcomes)
    assert run_programs([]) == []


def test_without_a_verdict_nothing_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semalign.jail.process._START_SECONDS", 0.0)
    outcomes = run_programs([Program(RIGHT, ASSERTS, ("f",))] * 2, backend=best())
    assert [outcome.reason.startswith("the sandbox gave no verdict") for outcome in outcomes] == [True, True]
    assert not any(outcome.passed for outcome in outcomes)


def test_single_programs_share_a_jail_while_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    real = module.Jail
    monkeypatch.setattr(module, "Jail", lambda *given: started.append(given) or real(*given))
    chosen = best()
    with jails_kept():
        for code in (RIGHT, WRONG, RIGHT):
            (outcome,) = run_programs([Program(code, ASSERTS, ("f",))], backend=chosen)
            assert outcome.passed == (code == RIGHT)
    assert len(started) == 1
    run_programs([Program(RIGHT, ASSERTS, ("f",))], backend=chosen)
    assert len(started) == 2


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("assert f(2) == 3", True),
        ("assert f([1, -2], {'a': (1,)}) == {1}\nassert f(1) is None", True),
        ("assert f(f(2)) == 3", True),
        ("assert f(2) in [1, 2] and True", False),
        ("assert f(2).x == 3", False),
        ("assert g(2) == 3", False),
        ("assert f == 3", False),
        ("assert f(x=2) == 3", False),
        ("assert f(lambda: 1)", False),
        ("import math", False),
        ("x = 1", False),
        ("assert [f(n) for n in ()] == []", False),
        ("assert f(2) ==", False),
        ("(" * 1000, False),
    ],
)
def test_asserts_that_run_no_code_are_known(text: str, bare: bool) -> None:
    assert module._is_bare(text, ("f",)) is bare


@pytest.mark.parametrize("kind", KINDS)
def test_500_true_solutions_of_the_embedded_world_are_right(kind: str) -> None:
    rows = [r for split in ("test", "validation", "transfer") for r in embedded.rows(split)]
    rows = [row for row in rows if row.get("check", {}).get("kind") == "python"][:500]
    assert len(rows) == 500
    programs = []
    for row in rows:
        check = row["check"]
        code = extract_code(row["messages"][1]["content"], check["entry"], check["prefix"])
        programs.append(Program(str(code), tuple(check["asserts"]), (check["entry"],), check["prefix"]))
    assert {outcome.reason for outcome in run_programs(programs, backend=backend(kind))} == {"passed"}


def test_the_canonical_solutions_of_humaneval_are_right() -> None:
    given = problems()
    programs = [
        Program(
            p["prompt"] + p["canonical_solution"],
            (p["test"], f"check({p['entry_point']})"),
            (p["entry_point"],),
            p["prompt"],
        )
        for p in given
    ]
    outcomes = run_programs(programs, backend=best())
    assert {p["task_id"]: o.reason for p, o in zip(given, outcomes, strict=True) if not o.passed} == {}
    wrong = [
        Program(p["prompt"] + "    return None\n", q.asserts, q.entries, q.prefix)
        for p, q in zip(given, programs, strict=True)
    ]
    assert not any(outcome.passed for outcome in run_programs(wrong, backend=best()))
