"""What a CPU's freed memory becomes: the next tensor's, until it is given back."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import psutil

# Names of glibc's mallopt: small blocks up to a size wait in lists of their own, blocks from a size on are mapped one by one, and what is free
# at the heap's end goes back from a size on.
_LISTED_UP_TO, _MAPPED_FROM, _TRIM_FROM = 1, -3, -1
_KEPT_BYTES = 1 << 30
_NEVER = -1
_HUGE_PAGES = 14  # madvise's MADV_HUGEPAGE
_PAGE = 4096

_kept: tuple[Any, int] | None = None
"""The C library and where the heap ended, once `keep_pages` was called and found that it is glibc."""


def keep_pages() -> None:
    """Let a freed tensor below 1 GiB leave its memory to the next one, in huge pages, until `give_back`.

    A tensor of activations has some ten megabytes. glibc maps such a block anew each time, and the kernel clears its pages one by one, which
    takes longer than many an operation on it. A backward pass frees some gigabytes, which glibc would hand back too, and which the next
    step would have cleared again. And every tensor's block is cut to its alignment: the crumbs, kept aside for small requests, part
    the freed blocks around them, so that they fit no tensor of their size again and the heap grows with every step.
    Elsewhere than with glibc nothing happens, and what a user has set in the environment stands.
    To be called before the first tensor is made.
    """
    global _kept
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    library = _glibc()
    if library is None:
        return
    library.mallopt(_MAPPED_FROM, _KEPT_BYTES)
    library.mallopt(_TRIM_FROM, _NEVER)
    library.mallopt(_LISTED_UP_TO, 0)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.sbrk.restype, library.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    _kept = library, library.sbrk(0)
    _widen(*_kept)


def give_back() -> None:
    """Hand freed pages back to the system; glibc keeps blocks below 32 MB for itself otherwise."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)
    if _kept is not None:
        _widen(*_kept)


def _glibc() -> Any:
    """The C library where it is glibc, else None."""
    try:
        library = ctypes.CDLL(None)
        _ = library.gnu_get_libc_version, library.malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    return library


def _widen(library: Any, start: int) -> None:
    """Let the heap, which began at `start`, reach to three quarters of the machine's memory, in addresses alone, and ask for huge pages there.

    A page of it is made when it is first written to, by 2 MiB at once instead of 4 KiB. torch could ask for huge pages itself
    (THP_MEM_ALLOC_ENABLE), but cuts its blocks to whole pages then, whose crumbs are larger.
    """
    if not _may_widen():
        return
    # A block that is still in use far up holds the heap's end there, so that what is free below it counts too: a fork of a process that has
    # more addresses than the machine has memory would be refused.
    room = 0.75 * psutil.virtual_memory().total - (library.sbrk(0) - start)
    size = _KEPT_BYTES - 16 * _PAGE  # the largest that comes from the heap
    blocks = [library.malloc(size) for _ in range(int(room // size))]
    for block in filter(None, blocks):
        library.madvise(-(-block // _PAGE) * _PAGE, size - _PAGE, _HUGE_PAGES)
        library.free(block)


def _may_widen() -> bool:
    """Whether addresses cost nothing: no limit on them, and memory counts when it is used."""
    import resource  # of Unix alone, as glibc

    try:
        is_counted = Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        return False
    return not is_counted and resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
