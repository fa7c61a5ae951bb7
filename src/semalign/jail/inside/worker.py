"""The first process of a jail: takes programs from the host, and forks an answer's process for each, and checkers.

It never reads a program: the host hands it one end of a socket, which goes on to the checker and never to the answer's process. So
what an answer can find in its copy of this process's memory is the same for all: nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from . import lock
from .answer import call, run, serve
from .checker import decide
from .library import keep_library
from .wire import receive, send

_GRACE_SECONDS = 1.0
_GOES_ON = b"k"
# Without Python's handlers after a fork, which mend locks of other threads: this process has none, and they are half of the cost.
_FORK = ctypes.PyDLL(None).fork


def main(settings: str) -> None:
    """Lock this process in, say so on the socket that is standard input, and run programs until the host closes it.

    Args:
        settings: JSON of `kind` (bubblewrap, landlock or limits), `limits`, and `packages`, the folders to import from.
    """
    given = json.loads(settings)
    control = socket.socket(fileno=os.dup(0))
    for stream in (0, 2):
        os.dup2(1, stream)  # the null device
    sys.path[:0] = given["packages"]
    sys.argv[:] = [""]
    os.environ.clear()
    answers, checkers, said = _shut_in(given["kind"])
    _warm_up()
    lock.limit(given["limits"]["memory_bytes"])
    gc.collect()
    gc.freeze()
    control.sendall(json.dumps(said).encode() + b"\n")
    jail = _Worker(control, given["limits"], answers, checkers)
    while True:
        word, passed, _, _ = socket.recv_fds(control, 1, 1)
        if not passed:
            return
        jail.run(passed[0], is_last=word == b"c")


def _shut_in(kind: str) -> tuple[Callable[[], Any], Callable[[], Any], dict[str, Any]]:
    """What locks an answer's process and a checker for good, and what this process has been locked with."""
    if kind == "limits":
        keep_library()
        return _nothing, _nothing, {}
    answers, checkers = lock.make_filter(), lock.make_filter("recvmsg")
    import landlockpy  # noqa: F401  from a file, which is out of reach below

    keep_library()
    said: dict[str, Any] = {"seccomp": True}
    if kind != "bubblewrap":
        said["namespaces"] = lock.leave_namespaces()
    lock.leave_root()
    said["landlock"] = lock.close_files()
    if kind == "landlock" and not said["landlock"]:
        raise OSError("the kernel offers no Landlock")
    return answers, checkers, said


def _nothing() -> None:
    pass


def _warm_up() -> None:
    """Do what an answer's process does, often enough that a child finds it done in its copy of the memory and need not change it."""
    ours, theirs = socket.socketpair()
    code = "def f(x):\n    return [x, 'a', 1.5, (2,), {'a': None}]\n"
    order = {"name": "f", "args": [[1]], "kwargs": {}}
    with ours, theirs:
        for _ in range(20):
            names: dict[str, Any] = {}
            for said in (run(code, names), call(order, names), order):
                send(ours.fileno(), said)
                receive(theirs.fileno(), 2**20)


class _Worker:
    """Runs programs one after another, each answer in a process of its own.

    A checker goes on to the next program only where its asserts were bare comparisons, which run no code that could leave
    something behind; otherwise, and after anything odd, the next program gets a fresh one.
    """

    def __init__(
        self,
        control: socket.socket,
        limits: dict[str, Any],
        lock_answer: Callable[[], Any],
        lock_checker: Callable[[], Any],
    ) -> None:
        self.control, self.limits = control, limits
        self.lock_answer, self.lock_checker = lock_answer, lock_checker
        self.checker: tuple[int, socket.socket] | None = None

    def run(self, job: int, *, is_last: bool) -> None:
        """Run one program to its end and leave nothing of it; `is_last` says that its checker is not to be used again."""
        deadline = time.monotonic() + self.limits["wall_seconds"]
        ours, theirs = (end.detach() for end in socket.socketpair())
        done, ending = os.pipe()
        with contextlib.suppress(OSError):  # a checker that has just ended: there will be no verdict
            socket.send_fds(self._checker(), [struct.pack("d", deadline)], [job, ours, ending])
        for pipe in (job, ours, ending):
            os.close(pipe)
        answer = self._fork([theirs], self.lock_answer, self.limits["cpu_seconds"], serve)
        os.close(theirs)
        # A checker that can go on says so; one that ends closes the pipe, a moment before it is gone. The host's socket is
        # readable before only if the host is gone.
        left = max(0.0, deadline + _GRACE_SECONDS - time.monotonic())
        waiting: list[Any] = [done, self.control]
        is_done = done in select.select(waiting, [], [], left)[0]
        goes_on = is_done and os.read(done, 1) == _GOES_ON
        os.close(done)
        _end(answer)
        if (is_last or not goes_on) and self.checker is not None:
            _end(self.checker[0])
            self.checker[1].close()
            self.checker = None

    def _checker(self) -> socket.socket:
        """The socket to a checker, made anew where there is none or it has ended."""
        if self.checker is not None and os.waitpid(self.checker[0], os.WNOHANG)[0]:
            self.checker[1].close()
            self.checker = None
        if self.checker is None:
            ours, theirs = socket.socketpair()
            # Its time is bounded by each program's deadline.
            pid = self._fork([theirs.fileno()], self.lock_checker, None, self._check)
            theirs.close()
            self.checker = pid, ours
        return self.checker[1]

    def _check(self, orders: int) -> None:
        """Decide on programs as they come, until one is odd or nobody sends any more."""
        source = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, orders)
        while True:
            word, passed, _, _ = socket.recv_fds(source, 8, 3)
            if len(passed) != 3:
                return
            job, channel, ending = passed
            is_clean = decide(job, channel, struct.unpack("d", word)[0], self.limits["output_bytes"])
            if is_clean:
                os.write(ending, _GOES_ON)
            for pipe in (job, channel, ending):
                os.close(pipe)
            if not is_clean:
                return

    def _fork(
        self,
        pipes: list[int],
        load: Callable[[], Any],
        cpu_seconds: int | None,
        work: Callable[..., None],
    ) -> int:
        """A child with these pipes, from 3 on, and nothing else, under all limits."""
        child: int = _FORK()
        if child:
            if child < 0:
                raise OSError("the system refuses another process")
            return child
        try:
            high = [fcntl.fcntl(pipe, fcntl.F_DUPFD, 64) for pipe in pipes]  # out of the way of 3, 4, 5
            for n, pipe in enumerate(high):
                os.dup2(pipe, 3 + n)
            os.closerange(3 + len(pipes), 256)
            lock.limit_child(cpu_seconds)
            load()
            work(*range(3, 3 + len(pipes)))
        finally:
            os._exit(0)


def _end(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)
