"""What a CPU's freed memory becomes: the next tensor's, until it is given back."""

from __future__ import annotations

import ctypes
import os

# Names of glibc's mallopt: blocks from a size on are mapped one by one, and what is free at the heap's end goes back from a size on.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 30
_NEVER = -1


def keep_pages() -> None:
    """Let a freed tensor below 1 GiB leave its memory to the next one, in huge pages, until `meter.free_memory` gives it back.

    A tensor of activations has some ten megabytes. glibc maps such a block anew each time, and the kernel clears its pages one by one, which
    takes longer than many an operation on it. A backward pass frees some gigabytes, which glibc would hand back too, and which the next
    step would have cleared again. Elsewhere than with glibc nothing happens, and what a user has set in the environment stands.
    To be called before the first tensor is made.
    """
    # Read by torch: it asks the kernel for huge pages.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another allocator
    mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
    mallopt(_TRIM_THRESHOLD, _NEVER)
