"""The run folder: where each file is, who owns it now, and which results are still valid."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from semalign import ranks
from semalign.cache import read_json, write_atomic, write_json
from semalign.errors import CacheError


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. Data flows from top to bottom; a step reads only what an earlier one wrote."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, machine and command."""
        return self.root / "environment.json"

    @property
    def models(self) -> Path:
        """Names and licences of teacher and student."""
        return self.root / "models.json"

    @property
    def data(self) -> Path:
        """How many rows each dataset gave."""
        return self.root / "data.json"

    @property
    def scores(self) -> Path:
        """Attribution scores of the teacher's layers."""
        return self.root / "scores.json"

    @property
    def pairs(self) -> Path:
        """The plan: pairs and trained layers; may be edited."""
        return self.root / "pairs.json"

    @property
    def rows(self) -> Path:
        """Training rows with the teacher's answers."""
        return self.root / "rows.jsonl"

    @property
    def heldout(self) -> Path:
        """Held-out rows, the teacher's answers where they had none."""
        return self.root / "heldout.jsonl"

    @property
    def generated(self) -> Path:
        """How many rows the teacher answered."""
        return self.root / "rows.json"

    @property
    def targets(self) -> Path:
        """Cached signals."""
        return self.root / "targets"

    @property
    def manifest(self) -> Path:
        """What the cache holds."""
        return self.targets / "manifest.json"

    @property
    def metrics(self) -> Path:
        """What was measured."""
        return self.root / "metrics.json"

    @property
    def report(self) -> Path:
        """The page."""
        return self.root / "report.html"

    def training(self, baseline: str | None = None) -> Path:
        """Folder that holds student/, train.jsonl and train.json of the run's own or a baseline's training."""
        return self.root if baseline is None else self.root / "baselines" / baseline

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Own the folder; a second run stops with the owner's pid. Of several processes of one run the main one owns it."""
        if not ranks.is_main():
            yield
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._take()
        except OSError as error:
            raise CacheError(
                f"{self.root}: cannot be written ({error.strerror}); choose another output_dir."
            ) from error
        try:
            yield
        finally:
            self._lock_path.unlink(missing_ok=True)

    @property
    def _lock_path(self) -> Path:
        return self.root / ".lock"

    def _take(self) -> None:
        try:
            handle = os.open(self._lock_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            text = self._lock_path.read_text().strip()
            owner = int(text) if text.isdigit() else -1
            if owner != os.getpid() and psutil.pid_exists(owner):
                raise CacheError(
                    f"{self.root}: in use by process {owner}; wait for it, stop it, or choose another output_dir."
                ) from None
            # Left by a process that died.
            self._lock_path.unlink(missing_ok=True)
            return self._take()
        with os.fdopen(handle, "w") as file:
            file.write(str(os.getpid()))


def figure_name(entry: Mapping[str, Any]) -> str:
    """A figure of metrics.json's `harness` in words: its metric, and how the answer was read off."""
    return entry["metric"] + ("" if entry["filter"] == "none" else f", {entry['filter']}")


def fingerprint(**parts: Any) -> dict[str, Any]:
    """Plain JSON of everything a result depends on; kept readable so that a difference can be named."""
    return json.loads(json.dumps(parts, default=list))


def hash_of(value: Any) -> str:
    """Short hash of any JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def is_done(path: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a result file exists and was made from the same inputs."""
    if not path.exists():
        return False
    try:
        return read_json(path, "")["fingerprint"] == wanted
    except (CacheError, KeyError, TypeError):
        return False


def free_memory(*, collect: bool = True) -> None:
    """Collect what is unreachable and give freed pages back; glibc keeps blocks below 32 MB for itself otherwise."""
    if collect:
        gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass  # another allocator


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


def save_result(path: Path, wanted: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Write a result with the fingerprint that makes it valid."""
    write_json(path, {**result, "fingerprint": wanted})


def kept_lines(part: Path, wanted: Mapping[str, Any]) -> list[Any]:
    """What an earlier try with the same inputs wrote, without a last line that was cut off."""
    # Only at line feeds: a text may hold any other character that ends a line.
    lines = part.read_text(encoding="utf-8").split("\n") if part.exists() else []
    whole = [json.loads(line) for line in lines[:-1]]
    done = whole[1:] if whole and whole[0] == wanted else []
    write_atomic(part, "".join(map(json_line, [dict(wanted), *done])))
    return done


def json_line(value: Any) -> str:
    """JSON, then a line feed."""
    return json.dumps(value, ensure_ascii=False) + "\n"
