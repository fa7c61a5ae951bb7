"""The first process of a jail: takes programs from the host, and forks for each an answer's process and a checker.

It never reads a program: the host hands it one end of a socket, which the checker inherits and the answer's process does not. So
what an answer can find in its copy of this process's memory is the same for all: nothing.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from . import lock
from .answer import serve
from .checker import decide
from .library import keep_library
from .values import decode, encode
from .wire import receive, send

_GRACE_SECONDS = 1.0


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
    load, said = _shut_in(given["kind"])
    _warm_up()
    gc.collect()
    gc.freeze()
    control.sendall(json.dumps(said).encode() + b"\n")
    while True:
        _, passed, _, _ = socket.recv_fds(control, 1, 1)
        if not passed:
            return
        _run(passed[0], control.fileno(), given["limits"], load)


def _warm_up() -> None:
    """Do once what every child does, so that a child finds it done in its copy of the memory: half of its page faults."""
    ours, theirs = (end.detach() for end in socket.socketpair())
    names: dict[str, Any] = {}
    for _ in range(3):
        exec(
            compile("def f(x):\n    return [x + 1]\nassert f(1) == [2]", "warm", "exec", dont_inherit=True),
            names,
        )
        send(ours, {"args": encode([1, "a", 1.5, (2,), {"a": [None]}])})
        decode(receive(theirs, 2**20, time.monotonic() + 1)["args"])
    random.seed()
    os.close(ours)
    os.close(theirs)


def _shut_in(kind: str) -> tuple[Callable[[], Any] | None, dict[str, Any]]:
    """What locks a child for good, and what this process has been locked with."""
    if kind == "limits":
        keep_library()
        return None, {}
    calls = lock.make_filter()
    import landlockpy  # noqa: F401  from a file, which is out of reach below

    keep_library()
    said: dict[str, Any] = {"seccomp": True}
    if kind != "bubblewrap":
        said["namespaces"] = lock.leave_namespaces()
    lock.leave_root()
    said["landlock"] = lock.close_files()
    if kind == "landlock" and not said["landlock"]:
        raise OSError("the kernel offers no Landlock")
    return calls.load, said


def _run(job: int, control: int, limits: dict[str, Any], load: Callable[[], Any] | None) -> None:
    """Run one program to its end, and leave nothing of it."""
    deadline = time.monotonic() + limits["wall_seconds"]
    ours, theirs = (end.detach() for end in socket.socketpair())
    alive, ending = os.pipe()
    checker = _fork(
        (ours, job, ending), limits, load, lambda a, b, _: decide(b, a, deadline, limits["output_bytes"])
    )
    for pipe in (ours, job, ending):
        os.close(pipe)
    answer = _fork((theirs,), limits, load, serve)
    os.close(theirs)
    # The checker's end of this pipe closes when it ends; the host's socket is readable before only if the host is gone.
    select.select([alive, control], [], [], max(0.0, deadline + _GRACE_SECONDS - time.monotonic()))
    os.close(alive)
    for child in (answer, checker):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _fork(
    pipes: tuple[int, ...], limits: dict[str, Any], load: Callable[[], Any] | None, work: Callable[..., None]
) -> int:
    """A child with these pipes, from 3 on, and nothing else, under all limits."""
    child = os.fork()
    if child:
        return child
    try:
        high = [fcntl.fcntl(pipe, fcntl.F_DUPFD, 64) for pipe in pipes]  # out of the way of 3, 4, 5
        for n, pipe in enumerate(high):
            os.dup2(pipe, 3 + n)
        os.closerange(3 + len(pipes), 256)
        lock.limit(limits, 3 + len(pipes))
        if load is not None:
            load()
        random.seed()
        work(*range(3, 3 + len(pipes)))
    finally:
        os._exit(0)
    return 0
