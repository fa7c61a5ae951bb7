"""Nothing gets out of the sandbox, in every jail that this machine offers; what happened is judged from outside too."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attack.counts import count
from attack.escapes import ALL, RESOURCES, code_of

from semalign.jail.process import Backend, Limits, probe
from semalign.jail.programs import Program, run_programs

pytest.importorskip("seccompy", reason="the sandbox is tested on Linux")
QUICK = Limits(cpu_seconds=1, wall_seconds=5.0, memory_bytes=256 * 2**20)
SECRET = "hush-91746"


def backend(kind: Any) -> Backend:
    found = probe(kind)
    if not isinstance(found, Backend):
        pytest.skip(f"{kind}: {found}")
    return found


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A file with a secret, a port that listens, a process that sleeps, and secrets in the environment."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    for path in (tmp_path.parents[1], tmp_path.parents[0], tmp_path):
        path.chmod(0o777)  # only the jail keeps others out
    victim = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(3600)"])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        yield {
            "root": tmp_path,
            "port": listener.getsockname()[1],
            "victim": victim.pid,
            "listener": listener,
            "process": victim,
        }
    victim.kill()
    victim.wait()


def programs(places: dict[str, Any], bodies: dict[str, str]) -> list[Program]:
    """Attacks that pass where their try succeeded, each with a file of its own to reach."""
    from seccompy import syscall_nr

    numbers = {}
    for body in bodies.values():
        for name in [part.split("'")[0] for part in body.split("raw('")[1:]]:
            try:
                numbers[name] = syscall_nr(name)
            except (ValueError, KeyError, OSError):  # this architecture has none
                numbers[name] = 2**20
    found = []
    for n, body in enumerate(bodies.values()):
        folder = places["root"] / str(n)
        folder.mkdir()
        folder.chmod(0o777)
        (folder / "canary").write_text(SECRET)
        (folder / "canary").chmod(0o666)
        outside = {
            "canary": str(folder / "canary"),
            "folder": str(folder),
            "port": places["port"],
            "victim": places["victim"],
        }
        found.append(Program(code_of(body, outside, numbers), ("assert attack()",), ("attack",)))
    return found


def state(places: dict[str, Any]) -> dict[str, Any]:
    """All outside that an attack could have changed."""
    victim = places["victim"]
    files = sorted(places["root"].rglob("*"))
    return {
        "files": files,
        "contents": [path.read_text() for path in files if path.is_file()],
        "modes": [(path.stat().st_mode, path.stat().st_uid, path.stat().st_mtime_ns) for path in files],
        "attributes": [os.listxattr(path) for path in files],
        "lives": places["process"].poll() is None,
        "priority": os.getpriority(os.PRIO_PROCESS, victim),
        "processors": os.sched_getaffinity(victim),
        "scheduler": os.sched_getscheduler(victim),
        "memory": sorted(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else [],
        "queues": [
            line
            for kind in ("shm", "msg", "sem")
            for line in Path(f"/proc/sysvipc/{kind}").read_text().splitlines()
        ],
        "host": socket.gethostname(),
    }


def connections(listener: socket.socket) -> int:
    found = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return found
        found += 1


def jailed() -> list[int]:
    """Processes of jails."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"from inside.worker import main" in line:
                found.append(int(entry.name))
    return found


def chosen() -> dict[str, str]:
    """All attacks, or of each group the first few and every one that was once successful."""
    quick = {
        "processes": ("fork_exec", "setpriority", "sched_setaffinity", "pidfd_send_signal", "a thread"),
        "reading": ("stat", "readlink", "getxattr", "patched realpath", "readline's history"),
        "writing": ("mkfifo", "mknod", "shm_open", "two thousand files", "remove from a folder's descriptor"),
        "network": ("connect", "a socket of files"),
        "kernel": ("io_uring", "mount"),
        "resources": ("memory", "sleep"),
    }
    kept = {f"{group}: {name}" for group, names in quick.items() for name in names}
    return {name: body for name, body in ALL.items() if count(quick=name in kept, full=1)}


@pytest.mark.parametrize("kind", ["bubblewrap", "landlock"])
def test_no_attack_gets_out(kind: str, places: dict[str, Any]) -> None:
    bodies = chosen()
    tries = programs(places, bodies)
    before, running = state(places), jailed()
    outcomes = run_programs(tries, limits=QUICK, backend=backend(kind))
    escaped = [name for name, outcome in zip(bodies, outcomes, strict=True) if outcome.passed]
    assert escaped == []
    assert not [o.reason for o in outcomes if SECRET in o.reason]
    assert not [o.reason for o in outcomes if "SyntaxError" in o.reason or "NameError" in o.reason]
    assert state(places) == before
    assert connections(places["listener"]) == 0
    time.sleep(0.2)
    assert set(jailed()) <= set(running), "a process of a jail has outlived it"


def test_there_are_at_least_87_attacks() -> None:
    assert len(ALL) >= 87
    assert len(set(ALL.values())) == len(ALL)


def test_attacks_succeed_where_there_is_no_jail(places: dict[str, Any]) -> None:
    """So that a refusal above is the jail's doing and no fault of the attack's: without one most of those that harm nobody succeed."""
    left_out = {
        "a fork bomb", "SIGKILL to the neighbours", "setsid", "an orphan in a session of its own", "ptrace", "execv",
        "sched_setaffinity", "setpriority", "sched_setscheduler", "ptrace of the parent", "fork", "raw fork", "raw clone",
        "raw clone3", "pty", "a signal through fcntl", "shmget", "msgget", "semget", "mq_open", "shm_open", "chroot",
        "shm_open of the C library", "two thousand files", "a temporary file", "rmtree", "a file in shared memory",
    }  # fmt: skip
    groups = ("reading", "writing", "processes", "network")
    bodies = {
        name: body
        for name, body in chosen().items()
        if name.split(": ")[0] in groups and name.split(": ")[1] not in left_out
    }
    outcomes = run_programs(programs(places, bodies), limits=QUICK, backend=backend("limits"), workers=1)
    works = {name for name, outcome in zip(bodies, outcomes, strict=True) if outcome.passed}
    assert {"reading: stat", "writing: mkfifo"} <= works
    assert len(works) >= 0.5 * len(bodies), sorted(set(bodies) - works)


@pytest.mark.parametrize("kind", ["bubblewrap", "landlock"])
def test_nothing_passes_from_one_answer_to_the_next(kind: str, places: dict[str, Any]) -> None:
    leaving = """
import builtins, ctypes, gc, json, os, sys, threading
builtins.len = lambda x: 7
builtins.MARK = sys.MARK = os.MARK = json.MARK = 'left'
sys.modules['left'] = sys
def attack():
    for fd in range(3, 256):
        try: os.write(fd, b'left' * 99)
        except OSError: pass
    return True
"""
    finding = """
import builtins, gc, json, os, sys
def attack():
    return (hasattr(builtins, 'MARK') or hasattr(sys, 'MARK') or hasattr(os, 'MARK') or hasattr(json, 'MARK')
            or 'left' in sys.modules or len([]) == 7 or any(isinstance(o, str) and o == 'le' + 'ft' * 1 for o in gc.get_objects()))
"""
    tries = [Program(code, ("assert attack()",), ("attack",)) for code in (leaving, finding) * count(3, 50)]
    outcomes = run_programs(tries, limits=QUICK, backend=backend(kind), workers=1)
    assert not any(outcome.passed for outcome in outcomes[1::2])
    right = Program("def f(x): return x + 1", ("assert f(1) == 2",), ("f",))
    assert run_programs([tries[0], right, tries[0], right], backend=backend(kind), workers=1)[1::2] == [
        *run_programs([right, right], backend=backend(kind), workers=1)
    ]


@pytest.mark.parametrize("group", [RESOURCES], ids=["resources"])
def test_what_uses_too_much_ends_and_the_next_program_runs(
    group: dict[str, str], places: dict[str, Any]
) -> None:
    right = Program("def attack(): return 1", ("assert attack() == 1",), ("attack",))
    bodies = dict(list(group.items())[: count(4, len(group))])
    tries = [p for attack in programs(places, bodies) for p in (attack, right)]
    kind = next(k for k in ("bubblewrap", "landlock") if isinstance(probe(k), Backend))
    outcomes = run_programs(tries, limits=QUICK, backend=backend(kind), workers=1)
    assert [outcome.passed for outcome in outcomes] == [False, True] * len(bodies)
