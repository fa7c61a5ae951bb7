"""Inside the sandbox: what a program may open and change, what ends it, and what only a whole run can say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from semalign.evaluation import sandbox_worker as worker
from semalign.evaluation.sandbox import Limits, Program, run_programs

QUICK = Limits(cpu_seconds=1, wall_seconds=2.0, memory_bytes=256 * 2**20)


def reason(code: str, *asserts: str) -> str:
    (outcome,) = run_programs([Program(code, asserts or ("assert True",))], limits=QUICK, workers=1)
    assert outcome.passed == (outcome.reason == "passed")
    return outcome.reason


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


def test_limits_that_cannot_be_set_fail_closed() -> None:
    (outcome,) = run_programs([Program("x = 1", ())], limits=Limits(memory_bytes=-(2**70)), workers=1)
    assert not outcome.passed


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ValueError('x' * 1000)", "ValueError: xxx"),
        ("class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd", "Odd"),
        ("raise ValueError('\\ud800')", "ValueError: ?"),
        ("input()", "EOFError"),
        ("raise SystemExit(0)", "SystemExit"),
    ],
)
def test_a_failure_is_named_by_its_exception_and_cut_short(code: str, said: str) -> None:
    found = reason(code)
    assert found.startswith(said) and len(found) < 300


def test_a_program_has_the_limits_that_were_asked_for() -> None:
    names = {"CPU": 1, "AS": 256 * 2**20, "FSIZE": QUICK.file_bytes, "NOFILE": 32, "NPROC": 0, "CORE": 0}
    asserts = [f"assert resource.getrlimit(resource.RLIMIT_{k}) == ({n}, {n})" for k, n in names.items()]
    assert reason("import resource", *asserts) == "passed"


def test_a_program_is_no_main_script_and_its_asserts_see_its_names() -> None:
    code = "found = []\nif __name__ == '__main__': found.append(1)\ndef f(): return __name__"
    assert reason(code, "assert found == []", "assert f() == 'program'") == "passed"


def test_an_assert_after_a_failing_one_does_not_run() -> None:
    assert reason("n = 0", "assert n == 1", "raise ValueError").startswith("AssertionError")


def run_worker(folder: Path, *programs: tuple[str, list[str]], wall_seconds: float = 2.0) -> list[str]:
    """What the script itself prints."""
    limits = {name: getattr(QUICK, name) for name in QUICK.__dataclass_fields__}
    job = {
        "programs": [{"code": code, "asserts": asserts} for code, asserts in programs],
        "limits": limits | {"wall_seconds": wall_seconds},
    }
    done = subprocess.run(
        [sys.executable, "-I", "-S", worker.__file__, str(folder)],
        input=json.dumps(job).encode(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_script_prints_one_line_an_outcome_in_order_and_clears_the_folder(tmp_path: Path) -> None:
    found = run_worker(
        tmp_path,
        ("open('left', 'w').write('x')", ["assert True"]),
        ("import os\nos._exit(0)", []),
        ("import time\ntime.sleep(9)", []),
        ("x = 1", ["assert x == 1"]),
        wall_seconds=0.3,
    )
    assert found == ["passed", "ended without finishing its asserts", "ran past its time limit", "passed"]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The only folder that the guard allows, with a neighbour whose name begins alike."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own-other").mkdir()
    return (tmp_path / "own").resolve()


def guard(folder: Path, most: int = 9) -> Any:
    return worker._guard(str(folder), most)


LIBRARY = Path(os.__file__).resolve()


@pytest.mark.parametrize(
    "event", ["socket.connect", "subprocess.Popen", "os.fork", "ctypes.dlopen", "sys.settrace"]
)
def test_doors_out_of_the_process_are_forbidden_by_name(folder: Path, event: str) -> None:
    with pytest.raises(PermissionError, match=f"the sandbox forbids {event}"):
        guard(folder)(event, ())


@pytest.mark.parametrize("event", ["import", "compile", "exec", "object.__getattr__"])
def test_what_running_code_needs_is_allowed(folder: Path, event: str) -> None:
    guard(folder)(event, ())


def test_files_are_read_from_the_own_folder_and_the_standard_library_alone(folder: Path) -> None:
    hook = guard(folder)
    for path in (folder / "a", str(folder / "b" / "c").encode(), LIBRARY, "/dev/null", 3, None):
        hook("open", (path, "r", os.O_RDONLY))
    (folder / "link").symlink_to("/etc")
    for path in (
        "/etc/passwd",
        folder.parent / "own-other" / "a",
        folder / ".." / "a",
        folder / "link" / "passwd",
    ):
        with pytest.raises(PermissionError, match="no file outside its folder"):
            hook("open", (path, "r", os.O_RDONLY))


@pytest.mark.parametrize(
    ("mode", "flags"),
    [
        ("w", None),
        ("a", None),
        ("x", None),
        ("r+", None),
        (None, os.O_RDWR),
        (None, os.O_WRONLY | os.O_CREAT),
    ],
)
def test_nothing_is_written_into_the_library(folder: Path, mode: str | None, flags: int | None) -> None:
    hook = guard(folder)
    hook("open", (folder / "a", mode, flags))
    with pytest.raises(PermissionError, match="no file outside its folder"):
        hook("open", (LIBRARY, mode, flags))


def test_so_many_files_are_written_or_changed_and_no_more(folder: Path) -> None:
    hook = guard(folder, most=3)
    hook("open", (folder / "a", "w", 0))
    hook("os.mkdir", (folder / "b", 511, -1))
    hook("open", (folder / "a", "r", os.O_RDONLY))
    hook("os.remove", (folder / "a", -1))
    with pytest.raises(PermissionError, match="allows no more files"):
        hook("open", (folder / "c", "w", 0))
    with pytest.raises(PermissionError, match=r"forbids os\.remove here"):
        hook("os.remove", (folder / "c", -1))


def test_a_change_has_all_its_paths_inside(folder: Path) -> None:
    hook = guard(folder)
    hook("os.rename", (folder / "a", folder / "b", -1, -1))
    for paths in ((folder / "a", "/tmp/b"), ("/tmp/a", folder / "b"), (3,), ()):
        with pytest.raises(PermissionError, match=r"forbids os\.rename here"):
            hook("os.rename", paths)


def test_folders_are_listed_inside_and_in_the_library_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = guard(folder)
    hook("os.listdir", (str(folder),))
    hook("os.scandir", (str(LIBRARY.parent),))
    for arguments in (("/",), ("..",)):
        with pytest.raises(PermissionError, match=r"forbids os\.listdir here"):
            hook("os.listdir", arguments)
    monkeypatch.chdir(folder)
    hook("os.listdir", ())
    monkeypatch.chdir(folder.parent)
    with pytest.raises(PermissionError, match=r"forbids os\.listdir here"):
        hook("os.listdir", ())


def test_what_a_child_sent_is_read_to_its_end() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"token passed")
    os.close(writing)
    assert worker._read_until(reading, time.monotonic() + 5) == (b"token passed", True)
    os.close(reading)


def test_a_child_that_stays_silent_is_left_at_the_deadline() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"half")
    started = time.monotonic()
    assert worker._read_until(reading, started + 0.1) == (b"half", False)
    assert 0.1 <= time.monotonic() - started < 2
    os.close(reading)
    os.close(writing)


def test_a_child_that_sends_without_end_is_cut_off() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.write(writing, b"x" * 20_000)
    received, in_time = worker._read_until(reading, time.monotonic() + 5)
    assert in_time and 4096 < len(received) <= 3 * 4096
    os.close(reading)
    os.close(writing)
