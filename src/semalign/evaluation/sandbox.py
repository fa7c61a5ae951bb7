"""Run generated code away from this process: limits, an empty environment, a folder of its own, no network.

This protects against what language models write by accident: endless loops, memory, files, forks, sockets, early
exits. It is no jail against an attacker who knows Python's internals; run untrusted models in a container as well.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from semalign.errors import ConfigError

_WORKER = Path(__file__).with_name("sandbox_worker.py")
_START_SECONDS = 10.0


@dataclass(frozen=True)
class Program:
    """Code, and the asserts that must all hold after it has run."""

    code: str
    asserts: tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    cpu_seconds: int = 2
    wall_seconds: float = 4.0
    memory_bytes: int = 512 * 2**20
    file_bytes: int = 2**20
    """Largest file."""
    files: int = 16
    """Most files opened for writing or changed."""
    open_files: int = 32
    processes: int = 0
    """New processes and threads; 0 also stops threads unless the user is root."""


@dataclass(frozen=True)
class Outcome:
    passed: bool
    reason: str
    """"passed", the exception, or what limit was met."""


def run_programs(
    programs: Sequence[Program], *, limits: Limits | None = None, workers: int = 2
) -> list[Outcome]:
    """Run programs in ``workers`` isolated processes, each program in a child of its own.

    Fails closed: a program whose outcome does not come back has not passed.
    """
    if os.name != "posix":
        raise ConfigError(
            f"Running generated code needs a POSIX system, this is {os.name!r}: use Linux, or leave code tasks out."
        )
    count = max(1, min(workers, len(programs)))
    chunks = [list(programs[n::count]) for n in range(count)]
    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(lambda chunk: _run_chunk(chunk, limits or Limits()), chunks))
    return [results[n % count][n // count] for n in range(len(programs))]


def _run_chunk(programs: Sequence[Program], limits: Limits) -> list[Outcome]:
    job = json.dumps({"programs": [asdict(program) for program in programs], "limits": asdict(limits)})
    with tempfile.TemporaryDirectory(prefix="semalign-sandbox-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_WORKER), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd=folder,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(
                job.encode(), timeout=_START_SECONDS + len(programs) * (limits.wall_seconds + 1)
            )
        except subprocess.TimeoutExpired as expired:
            output = expired.stdout or b""
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return _outcomes(output, len(programs))


def _outcomes(output: bytes, count: int) -> list[Outcome]:
    reasons = []
    for line in output.splitlines()[:count]:
        with contextlib.suppress(ValueError):
            reasons.append(str(json.loads(line)))
    reasons += ["the sandbox gave no outcome"] * (count - len(reasons))
    return [Outcome(reason == "passed", reason) for reason in reasons]
