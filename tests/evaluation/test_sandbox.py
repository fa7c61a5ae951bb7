"""Hostile and clumsy programs must not pass, must end in time and must leave nothing behind."""

import glob
import os
import tempfile
from pathlib import Path

import pytest

from semalign.evaluation.sandbox import Limits, Program, run_programs

QUICK = Limits(cpu_seconds=1, wall_seconds=2.0, memory_bytes=256 * 2**20)


def reason(code: str, *asserts: str) -> str:
    (outcome,) = run_programs([Program(code, asserts or ("assert True",))], limits=QUICK, workers=1)
    assert outcome.passed == (outcome.reason == "passed")
    return outcome.reason


def test_right_and_wrong_code() -> None:
    code = "def twice(x):\n    return x * 2\n"
    assert reason(code, "assert twice(2) == 4") == "passed"
    assert reason(code, "assert twice(2) == 5").startswith("AssertionError")
    assert reason("def twice(x:", "assert twice(2) == 4").startswith("SyntaxError")
    assert reason("import math, collections, dataclasses, json, datetime") == "passed"


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMALIGN_SECRET", "hush")
    code = "import os"
    assert (
        reason(code, "assert 'SEMALIGN_SECRET' not in os.environ", "assert not os.environb.get(b'HOME')")
        == "passed"
    )


def test_programs_do_not_see_each_other_and_leave_nothing() -> None:
    pattern = os.path.join(tempfile.gettempdir(), "semalign-sandbox-*")
    before = set(glob.glob(pattern))
    programs = [
        Program(
            "import builtins, os\nbuiltins.len = lambda x: 7\nopen('left', 'w')", ("assert len([]) == 7",)
        ),
        Program("import os", ("assert len([]) == 0", "assert os.listdir('.') == []")),
        Program("while True: pass", ()),
        Program("x = 1", ("assert x == 1",)),
    ]
    for workers in (1, 2, 9):
        outcomes = run_programs(programs, limits=QUICK, workers=workers)
        assert [outcome.passed for outcome in outcomes] == [True, True, False, True]
    assert set(glob.glob(pattern)) <= before
    assert run_programs([]) == []


def test_no_outcome_is_not_a_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "worker.py"
    broken.write_text("raise SystemExit(0)")
    monkeypatch.setattr("semalign.evaluation.sandbox._WORKER", broken)
    assert reason("x = 1") == "the sandbox gave no outcome"
