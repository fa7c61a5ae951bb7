"""The inside of the sandbox: a script that runs programs handed to it on standard input, each in its own process.

Started by ``sandbox.py`` as ``python -I -S sandbox_worker.py``; standard library only. Every program runs in a forked
child with its own limits, folder and audit hook. Only a child that has run all asserts of its program writes the
random token of that program into the pipe that the worker reads; leaving early in any way means no token.
"""

import contextlib
import ctypes
import json
import os
import resource
import secrets
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

_PRELOADED = (
    "collections",
    "functools",
    "heapq",
    "itertools",
    "math",
    "operator",
    "random",
    "re",
    "string",
    "typing",
)
_FORBIDDEN = (
    "socket.", "subprocess.", "ctypes.", "pty.", "sqlite3.", "winreg.", "syslog.", "mmap.", "ftplib.", "urllib.",
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill", "os.symlink", "os.link",
    "os.chmod", "os.chown", "os.lchown", "os.chflags", "os.setxattr", "os.removexattr", "os.mknod",
    "signal.pthread_kill", "resource.prlimit", "resource.setrlimit", "gc.get_", "sys._current_frames",
    "sys.addaudithook", "sys.settrace", "sys.setprofile", "cpython.run", "code.__new__", "fcntl.",
)  # fmt: skip
_CHANGING = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.truncate",
    "os.utime",
    "shutil.",
    "tempfile.",
)
_READING = ("os.listdir", "os.scandir", "os.chdir", "os.walk", "glob.")
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_DEVICES = ("/dev/null", "/dev/urandom")
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_CHILD_SUBREAPER = 36


def _cut_off_network() -> None:
    """Move into an empty network namespace where the system permits it; the audit hook blocks sockets anyway."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if libc.unshare(_CLONE_NEWNET) != 0:
            libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _guard(folder: str, most_files: int) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook: no sockets, no processes, reads from the standard library and ``folder``, writes to ``folder``."""
    library = os.path.realpath(os.path.dirname(os.__file__))
    realpath, join, fsdecode = os.path.realpath, os.path.join, os.fsdecode
    written = 0

    def inside(path: Any, *roots: str) -> bool:
        if isinstance(path, int):
            return False
        real = realpath(fsdecode(path))
        return any(real == root or real.startswith(join(root, "")) for root in roots)

    def check_open(path: Any, mode: Any, flags: Any) -> None:
        nonlocal written
        if isinstance(path, int) or path is None or fsdecode(path) in _DEVICES:
            return
        writes = bool(isinstance(flags, int) and flags & _WRITE_FLAGS)
        writes = writes or (isinstance(mode, str) and any(letter in mode for letter in "wax+"))
        if writes:
            written += 1
            if written > most_files:
                raise PermissionError("the sandbox allows no more files")
        if not inside(path, folder) and (writes or not inside(path, library)):
            raise PermissionError("the sandbox allows no file outside its folder")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal written
        if event == "open":
            check_open(args[0], args[1], args[2])
        elif event.startswith(_FORBIDDEN):
            raise PermissionError(f"the sandbox forbids {event}")
        elif event.startswith(_CHANGING):
            written += 1
            paths = [a for a in args if isinstance(a, (str, bytes, os.PathLike))]
            if written > most_files or not paths or not all(inside(path, folder) for path in paths):
                raise PermissionError(f"the sandbox forbids {event} here")
        elif event.startswith(_READING) and not inside(args[0] if args and args[0] else ".", folder, library):
            raise PermissionError(f"the sandbox forbids {event} here")

    return hook


def _limit(limits: dict[str, Any]) -> None:
    """Set every limit, or raise; nothing runs without them."""
    for name, amount in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (amount, amount))


def _run_child(program: dict[str, Any], limits: dict[str, Any], folder: str, pipe: int, token: str) -> None:
    """Everything a child does; never returns."""
    write, leave = os.write, os._exit
    null = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    kept = os.dup2(pipe, 3)
    os.closerange(4, 4096)
    os.chdir(folder)
    _limit(limits)
    sys.addaudithook(_guard(os.path.realpath(folder), limits["files"]))
    try:
        names: dict[str, Any] = {"__name__": "program", "__builtins__": __builtins__}
        for text in (program["code"], *program["asserts"]):
            exec(compile(text, "program", "exec", dont_inherit=True, optimize=0), names)
        message = f"{token} passed"
    except BaseException as error:
        message = f"{token} {type(error).__name__}"
        with contextlib.suppress(BaseException):
            message = f"{message}: {error}"[:300]
    write(kept, message.encode(errors="replace"))
    leave(0)


def _read_until(pipe: int, deadline: float) -> tuple[bytes, bool]:
    """What the child sent, and whether it finished in time."""
    received = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([pipe], [], [], left)[0]:
            break
        chunk = os.read(pipe, 4096)
        if not chunk or len(received) > 4096:
            return received, True
        received += chunk
    return received, False


def _kill_all(child: int) -> None:
    """End the child's process group and whatever it left behind, which the kernel has handed to this process."""
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.waitpid(child, 0)
    for _ in range(20):
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as listing:
                orphans = [int(word) for word in listing.read().split()]
        except OSError:
            return
        if not orphans:
            return
        for orphan in orphans:
            with contextlib.suppress(OSError):
                os.kill(orphan, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.waitpid(orphan, 0)


def _run(program: dict[str, Any], limits: dict[str, Any], folder: str) -> str:
    """Run one program to its end; "passed" or why it did not pass."""
    os.mkdir(folder)
    token = secrets.token_hex(16)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            _run_child(program, limits, folder, writing, token)
        finally:
            os._exit(1)
    os.close(writing)
    received, in_time = _read_until(reading, time.monotonic() + limits["wall_seconds"])
    os.close(reading)
    _kill_all(child)
    shutil.rmtree(folder, ignore_errors=True)
    given, _, message = received.decode(errors="replace").partition(" ")
    if given != token:
        return "ended without finishing its asserts" if in_time else "ran past its time limit"
    return message


def main(arguments: Sequence[str]) -> None:
    """Read programs and limits from standard input, write one JSON line an outcome to standard output."""
    job = json.load(sys.stdin)
    for module in _PRELOADED:
        __import__(module)
    _cut_off_network()
    for number, program in enumerate(job["programs"]):
        reason = _run(program, job["limits"], os.path.join(arguments[0], str(number)))
        print(json.dumps(reason), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
