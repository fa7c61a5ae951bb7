"""What a CPU's freed memory becomes: the next tensor's, until it is given back."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

VARIABLE = "GLIBC_TUNABLES"
SETTINGS = ":".join(
    (
        # A block below 1 GiB comes from the heap, which keeps what is freed and grows by huge pages.
        f"glibc.malloc.mmap_threshold={1 << 30}",
        f"glibc.malloc.trim_threshold={(1 << 64) - 1}",
        "glibc.malloc.hugetlb=1",
        # Small blocks have no lists of their own.
        "glibc.malloc.tcache_count=0",
        "glibc.malloc.mxfast=0",
    )
)


def keep_pages() -> None:
    """Let a freed tensor leave its memory to the next one, in huge pages, until `give_back`. This starts the program again.

    A tensor of activations has some ten megabytes. glibc maps such a block anew each time, and the kernel clears its pages one by one, which
    takes longer than many an operation on it. And every tensor's block is cut to torch's alignment: the crumbs of some fifty bytes go to
    the lists for small blocks, and from there to whatever small thing is made next. Where that stays it parts the freed blocks around
    it, so that they fit no tensor of their size again: the heap grows with every step, and so does the list of large free
    blocks, along which glibc looks for a place at every operation.

    glibc reads these settings when a program begins, so it begins anew with them in the environment; processes that it starts inherit
    them. To be called first of all. Elsewhere than with glibc nothing happens, and what a user has set in the environment stands.
    """
    if not _unset():
        return
    # A system may let no program start: slower, and all the same.
    with started_keep_pages(), suppress(OSError):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@contextmanager
def started_keep_pages() -> Iterator[None]:
    """Processes started within keep freed pages as `keep_pages` says; this one stays as it is."""
    if not _unset():
        yield
        return
    os.environ[VARIABLE] = SETTINGS
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def environment_of_others() -> dict[str, str]:
    """The environment for programs that are not this one: as the user has set it."""
    return {k: v for k, v in os.environ.items() if (k, v) != (VARIABLE, SETTINGS)}


def give_back() -> None:
    """Hand freed pages back to the system; glibc keeps blocks below 32 MB for itself otherwise."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _unset() -> bool:
    """Whether the C library is glibc and nobody has told it how to keep its heap."""
    told = VARIABLE in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    return not told and _glibc() is not None


def _glibc() -> Any:
    """The C library where it is glibc, else None."""
    try:
        library = ctypes.CDLL(None)
        _ = library.gnu_get_libc_version, library.malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    return library
