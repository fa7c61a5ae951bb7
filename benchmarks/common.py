"""What every benchmark shares: alternating sides, ratios with their spread, workers with their own memory, output.

Each script answers one question with one ratio, other side over ours, so that above 1 speaks for SemAlign. The sides
alternate, so that a busy machine slows both; `low` and `high` are the smallest and largest ratio of neighbours.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

import psutil
import torch

from semalign.run.environment import environment
from semalign.run.meter import measured, peak_gpu, peak_rss, reset_peak

REPETITIONS = 5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Result = dict[str, Any]


def ratios(ours: Callable[[], float], theirs: Callable[[], float], repetitions: int = REPETITIONS) -> Result:
    """Run both sides in turn; each returns its cost. Median ratio theirs / ours, with the smallest and largest."""
    pairs = [(ours(), theirs()) for _ in range(repetitions)]
    each = [b / a for a, b in pairs]
    return {
        "ratio": statistics.median(each),
        "low": min(each),
        "high": max(each),
        "ours": statistics.median(a for a, _ in pairs),
        "theirs": statistics.median(b for _, b in pairs),
        "repetitions": repetitions,
    }


def seconds(function: Callable[[], Any]) -> Callable[[], float]:
    """The same call, returning the seconds it took."""

    def timed() -> float:
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return timed


class Side(Protocol):
    """One side of a comparison, living in a process of its own, so that its peak memory is its own."""

    def call(self, name: str, *arguments: Any) -> Any:
        """Run a method of the object inside, wait, return its result."""
        ...


class Worker:
    """An object in a fresh process; `call` runs its methods there. Close by leaving the `with` block."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, arguments))
        self._process.start()
        other.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(10)
        self._process.kill()

    def call(self, name: str, *arguments: Any) -> Any:
        """See `Side`."""
        self._pipe.send((name, arguments))
        try:
            is_good, value = self._pipe.recv()
        except EOFError:
            raise SystemExit(f"{name}: the worker died, most likely for lack of memory.") from None
        if not is_good:
            raise SystemExit(f"{name}: {value}")
        return value

    def peak_bytes(self) -> int:
        """Largest resident memory of the process since `reset_peak`, or of the GPU where there is one."""
        return self.call("peak_bytes")

    def reset_peak(self) -> None:
        """Count peak memory from here."""
        self.call("reset_peak")


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    # Peers print their progress; standard output is the result's alone.
    os.dup2(2, 1)
    made: Any = None
    while True:
        try:
            name, given = pipe.recv()
        except EOFError:
            return
        try:
            made = made or make(*arguments)
            own = {"peak_bytes": _peak, "reset_peak": reset_peak}.get(name)
            pipe.send((True, own() if own else getattr(made, name)(*given)))
        except Exception:
            pipe.send((False, traceback.format_exc()))


def _peak() -> int:
    gpu = peak_gpu()
    return peak_rss() if gpu is None else gpu


def peak_growth(function: Callable[..., Callable[[], Any]], *arguments: Any) -> int:
    """Bytes by which a call, `function(*arguments)` in a fresh process, raises that process's peak memory.

    The function prepares its inputs and returns the call to measure. A GPU counts its memory exactly, in this process.
    """
    if DEVICE == "cuda":
        return _Growth(function, arguments).measure()
    with Worker(_Growth, function, arguments) as worker:
        return worker.call("measure")


@dataclass
class _Growth:
    function: Callable[..., Callable[[], Any]]
    arguments: tuple[Any, ...]

    def measure(self) -> int:
        call = self.function(*self.arguments)
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            return torch.cuda.max_memory_allocated() - before
        before = psutil.Process().memory_info().rss
        used: Result = {}
        with measured(used):
            call()
        return max(0, used["peak_rss_bytes"] - before)


def fitted_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Least-squares slope of log cost over log size."""
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (sizes, costs))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def gemm_rate(rows: int, inner: int, columns: int, dtype: torch.dtype, repetitions: int = 9) -> float:
    """Best floating-point operations per second of one matrix product of that shape and type."""
    a = torch.randn(rows, inner, dtype=dtype, device=DEVICE)
    b = torch.randn(columns, inner, dtype=dtype, device=DEVICE)
    product = seconds(lambda: torch.nn.functional.linear(a, b))
    product()
    return 2 * rows * inner * columns / min(product() for _ in range(repetitions))


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "--quick", action="store_true", help="the embedded pair and small sizes, within 5 minutes"
    )
    return parser


def machine() -> Result:
    """What the figures were measured on."""
    known = environment()
    return {k: known[k] for k in ("cpu", "cores", "memory_bytes", "accelerator", "torch", "python")} | {
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }


def finish(options: argparse.Namespace, result: Result) -> None:
    """Print a result: one JSON object, or lines for people."""
    result = {"benchmark": os.path.splitext(os.path.basename(sys.argv[0]))[0], **result, "machine": machine()}
    if options.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        if isinstance(value, list):
            print(f"{key}:")
            for line in value:
                print("  " + "  ".join(f"{k} {_short(v)}" for k, v in line.items()))
        else:
            print(f"{key}: {_short(value)}")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
