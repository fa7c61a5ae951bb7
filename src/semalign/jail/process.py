"""Jails: what this machine can shut a process in with, found by doing it, and the process that runs programs inside.

Two locks hold at once. Inside, a list of system calls that computing needs and Landlock, which refuses all files, are put on
every process before it reads a program. Outside, bubblewrap puts the jail into namespaces with a root of its own; where it is
missing, the jail moves itself into namespaces as far as the system permits it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from semalign.errors import ConfigError
from semalign.jail.inside.wire import EndedError, LateError, receive, send

Kind = Literal["bubblewrap", "landlock", "limits"]
Permission = bool | Literal["unsafe"]
"""Whether generated code may run: no; yes, in a jail; or even where this machine offers none."""

_INSIDE = Path(__file__).with_name("inside")
_START_SECONDS = 20.0
_GRACE_SECONDS = 5.0
_END_SECONDS = 0.2  # between the end of a checker and the end of the jail that took it along
_PACKAGES = ("seccompy", "landlockpy")
# Tries what a jail must refuse, and tells what was open.
_PROOF = """
import os, socket, threading
def doors():
    tried = {
        "a file": lambda: open("/etc/passwd").read(),
        "a file's data": lambda: os.stat("/"),
        "a socket": lambda: socket.socket(),
        "a process": lambda: os.fork() or os._exit(0),
        "a thread": lambda: threading.Thread(target=int).start(),
        "a signal": lambda: os.kill(os.getppid() or 1, 0),
    }
    found = []
    for name, door in tried.items():
        try:
            door()
        except (OSError, RuntimeError):
            continue
        found.append(name)
    return found
"""


class JailError(Exception):
    """A jail did not start, or its process is gone."""


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    cpu_seconds: int = 2
    wall_seconds: float = 10.0
    memory_bytes: int = 512 * 2**20
    """Address space of a process."""
    output_bytes: int = 2**20
    """What one call may return, as JSON."""


@dataclass(frozen=True)
class Backend:
    """A way to shut code in."""

    kind: Kind
    details: dict[str, Any] = field(default_factory=dict, compare=False)
    """Versions, and what holds beside it."""

    def as_json(self) -> dict[str, Any]:
        return {"backend": self.kind, **self.details}

    def __str__(self) -> str:
        if self.kind == "limits":
            return "no jail, resource limits alone"
        parts = [f"bubblewrap {self.details['bubblewrap']}"] if self.kind == "bubblewrap" else []
        parts += [f"Landlock (version {self.details['landlock']})"] if self.details["landlock"] else []
        return ", ".join([*parts, "a list of system calls", "resource limits"])


class Jail:
    """One running jail, a context manager.

    Raises:
        JailError: it does not start.
    """

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self.limits = limits
        self._said = "it ended"
        settings = {
            "kind": backend.kind,
            "limits": asdict(limits),
            "packages": [str(path.parent) for path in _package_folders(backend.kind)],
        }
        start = f"import sys; sys.path.insert(0, {str(_INSIDE.parent)!r}); from inside.worker import main; main(sys.argv[1])"
        python = [os.path.realpath(sys.executable), "-I", "-S", "-B", "-c", start, json.dumps(settings)]
        command = [*_bubblewrap(backend.kind, python[0]), *python]
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_START_SECONDS)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env={},
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                self._control.close()
                raise JailError(str(error)) from error
        try:
            self.details: dict[str, Any] = json.loads(self._line())
        except (OSError, ValueError):
            self.close()
            raise JailError(self._said) from None
        self._control.setblocking(True)

    def __enter__(self) -> Jail:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self, code: str, asserts: Sequence[str], entries: Sequence[str], prefix: str, *, is_bare: bool
    ) -> str | None:
        """Why the program failed; None when it passed.

        Args:
            is_bare: the asserts run no code but calls of the entries, so that their checker may take the next program.

        Raises:
            JailError: there is no verdict, and the jail has ended.
        """
        ours, theirs = socket.socketpair()
        wait = self.limits.wall_seconds + _GRACE_SECONDS
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(wait), 0))
        program = {"code": code, "asserts": list(asserts), "entries": list(entries), "prefix": prefix}
        with ours:
            try:
                with theirs:
                    socket.send_fds(self._control, [b"b" if is_bare else b"c"], [theirs.fileno()])
                send(ours.fileno(), program)
                return _verdict(receive(ours.fileno(), 4096, time.monotonic() + wait))
            except EndedError:
                if self._is_running():
                    return "its checker met a limit of time or memory"
                self.close()
                raise JailError(self._said) from None
            except (LateError, OSError) as error:
                self.close()
                raise JailError(str(error) or "no answer in time") from None

    def _line(self) -> bytes:
        found = b""
        while not found.endswith(b"\n"):
            if not (more := self._control.recv(4096)):
                raise OSError("it ended")
            found += more
        return found

    def _is_running(self) -> bool:
        # It says nothing after its start, so that a socket with something to read is one that has been closed.
        return not select.select([self._control], [], [], _END_SECONDS)[0]

    def close(self) -> None:
        """End every process of it; it may be called again."""
        self._control.close()
        assert self._process.stderr is not None
        if self._process.stderr.closed:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with self._process.stderr as stderr:
            said = stderr.read(2**16).decode(errors="replace").strip().splitlines()
        self._said = said[-1][:200] if said else self._said
        self._process.wait()


def _verdict(message: Any) -> str | None:
    if isinstance(message, dict) and set(message) == {"failed"}:
        # The text of an exception may hold half of a surrogate pair, which has no form in UTF-8.
        failed = message["failed"]
        return None if failed is None else str(failed).encode(errors="backslashreplace").decode()
    return "its checker gave no verdict"


def _package_folders(kind: Kind) -> list[Path]:
    if kind == "limits":
        return []
    found = [find_spec(name) for name in _PACKAGES]
    folders = [Path(spec.origin).parent for spec in found if spec is not None and spec.origin is not None]
    if len(folders) < len(_PACKAGES):
        raise JailError(f"it needs the packages {' and '.join(_PACKAGES)}")
    return folders


def _bubblewrap(kind: Kind, python: str) -> list[str]:
    """The command that puts Python into namespaces with a read-only root that holds Python alone."""
    if kind != "bubblewrap":
        return []
    program = shutil.which("bwrap")
    if program is None:
        raise JailError("bubblewrap is not installed")
    library = sysconfig.get_path("stdlib")
    shared = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", os.path.join(sys.base_prefix, "lib")]
    hidden = [os.path.join(library, "site-packages"), "/usr/lib/python3/dist-packages"]
    empty = [arg for path in hidden if os.path.isdir(path) for arg in ("--tmpfs", path, "--remount-ro", path)]
    bound = [python, str(_INSIDE), *(str(folder) for folder in _package_folders(kind))]
    # Root needs no namespace of users: the jail becomes another user itself.
    user = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if os.getuid() == 0 else ["--unshare-user"]
    return [
        program, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
        "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL", *user,
        *(arg for path in shared for arg in ("--ro-bind-try", path, path)), *empty,
        *(arg for path in bound for arg in ("--ro-bind", path, path)), "--remount-ro", "/", "--chdir", "/",
    ]  # fmt: skip


@cache
def probe(kind: Kind) -> Backend | str:
    """A backend of this machine, after a program has tried its doors inside it; or why there is none."""
    if os.name != "posix":
        return f"this is {os.name!r}"
    backend = Backend(kind)
    try:
        with Jail(backend, Limits()) as jail:
            refused = jail.run(_PROOF, ["assert doors() == [], doors()"], ["doors"], "", is_bare=False)
            details = dict(jail.details)
    except (JailError, OSError) as error:
        return str(error)[:150]
    if refused is not None and kind != "limits":
        return refused[:150]
    if kind == "bubblewrap":
        said = subprocess.run(["bwrap", "--version"], capture_output=True, text=True, check=False).stdout
        details["bubblewrap"] = said.split()[-1] if said.split() else "of unknown version"
    return Backend(kind, details)


def offered() -> Backend | None:
    """The best jail of this machine; None where it offers none."""
    return next((found for kind in _JAILS if isinstance(found := probe(kind), Backend)), None)


_JAILS: tuple[Kind, ...] = ("bubblewrap", "landlock")


def require_backend(permission: Permission) -> Backend:
    """What generated code runs in.

    Raises:
        ConfigError: this machine offers no jail, and `permission` is not "unsafe".
    """
    if (found := offered()) is not None:
        return found
    if permission == "unsafe":
        if isinstance(limited := probe("limits"), Backend):
            logging.getLogger("semalign").warning(
                "This machine offers no jail: generated code runs with resource limits alone, as evaluation.allow_code_execution "
                "is unsafe; it can read and change what you can."
            )
            return limited
        raise ConfigError(f"Generated code cannot run here: {limited}; use Linux, or leave code tasks out.")
    why = "; ".join(f"{kind}: {probe(kind)}" for kind in _JAILS)
    raise ConfigError(
        f"Generated code needs a jail, and this machine offers none ({why[:180]}): install bubblewrap, use Linux 5.13 or later, "
        "leave code tasks out, or set evaluation.allow_code_execution to unsafe."
    )
