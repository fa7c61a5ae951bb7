"""The process that decides: runs the asserts, in which the answer's function is a call to the answer's process.

It never runs the answer's code. What comes back is decoded to exact built-in types, so nothing of the answer's takes part in a
comparison; the verdict goes to the host through a pipe that the answer's process never held.
"""

from __future__ import annotations

import builtins
from collections import deque
from collections.abc import Callable
from typing import Any

from .library import fresh_names
from .values import decode, encode
from .wire import EndedError, LateError, receive, send

NO_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
"""What Python raises of a text that it cannot compile; the last two of one that is nested too deep, as a row of dashes is."""
_MOST_JOB = 2**26


class _OverError(BaseException):
    """The answer can give no more values; not an Exception, so that asserts do not take it for one of the answer's."""


class Answer:
    """The other process, as calls.

    Args:
        channel: the socket to it.
        deadline: on the monotonic clock; after it every answer is too late.
        most: bytes of one reply.
    """

    def __init__(self, channel: int, deadline: float, most: int) -> None:
        self.channel, self.deadline, self.most = channel, deadline, most
        self.over: str | None = None
        """Why it can give no more values; then the program has failed whatever its asserts make of it."""

    def run(self, code: str) -> None:
        """Have the code run in its process; raises what it raised."""
        if self._ask(code).get("ran") is not True:
            raise self._end("sent no plain data")

    def function(self, name: str) -> Callable[..., Any]:
        """The answer's function of that name: arguments leave as plain data, and the value comes back as plain data."""

        def call(*args: Any, **kwargs: Any) -> Any:
            reply = self._ask(
                {
                    "name": name,
                    "args": encode(list(args)),
                    "kwargs": {key: encode(value) for key, value in kwargs.items()},
                }
            )
            try:
                changed = {int(n): decode(after) for n, after in reply.get("changed", {}).items()}
                value = decode(reply["value"])
            except Exception:
                raise self._end("sent no plain data") from None
            given = [*args, *kwargs.values()]
            for n, after in changed.items():
                if 0 <= n < len(given):
                    _restore(given[n], after)
            return value

        call.__name__ = call.__qualname__ = name
        return call

    def _ask(self, message: Any) -> dict[str, Any]:
        if self.over is not None:
            raise _OverError(self.over)
        try:
            send(self.channel, message)
            reply = receive(self.channel, self.most, self.deadline)
        except LateError:
            raise self._end("ran past its time limit") from None
        except (EndedError, OSError) as error:
            sent = isinstance(error, EndedError) and str(error) != "left"
            raise self._end(
                str(error) if sent else "ended before it answered: it left, or met a limit of time or memory"
            ) from None
        if not isinstance(reply, dict):
            raise self._end("sent no plain data")
        if "raised" in reply:
            raise self._error(reply["raised"], reply.get("said"))
        return reply

    def _end(self, reason: str) -> _OverError:
        self.over = reason
        return _OverError(reason)

    def _error(self, kinds: Any, said: Any) -> BaseException:
        """An exception of the answer's: of the nearest built-in type that one argument makes, under its own name; one that leaves
        Python ends it."""
        if not (isinstance(kinds, list) and kinds and all(type(k) is str for k in kinds)):
            return self._end("sent no plain data")
        try:
            said = decode(said)
        except Exception:
            return self._end("sent no plain data")
        bases = [kind for kind in map(_builtin_error, kinds) if kind is not None]
        # It would end a loop of the asserts in silence.
        if any(issubclass(base, (StopIteration, StopAsyncIteration)) for base in bases):
            return RuntimeError(f"{kinds[0]}: {said}")
        for base in bases:
            name = kinds[0] if kinds[0].isidentifier() else base.__name__
            try:
                return (base if base.__name__ == name else type(name, (base,), {}))(said)
            except TypeError:  # one that needs more arguments
                continue
        return self._end(f"{kinds[0]}: {said}"[:300])


def _builtin_error(name: str) -> type[Exception] | None:
    kind = getattr(builtins, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, Exception) else None


def _restore(argument: Any, after: Any) -> None:
    """Change an argument as the answer's process changed its copy."""
    if type(argument) is not type(after):
        return
    if isinstance(argument, (list, bytearray)):
        argument[:] = after
    elif isinstance(argument, (dict, set)):
        argument.clear()
        argument.update(after)
    elif isinstance(argument, deque):
        argument.clear()
        argument.extend(after)


def decide(job: int, channel: int, deadline: float, most: int) -> bool:
    """Read a program from the host, check its answer, and write the verdict: why it failed, or None.

    Returns whether the answer kept to plain data to the end.
    """
    program = receive(job, _MOST_JOB)
    answer = Answer(channel, deadline, most)
    try:
        reason = _failure(program, answer)
    except BaseException as error:
        reason = type(error).__name__
        try:
            reason = f"{reason}: {error}" if str(error) else reason
        except Exception:  # an exception of the asserts' that has no text
            pass
    failed = answer.over or reason
    send(job, {"failed": None if failed is None else failed[:300]})
    return answer.over is None


def _failure(program: dict[str, Any], answer: Answer) -> str | None:
    """Run what the asserts need, the answer, and the asserts; returns when all hold."""
    names = fresh_names()
    for text in _helpers(program["prefix"]):
        exec(compile(text, "prefix", "exec", dont_inherit=True, optimize=0), names)
    answer.run(program["code"])
    names.update({name: answer.function(name) for name in program["entries"]})
    for text in program["asserts"]:
        exec(compile(text, "asserts", "exec", dont_inherit=True, optimize=0), names)
    return None


def _helpers(prefix: str) -> list[str]:
    """The task's own text before the answer, if it is Python: its imports and functions, which asserts may use."""
    for text in (prefix, f"{prefix}\n    pass"):
        try:
            compile(text, "prefix", "exec", dont_inherit=True)
        except NO_PYTHON:
            continue
        return [text]
    return []
