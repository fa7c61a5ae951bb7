"""A folder's lock, held by the operating system: it ends with the process that took it, however that ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from semalign.errors import CacheError
from semalign.run.files import LOCK, sweep

CANNOT_LOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
LONGEST = 4096  # bytes read of a lock file, which anybody may have written


@contextmanager
def locked(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Own a folder, which is made where there is none, and swept of what killed processes left half-written.

    The same thread may own it again inside; another thread is refused like another process. What the lock file holds is only for
    the sentence that names the owner. It stays when the lock is given back: deleting it would let two processes lock two files of
    one name.

    Args:
        patience: seconds to wait for the owner.

    Raises:
        CacheError: another owns it, or its file system has no locks, or it cannot be written.
    """
    # Without flock this package would fall back to a file that a killed process leaves behind.
    lock = FileLock(folder / LOCK, is_singleton=True, fallback_to_soft=False, on_acquired=_sign)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=patience, poll_interval=0.05)
    except Timeout:
        raise CacheError(
            f"{folder}: in use by {_owner(folder / LOCK)}; wait for it, stop it, or choose another output_dir."
        ) from None
    except OSError as error:
        what = "has no file locks, so two runs could write there at once"
        what = what if error.errno in CANNOT_LOCK else "cannot be written"
        raise CacheError(f"{folder}: {what} ({error.strerror}); choose another output_dir.") from error
    try:
        if lock.lock_counter == 1:
            sweep(folder)
        yield
    finally:
        lock.release()


def _sign(handle: int) -> None:
    """Write down who owns the lock; a disk without room for it is no reason to stop."""
    # Not the options: they may hold a password.
    words = [Path(sys.argv[0]).name or "python", *sys.argv[1:]]
    first = next((n for n, word in enumerate(words) if n and word.startswith("-")), len(words))
    about = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join(words[:first]),
        "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
    }
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(about).encode(), 0)


def _owner(path: Path) -> str:
    """Who holds the lock, as far as its file says so."""
    try:
        # Not to wait for the writer of a pipe of that name.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as file:
            about = json.loads(file.read(LONGEST) or b"")
        pid, host, command, since = (
            "".join(c for c in str(about[name]) if c.isprintable())[:80]
            for name in ("pid", "host", "command", "since")
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "another process"
    return f"process {pid} on {host} ({command}) since {since}"
