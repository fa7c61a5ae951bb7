"""Jobs with dependencies in worker processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from semalign.comparison.pool import Job, run_jobs
from semalign.errors import CacheError, SemAlignError
from semalign.run.pages import SETTINGS, VARIABLE


def note(path: Path) -> None:
    path.write_text(str(time.monotonic()))


def note_heap(path: Path) -> None:
    path.write_text(os.environ.get(VARIABLE, "as it was"))


def fail(sentence: str) -> None:
    raise CacheError(sentence)


def die(code: int) -> None:
    os._exit(code)


def test_jobs_wait_for_what_they_need_and_a_failure_takes_only_those_along(tmp_path: Path) -> None:
    a, b, late, lost = (tmp_path / n for n in ("a", "b", "late", "lost"))
    jobs = {
        "late": Job(note, late, needs=("a", "b"), after=("bad",)),
        "lost": Job(note, lost, needs=("a", "bad")),
        "loster": Job(note, lost, needs=("lost",)),
        "a": Job(note, a),
        "bad": Job(fail, "no space"),
        "b": Job(note, b),
    }
    told: list[tuple[str, str | None]] = []
    failures = run_jobs(jobs, 2, lambda name, failure: told.append((name, failure)))
    assert failures["bad"] == "no space" and "needs bad, which failed: no space" in failures["lost"]
    assert set(failures) == {"bad", "lost", "loster"} and not lost.exists()
    assert float(late.read_text()) > max(float(a.read_text()), float(b.read_text()))
    assert sorted(n for n, _ in told) == sorted(jobs) and dict(told) == {n: failures.get(n) for n in jobs}


def test_a_worker_that_is_killed_ends_the_run_with_a_sentence() -> None:
    with pytest.raises(SemAlignError, match="run the same command again with fewer --workers"):
        run_jobs({"dies": Job(die, 9)}, 1)


def test_what_comes_first_is_done_first(tmp_path: Path) -> None:
    names = [f"{number}" for number in range(6)]
    jobs = {"source": Job(note, tmp_path / "source")}
    jobs |= {name: Job(note, tmp_path / name, needs=("source",) if int(name) % 2 else ()) for name in names}
    run_jobs(jobs, 1)
    order = sorted(names, key=lambda name: float((tmp_path / name).read_text()))
    assert order == names


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="glibc alone has these settings")
def test_workers_keep_freed_pages_unless_a_user_said_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heap = tmp_path / "heap"
    for name in [VARIABLE, *(name for name in os.environ if name.startswith("MALLOC_"))]:
        monkeypatch.delenv(name, raising=False)
    run_jobs({"heap": Job(note_heap, heap)}, 1)
    assert heap.read_text() == SETTINGS and VARIABLE not in os.environ
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    run_jobs({"heap": Job(note_heap, heap)}, 1)
    assert heap.read_text() == "as it was"
