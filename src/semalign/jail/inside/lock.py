"""The locks of a process: resource limits, system calls that are refused, and an identity that owns nothing."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from collections.abc import Callable
from typing import Any

NOBODY = 65534
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC and NEWNET
_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x40000000
_NEW_USER = 0x10000000
_PROT_EXEC = 4
# All that computing needs of the kernel. What is not here fails: there is no call with a path in it, none that makes a file,
# a socket, a process or a thread, and none that names another process.
_ALLOWED = (
    "read", "write", "close", "mmap", "munmap", "mremap", "mprotect", "madvise", "brk", "futex", "sched_yield",
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall", "exit", "exit_group",
    "getpid", "gettid", "getuid", "geteuid", "getgid", "getegid", "uname", "getrandom", "getrusage", "times",
    "clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "ppoll", "pselect6", "prlimit64",
)  # fmt: skip
_ALLOWED_ON_X86 = ("time", "poll", "select")


def leave_root() -> None:
    """Become an ordinary user who owns nothing; where this process has no rights of root it stays who it is."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def leave_namespaces() -> bool:
    """Move into namespaces of its own without a network; whether the system permits it."""
    libc = ctypes.CDLL(None)
    return any(libc.unshare(flags) == 0 for flags in (_NAMESPACES, _NAMESPACES | _NEW_USER))


def close_files() -> int:
    """Refuse every file to this process and its children, by Landlock; returns the version of its interface, 0 where there is none."""
    import landlockpy

    version = landlockpy.abi_version()
    if version:
        scopes = landlockpy.Scope.SIGNAL | landlockpy.Scope.ABSTRACT_UNIX_SOCKET
        with landlockpy.Ruleset(scoped=scopes) as rules:
            rules.restrict()
    return int(version)


def make_filter(*more: str) -> Callable[[], Any]:
    """What puts a filter of system calls on a process for ever: those listed and `more` may be made, all others fail with EPERM."""
    from seccompy import AUDIT_ARCH_X86_64, Action, CmpOp, Filter, audit_arch, supported

    if not supported():  # asked here also because the package then finds the C library, which takes files
        raise OSError("the kernel offers no filter of system calls")
    found = Filter(Action.ERRNO | errno.EPERM)
    data_only = [(2, CmpOp.MASKED_EQ, 0, _PROT_EXEC)]
    conditions: dict[str, Any] = {
        "mmap": data_only,
        "mprotect": data_only,
        "prlimit64": {0: 0, 2: 0},  # one's own limits, to read
    }
    for name in _ALLOWED + more + (_ALLOWED_ON_X86 if audit_arch() == AUDIT_ARCH_X86_64 else ()):
        found.allow(name, args=conditions.get(name))
    _ = found.program  # compiled once, before any fork
    return found.load


def limit(memory_bytes: int) -> None:
    """Set the limits that this process and its children share, or raise; nothing runs without them."""
    for name, amount in (
        ("AS", memory_bytes),
        ("NOFILE", 128),
        ("FSIZE", 0),
        ("CORE", 0),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
    ):
        if hasattr(resource, f"RLIMIT_{name}"):  # not every system knows every limit
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (amount, amount))


def limit_child(cpu_seconds: int | None) -> None:
    """Set the limits of one child: no process of its own, and its time where that is bounded."""
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    if cpu_seconds is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
