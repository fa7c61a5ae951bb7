"""One program after another in one jail: each answer in a process of its own, and a checker for as long as nothing is odd."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from jail.jails import KINDS, QUICK, backend, best

from semalign.jail import process
from semalign.jail.process import Jail
from semalign.jail.programs import Program, run_programs


def children(pid: int) -> list[int]:
    """Processes below a process, at any depth; one that ends while we look has none."""
    try:
        own = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [*own, *(deeper for child in own for deeper in children(child))]


@pytest.mark.skipif(
    not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="the kernel does not list children"
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_answers_process_ends_with_its_program_and_a_checker_after_code_of_the_asserts(kind: str) -> None:
    square, right, wrong = "def f(x): return x * x", ["assert f(3) == 9"], "def f(x): return 0"
    with Jail(backend(kind), QUICK) as jail:
        root = jail._process.pid

        def left() -> set[int]:
            return set(children(root))

        jail.run(square, right, ["f"], "", is_bare=True)
        jail.run("import time\ndef f(x): return time.sleep(0.05) or 9", right, ["f"], "", is_bare=True)
        jail.run(square, right, ["f"], "", is_bare=True)
        kept = settled(left)
        assert jail.run(wrong, right, ["f"], "", is_bare=True) == "AssertionError"
        assert settled(left) == kept
        jail.run(square, ["import math", *right], ["f"], "", is_bare=False)
        assert len(settled(left)) == len(kept) - 1
        jail.run(square, right, ["f"], "", is_bare=True)
        fresh = settled(left)
        assert fresh != kept
        jail.run("import os\ndef f(x): os._exit(0)", right, ["f"], "", is_bare=True)
        jail.run(square, right, ["f"], "", is_bare=True)
        assert settled(left) != fresh


def settled(look: object) -> set[int]:
    """What is the same twenty times in a row: the answer's process ends a moment after its verdict."""
    seen: list[set[int]] = []
    while len(seen) < 20 or any(found != seen[-1] for found in seen[-20:]):
        seen.append(look())  # type: ignore[operator]
        time.sleep(0.005)
    return seen[-1]


def test_what_asserts_leave_behind_is_gone_for_the_next_program() -> None:
    leaving = ("import math, builtins", "math.pi = 3", "builtins.abs = lambda x: 7", "assert f(1) == 1")
    finding = ("import math", "assert abs(f(-1)) == 1 and math.pi > 3")
    programs = [Program("def f(x): return x", asserts, ("f",)) for asserts in (leaving, finding) * 3]
    assert all(outcome.passed for outcome in run_programs(programs, backend=best(), workers=1))


def test_answers_do_not_know_each_other() -> None:
    leave = "import builtins, sys\nbuiltins.abs = lambda x: 7\nsys.left = 1\ndef f(x): return abs(x)"
    find = "import sys\ndef f(x): return abs(x) if not hasattr(sys, 'left') else 9"
    programs = [
        Program(leave, ("assert f(1) == 7",), ("f",)),
        Program(find, ("assert f(1) == 1",), ("f",)),
    ] * 2
    for workers in (1, 2, 9):
        assert all(outcome.passed for outcome in run_programs(programs, backend=best(), workers=workers))


def test_the_environment_and_the_arguments_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hush")
    code = "import os, sys\ndef f(): return [dict(os.environ), sys.argv, sys.path]"
    (found,) = run_programs([Program(code, ("assert f() == [{}, [''], []]",), ("f",))], backend=best())
    assert found.reason == "passed"


def test_a_program_has_limits() -> None:
    wanted = {"CPU": 1, "AS": 256 * 2**20, "FSIZE": 0, "NPROC": 0, "CORE": 0}
    code = "import resource\ndef f(n): return resource.getrlimit(getattr(resource, 'RLIMIT_' + n))"
    asserts = tuple(f"assert f({name!r}) == ({n}, {n})" for name, n in wanted.items())
    (found,) = run_programs([Program(code, asserts, ("f",))], limits=QUICK, backend=best())
    assert found.reason == "passed"


@pytest.mark.parametrize("kind", KINDS)
def test_a_checker_that_takes_its_time_to_end_is_not_given_the_next_program(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = backend(kind)
    inside = tmp_path / "inside"
    shutil.copytree(process._INSIDE, inside, ignore=shutil.ignore_patterns("__pycache__"))
    text = (inside / "worker.py").read_text()
    (inside / "worker.py").write_text(
        text.replace("if not is_clean:", "if not is_clean:\n                time.sleep(0.3)")
    )
    assert "time.sleep(0.3)" in (inside / "worker.py").read_text()
    for path in (tmp_path, inside, *inside.iterdir()):
        path.chmod(0o755)
    monkeypatch.setattr(process, "_INSIDE", inside)
    with Jail(found, QUICK) as jail:
        for _ in range(3):
            left = jail.run("import os\ndef f(x): os._exit(0)", ["assert f(3) == 9"], ["f"], "", is_bare=True)
            assert left is not None
            assert jail.run("def f(x): return x * x", ["assert f(3) == 9"], ["f"], "", is_bare=True) is None
