"""SIGINT and SIGTERM end every step in the same way: what was begun is undone or left for the next start, which goes on from it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


class Interrupted(KeyboardInterrupt):
    """The process was told to end."""

    def __init__(self, number: int = signal.SIGINT, what: str = "") -> None:
        super().__init__(*[what] * bool(what))
        self.exit_code = 128 + number


def interrupt(number: int, frame: FrameType | None) -> None:
    """The handler of every step but training, which ends its step first."""
    raise Interrupted(number)


@contextmanager
def handled(handler: Handler = interrupt) -> Iterator[None]:
    """Both signals go to `handler` inside the block.

    Only a main thread can have handlers; and who started the process with a signal ignored, as a shell does for what runs in the
    background, wants it ignored.
    """
    is_main = threading.current_thread() is threading.main_thread()
    numbers = [n for n in SIGNALS if is_main and signal.getsignal(n) is not signal.SIG_IGN]
    kept = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in kept.items():
            signal.signal(number, before)


@contextmanager
def held() -> Iterator[None]:
    """Both signals wait until the end of the block; processes that are started inside never see them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
