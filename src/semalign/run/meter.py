"""Seconds and peak memory of a block, and memory given back."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from semalign.run.files import read_json
from semalign.run.folder import is_done, save_result
from semalign.run.pages import give_back

KEPT_EVERY = 10.0  # seconds; a try that is killed loses as much of its time


def free_memory(*, collect: bool = True) -> None:
    """Collect what is unreachable and give freed pages back."""
    if collect:
        gc.collect()
    give_back()


@dataclass(frozen=True)
class Tries:
    """A file that keeps the seconds of tries which were stopped, for the one that goes on with the same work."""

    path: Path
    wanted: Mapping[str, Any]
    """What the work is; of other work nothing is taken over."""


@contextmanager
def timed(tries: Tries | None = None) -> Iterator[Callable[[], float]]:
    """Yields a function that tells the seconds of the block so far, those of earlier tries included."""
    start = time.perf_counter()
    if tries is None:
        yield lambda: time.perf_counter() - start
        return
    before = 0.0
    if is_done(tries.path, tries.wanted, doing=None):
        before = float(read_json(tries.path, "transfer")["seconds"])
    has_ended = threading.Event()

    def seconds() -> float:
        return before + time.perf_counter() - start

    def keep() -> None:
        save_result(tries.path, tries.wanted, {"seconds": seconds()})

    def keep_on() -> None:
        while not has_ended.wait(KEPT_EVERY):
            keep()

    keeper = threading.Thread(target=keep_on, daemon=True)
    keeper.start()
    try:
        try:
            yield seconds
        finally:
            has_ended.set()
            keeper.join()
    except BaseException:
        keep()
        raise
    tries.path.unlink(missing_ok=True)


@contextmanager
def measured(result: dict[str, Any], tries: Tries | None = None) -> Iterator[None]:
    """Put `seconds`, `peak_rss_bytes` and, on a GPU, `peak_gpu_bytes` of the block into a result; an interrupted block leaves none.

    Args:
        tries: the seconds are those of all tries; the memory is the last one's.
    """
    free_memory()
    reset_peak()
    with timed(tries) as seconds:
        yield
        result["seconds"] = round(seconds(), 3)
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
