"""Commands in processes of their own, struck where a test says so; a process that has imported everything is forked for each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOOKS = Path(__file__).parent / "hooks"


@dataclass(frozen=True)
class Strike:
    """See hooks/sitecustomize.py."""

    folder: Path
    number: int
    part: str = ""
    signal: str = "SIGKILL"
    who: str = "main"

    def __str__(self) -> str:
        return f"{self.folder}|{self.part}|{self.number}|{self.signal}|{self.who}"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Its exit code, or minus the signal that ended it."""
    said: str
    """What it wrote to standard error, as one line."""
    struck: bool


class Commands:
    """The process that is forked."""

    def __init__(self, process: subprocess.Popen, folder: Path) -> None:
        self.process, self.folder, self.made = process, folder, 0

    def run(self, words: Sequence[str | Path], strike: Strike | None = None) -> Ended:
        """Run a command to its end."""
        self.made += 1
        log = self.folder / f"{self.made}.log"
        if strike is not None:
            (strike.folder.parent / "struck").unlink(missing_ok=True)
        job = {"words": list(map(str, words)), "strike": strike and str(strike), "log": str(log)}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the process that is forked has ended"
        struck = strike is not None and (strike.folder.parent / "struck").exists()
        return Ended(int(answer), " ".join(log.read_text(errors="replace").split()), struck)


@contextmanager
def commands(folder: Path) -> Iterator[Commands]:
    """Start it; logs lie in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(HOOKS), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    ) as process:
        yield Commands(process, folder)
        process.kill()
        process.communicate()


def _forked(job: dict[str, Any]) -> None:
    from semalign.cli import main

    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if job["strike"]:
        import sitecustomize

        os.environ["STRIKE"] = job["strike"]
        sitecustomize.install()  # type: ignore[attr-defined]
    code = main(job["words"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve() -> None:
    import torch

    import semalign.comparison
    import semalign.steps.pipeline  # noqa: F401

    os.fsync = lambda handle: None  # type: ignore[assignment]  # nobody pulls a plug here
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                _forked(json.loads(line))
            finally:
                sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
                sys.stderr.flush()
                os._exit(99)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, flush=True)


if __name__ == "__main__":
    _serve()
