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


_DECODER = json.JSONDecoder(parse_float=_no_number, parse_constant=_no_number)


def receive(pipe: int, most: int, deadline: float | None = None) -> Any:
    """Read one message of at most `most` bytes, until `deadline` on the monotonic clock.

    Raises:
        EndedError: the other side has closed, or what it sent is too long, more than one message, or no JSON.
        LateError: the deadline has passed.
    """
    data = bytearray()
    while len(data) < 4:
        data += _some(pipe, deadline)
    length = int.from_bytes(data[:4], "big")
    if length > most:
        raise EndedError(f"sent {length} bytes at once, of at most {most}")
    while len(data) < 4 + length:
        data += _some(pipe, deadline)
    if len(data) > 4 + length:
        raise EndedError("sent more than it was asked for")
    try:
        return _DECODER.decode(data[4:].decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise EndedError("sent no plain data") from error


def _some(pipe: int, deadline: float | None) -> bytes:
    if deadline is not None:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            raise LateError
    try:
        found = os.read(pipe, 2**16)
    except OSError as error:
        raise EndedError("left") from error
    if not found:
        raise EndedError("left")
    return found
