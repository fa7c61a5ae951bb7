"""What one program did is not there for the next."""

from __future__ import annotations

import pytest

from semalign.jail.programs import Program, run_programs
from tests.jail.jails import KINDS, QUICK, backend

LEAVES = """
import builtins, sys, json
builtins.left = 1
sys.modules['left'] = json
sys.path.append('/left')
def f(): return 1
"""
LOOKS = """
import builtins, sys
def f(): return [hasattr(builtins, 'left'), 'left' in sys.modules, '/left' in sys.path]
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_finds_nothing_of_the_one_before(kind: str) -> None:
    leaves, looks = (
        Program(LEAVES, ("assert f() == 1",), ("f",)),
        Program(LOOKS, ("assert f() == [False] * 3",), ("f",)),
    )
    found = run_programs([leaves, looks] * 3, limits=QUICK, workers=1, backend=backend(kind))
    assert all(outcome.passed for outcome in found), found


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_has_no_secret_and_knows_no_other_process(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_not-for-answers")
    code = "import os, sys\ndef f(): return [[n for n in os.environ if n not in ('PWD', 'LC_CTYPE')], [a for a in sys.argv if 'hf_' in a]]"
    (found,) = run_programs(
        [Program(code, ("assert f() == [[], []], f()",), ("f",))], limits=QUICK, backend=backend(kind)
    )
    assert found.passed, found
