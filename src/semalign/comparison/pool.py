"""Pieces of work with dependencies, in worker processes; one that fails takes none but those that need it along."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from semalign.errors import SemAlignError
from semalign.run.pages import started_keep_pages
from semalign.run.progress import quieten
from semalign.run.signals import held

logger = logging.getLogger(__name__)
Done = Callable[[str, str | None], None]  # name of a job, its failure


@dataclass(frozen=True)
class Job:
    """A call for a worker, with its dependencies by name."""

    call: Callable[[Any], None]
    argument: Any
    needs: tuple[str, ...] = ()
    """Jobs that must have succeeded."""
    after: tuple[str, ...] = ()
    """Jobs that must be over, one way or the other."""


def run_jobs(
    jobs: Mapping[str, Job], workers: int, done: Done = lambda name, failure: None
) -> dict[str, str]:
    """Run all jobs; those that failed, with one sentence each.

    Raises:
        SemAlignError: a worker died.
    """
    assert all({*job.needs, *job.after} <= set(jobs) for job in jobs.values())
    context = multiprocessing.get_context("spawn")
    # Workers read from the far end of a pipe and end when it closes: when we say so, and when we die.
    watched, lifeline = context.Pipe(duplex=False)
    failures: dict[str, str] = {}
    over: set[str] = set()
    threads = max(1, (os.cpu_count() or 1) // workers)
    waiting, running = dict(jobs), dict[Future[None], str]()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(watched, threads))

    def finish(name: str, failure: str | None) -> None:
        over.add(name)
        if failure is not None:
            failures[name] = failure
        done(name, failure)

    try:
        while waiting or running:
            for name, job in list(waiting.items()):
                # No more than can run now: what comes first in `jobs` is then also done first.
                if len(running) == workers:
                    break
                if not {*job.needs, *job.after} <= over:
                    continue
                del waiting[name]
                if lost := [n for n in job.needs if n in failures]:
                    finish(name, f"needs {lost[0]}, which failed: {failures[lost[0]]}")
                else:
                    # What is started here inherits that signals are held back: a worker ends when we say so, or die.
                    with held(), started_keep_pages():
                        running[pool.submit(job.call, job.argument)] = name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                finish(running.pop(future), _failure(future))
    except BaseException:
        # Workers stop at once: what they have not finished, the next run does.
        lifeline.close()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        lifeline.close()
        watched.close()
    return failures


def _failure(future: Future[None]) -> str | None:
    try:
        future.result()
    except BrokenProcessPool as error:
        raise SemAlignError(
            "a worker process was killed, as happens when memory runs out; run the same command again with fewer --workers."
        ) from error
    except SemAlignError as error:
        return str(error)
    except Exception as error:
        # Whoever mends it needs the place; the sentence alone goes into the results.
        logger.warning("".join(traceback.format_exception(error)))
        return f"{type(error).__name__}: {error}"
    return None


def _start(lifeline: Connection, threads: int) -> None:
    """In a new worker: few threads, no bars, and an end of its own when the parent ends or says so."""
    quieten(True)
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()


def _watch(lifeline: Connection) -> None:
    try:
        lifeline.recv()
    except EOFError:
        os._exit(1)
