"""Seconds and peak memory of a block, and memory given back."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from semalign.run.pages import give_back


def free_memory(*, collect: bool = True) -> None:
    """Collect what is unreachable and give freed pages back."""
    if collect:
        gc.collect()
    give_back()


@contextmanager
def measured(result: dict[str, Any]) -> Iterator[None]:
    """Put `seconds`, `peak_rss_bytes` and, on a GPU, `peak_gpu_bytes` of the block into a result; an interrupted block leaves none."""
    free_memory()
    reset_peak()
    start = time.perf_counter()
    yield
    result["seconds"] = round(time.perf_counter() - start, 3)
    result["peak_rss_bytes"] = peak_rss()
    if (gpu := peak_gpu()) is not None:
        result["peak_gpu_bytes"] = gpu


def reset_peak() -> None:
    """Count peak_rss and peak_gpu from here."""
    # Linux only; elsewhere the peak is the process's own since its start.
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    # Before its first tensor the GPU has no count to reset, and would fail.
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def resident() -> int:
    """Memory of this process that is in use now, bytes."""
    return int(psutil.Process().memory_info().rss)


def peak_rss() -> int:
    """Largest resident memory of this process since the last reset, bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_gpu() -> int | None:
    """Largest memory of tensors on this process's GPU since the last reset, bytes; None without a GPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
