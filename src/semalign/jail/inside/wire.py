"""Messages between the processes of a sandbox: four bytes of length, then JSON."""

from __future__ import annotations

import json
import os
import select
import time
from typing import Any


class EndedError(Exception):
    """The other side is gone, or sent what is no message."""


class LateError(Exception):
    """The other side did not answer in time."""


def _no_number(text: str) -> Any:
    raise ValueError(f"no plain number: {text[:20]}")


def send(pipe: int, message: Any) -> None:
    """Write one message; OSError where nobody reads."""
    body = json.dumps(message).encode("ascii")
    data = memoryview(len(body).to_bytes(4, "big") + body)
    while data:
        data = data[os.write(pipe, data) :]


def receive(pipe: int, most: int, deadline: float | None = None) -> Any:
    """Read one message of at most `most` bytes, until `deadline` on the monotonic clock.

    Raises:
        EndedError: the other side has closed, or what it sent is too long or no JSON.
        LateError: the deadline has passed.
    """
    length = int.from_bytes(_read(pipe, 4, deadline), "big")
    if length > most:
        raise EndedError(f"sent {length} bytes at once, of at most {most}")
    try:
        return json.loads(_read(pipe, length, deadline), parse_float=_no_number, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise EndedError("sent no plain data") from error


def _read(pipe: int, count: int, deadline: float | None) -> bytes:
    data = bytearray()
    while len(data) < count:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise LateError
        try:
            found = os.read(pipe, min(count - len(data), 2**16))
        except OSError as error:
            raise EndedError("left") from error
        if not found:
            raise EndedError("left")
        data += found
    return bytes(data)
