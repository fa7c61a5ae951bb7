"""Hostile and clumsy programs must not pass, must end in time and must leave nothing behind."""

import glob
import os
import tempfile
import time
from pathlib import Path

import pytest

from semalign.evaluation.sandbox import Limits, Program, run_program, run_programs

QUICK = Limits(cpu_seconds=1, wall_seconds=2.0, memory_bytes=256 * 2**20)


def reason(code: str, *asserts: str) -> str:
    outcome = run_program(Program(code, asserts or ("assert True",)), limits=QUICK)
    assert outcome.passed == (outcome.reason == "passed")
    return outcome.reason


def test_right_and_wrong_code() -> None:
    code = "def twice(x):\n    return x * 2\n"
    assert reason(code, "assert twice(2) == 4") == "passed"
    assert reason(code, "assert twice(2) == 5").startswith("AssertionError")
    assert reason("def twice(x:", "assert twice(2) == 4").startswith("SyntaxError")
    assert reason("import math, collections, dataclasses, json, datetime") == "passed"


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "x = bytearray(2**31)",
        "x = [0] * 10\nwhile True: x = x + x",
    ],
)
def test_endless_and_greedy_programs_end(code: str) -> None:
    started = time.monotonic()
    assert reason(code) != "passed"
    assert time.monotonic() - started < 8


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "raise SystemExit",
        "import os\nos.abort()",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "import os\nfor fd in range(3, 10):\n    try: os.write(fd, b'passed')\n    except OSError: pass\nos._exit(0)",
        "import os\nfor fd in range(3, 10):\n    try: os.close(fd)\n    except OSError: pass",
        "print('passed')\nraise KeyboardInterrupt",
        "x = '''",
    ],
)
def test_leaving_early_is_not_passing(code: str) -> None:
    assert reason(code, "assert False") != "passed"
    if "close" not in code:
        assert reason(code) != "passed"


@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.system('true')",
        "import ctypes\nctypes.CDLL(None).fork()",
        "import socket\nsocket.socket()",
        "import socket\nsocket.create_connection(('127.0.0.1', 9))",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')",
        "open('/etc/passwd').read()",
        "open('/proc/self/environ').read()",
        "import os\nopen(f'/proc/{os.getppid()}/environ').read()",
        "import os\nos.listdir('/')",
        "import os\nos.symlink('/etc', 'etc')",
    ],
)
def test_forbidden_doors_stay_shut(code: str) -> None:
    assert reason(code).split(":")[0] in (
        "PermissionError",
        "OSError",
        "BlockingIOError",
        "ModuleNotFoundError",
        "URLError",
    )


def test_writes_stay_in_its_folder(tmp_path: Path) -> None:
    target = tmp_path / "escaped"
    for door in (
        f"open({str(target)!r}, 'w').write('x')",
        f"import os; os.open({str(target)!r}, os.O_CREAT | os.O_RDWR)",
    ):
        assert reason(door).startswith("PermissionError")
    victim = tmp_path / "victim"
    victim.write_text("kept")
    assert reason(f"import os; os.remove({str(victim)!r})").startswith("PermissionError")
    assert reason(f"import os; os.rename({str(victim)!r}, 'mine')").startswith("PermissionError")
    assert not target.exists() and victim.read_text() == "kept"
    assert reason("open('mine', 'w').write('x')", "assert open('mine').read() == 'x'") == "passed"


def test_disk_and_output_floods_are_stopped() -> None:
    assert reason("f = open('big', 'wb')\nfor _ in range(64): f.write(bytes(2**20))\nf.flush()") != "passed"
    assert reason("for n in range(100): open(str(n), 'w')").startswith("PermissionError")
    assert reason("for _ in range(100): print('x' * 10**5)") == "passed"


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


def test_limits_that_cannot_be_set_fail_closed() -> None:
    outcome = run_program(Program("x = 1", ()), limits=Limits(memory_bytes=-(2**70)))
    assert not outcome.passed
