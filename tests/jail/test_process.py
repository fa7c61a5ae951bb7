"""What shuts code in: found by trying it, said in one sentence, and without it nothing runs."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from jail.jails import KINDS, QUICK, backend, best

import semalign
from semalign.errors import ConfigError
from semalign.jail import process
from semalign.jail.process import Backend, Jail, JailError, Limits, offered, probe, require_backend

SQUARE = ("def f(x): return x * x", ["assert f(3) == 9"], ["f"], "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_jail_says_what_it_is_made_of(kind: str) -> None:
    found = backend(kind)
    said = found.as_json()
    assert said["backend"] == kind and said["seccomp"] is True
    assert isinstance(said["landlock"], int) and (said["landlock"] > 0 or kind == "bubblewrap")
    assert kind.casefold() in str(found).casefold() and "system calls" in str(found)
    json.dumps(said)
    with Jail(found, QUICK) as jail:
        assert jail.run(*SQUARE, is_bare=True) is None
        assert jail.run(*SQUARE, is_bare=False) is None


def test_the_first_that_works_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        process, "probe", lambda kind: Backend(kind) if kind == "landlock" else "not installed"
    )
    assert offered() == Backend("landlock")
    assert require_backend(True) == Backend("landlock") == require_backend("unsafe")


def test_without_bubblewrap_the_reason_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(JailError, match="bubblewrap is not installed"):
        Jail(Backend("bubblewrap"), QUICK)
    assert probe.__wrapped__("bubblewrap") == "bubblewrap is not installed"


def test_a_bubblewrap_that_does_not_work_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'setting up uid map: Permission denied' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(broken))
    assert probe.__wrapped__("bubblewrap") == "setting up uid map: Permission denied"


def test_a_jail_with_an_open_door_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    best()
    monkeypatch.setattr(process, "_PROOF", "def doors(): return ['a window']")
    assert "a window" in probe.__wrapped__("landlock")


@pytest.fixture
def no_jail(monkeypatch: pytest.MonkeyPatch) -> None:
    real = probe
    monkeypatch.setattr(
        process, "probe", lambda kind: real(kind) if kind == "limits" else "refused " + "x" * 500
    )


def test_without_a_jail_code_is_refused_in_one_sentence(no_jail: None) -> None:
    assert offered() is None
    with pytest.raises(
        ConfigError, match=r"needs a jail, and this machine offers none.*to unsafe"
    ) as refused:
        require_backend(True)
    assert len(str(refused.value)) <= 400 and "\n" not in str(refused.value)


def test_unsafe_is_the_way_around_and_says_so(no_jail: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "semalign"):
        found = require_backend("unsafe")
    assert (
        found.kind == "limits"
        and "resource limits alone" in caplog.text
        and "resource limits alone" in str(found)
    )
    with Jail(found, QUICK) as jail:
        assert jail.run(*SQUARE, is_bare=True) is None
        assert jail.run("def f(x): return 0", *SQUARE[1:], is_bare=True) == "AssertionError"


def test_a_jail_ends_with_its_block() -> None:
    with Jail(best(), QUICK) as jail:
        pid = jail._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(JailError):
        jail.run(*SQUARE, is_bare=True)
    jail.close()


def test_a_jail_that_ends_gives_no_verdict() -> None:
    with Jail(best(), QUICK) as jail:
        os.killpg(jail._process.pid, signal.SIGKILL)
        jail._process.wait()
        with pytest.raises(JailError):
            jail.run(*SQUARE, is_bare=True)


def test_limits_that_cannot_be_set_start_nothing() -> None:
    with pytest.raises(JailError):
        Jail(best(), Limits(memory_bytes=-(2**70)))


def test_a_jail_ends_when_its_host_does() -> None:
    code = (
        "import os, signal; from semalign.jail.process import *; from semalign.jail import process\n"
        f"jail = Jail(Backend({best().kind!r}), Limits())\n"
        "print(jail._process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    pid = int(done.stdout)
    for _ in range(300):
        if (
            not Path(f"/proc/{pid}").exists()
            or "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1][:3]
        ):
            return
        subprocess.run(["sleep", "0.1"], check=True)
    pytest.fail("the jail lives on")


AS_NOBODY = """
import json, sys
sys.path.insert(0, sys.argv[1])
from semalign.jail.process import Backend, probe
from semalign.jail.programs import Program, run_programs
found = {}
for kind in ("bubblewrap", "landlock"):
    jail = probe(kind)
    if not isinstance(jail, Backend):
        found[kind] = jail
        continue
    tries = [Program(c, ("assert f(3) == 9",), ("f",)) for c in (
        "def f(x): return x * x", "def f(x): return 0", "import os\\ndef f(x): return os.listdir('/') and 9",
        "import os\\ndef f(x): return os.getuid() and 9", "import os\\ndef f(x): return os.fork() and 9")]
    found[kind] = [outcome.passed for outcome in run_programs(tries, backend=jail)]
print(json.dumps(found))
"""


@pytest.mark.skipif(
    os.getuid() != 0, reason="only root can become another user; as another user all other tests are this one"
)
def test_jails_work_for_an_ordinary_user(tmp_path: Path) -> None:
    best()
    pythons = [f"/usr/{place}/python3.{n}" for place in ("bin", "local/bin") for n in (11, 12, 13)]
    python = next((path for path in pythons if os.path.exists(path)), None)
    if python is None:
        pytest.skip("no Python that every user can run")
    copy = tmp_path / "copy"
    own = Path(semalign.__file__).parent
    packages: dict[str, Any] = {"semalign/jail": own / "jail"}
    packages |= {n: Path(str(find_spec(n).origin)).parent for n in ("seccompy", "landlockpy")}  # type: ignore[union-attr]
    for name, source in packages.items():
        shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(own / "errors.py", copy / "semalign")
    for path in (
        *(p for p in tmp_path.parents if p.name.startswith(("pytest-", "popen-"))),
        tmp_path,
        *copy.rglob("*"),
        copy,
    ):
        path.chmod(0o755)
    done = subprocess.run(
        [python, "-c", AS_NOBODY, str(copy)], user=65534, group=65534, extra_groups=[], cwd="/", capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # An id is no secret: who runs the jail is another user in it only where there is a namespace of users.
    assert [kind for kind, passed in found.items() if isinstance(passed, list)], found
    for passed in found.values():
        assert isinstance(passed, str) or passed == [True, False, False, True, False], found
