"""The process of an answer: runs its code, then the calls that it is sent, and returns what they give as plain data.

Nothing here is trusted or secret: the code may read and change all of it. It can only choose what it sends.
"""

from __future__ import annotations

from typing import Any

from .values import decode, encode
from .wire import receive, send

_MOST = 2**26
_MUTABLE = ("list", "dict", "set", "bytearray", "deque")


def serve(channel: int) -> None:
    """Run the code that arrives, say that it ran, and answer calls until the other side is gone."""
    names: dict[str, Any] = {"__name__": "program"}
    try:
        code = receive(channel, _MOST)
        exec(compile(code, "program", "exec", dont_inherit=True, optimize=0), names)
        reply: dict[str, Any] = {"ran": True}
    except BaseException as error:
        reply = _raised(error)
    send(channel, reply)
    while True:
        call = receive(channel, _MOST)
        try:
            if call["name"] not in names:
                raise NameError(f"the code does not define {call['name']}")
            reply = _answered(names[call["name"]], call["args"], call["kwargs"])
        except BaseException as error:
            reply = _raised(error)
        send(channel, reply)


def _answered(function: Any, sent: list[Any], named: dict[str, Any]) -> dict[str, Any]:
    """What the function returned, and its arguments where it changed them in place."""
    arguments = decode(sent)
    value = encode(function(*arguments, **{name: decode(item) for name, item in named.items()}))
    reply = {"value": value}
    after = [encode(a) if type(a).__name__ in _MUTABLE else None for a in arguments]
    changed = {str(n): a for n, a in enumerate(after) if a is not None and a != sent[n]}
    return reply | ({"changed": changed} if changed else {})


def _raised(error: BaseException) -> dict[str, Any]:
    try:
        text = str(error)[:300]
    except BaseException:
        text = ""
    return {"raised": [kind.__name__[:100] for kind in type(error).__mro__], "text": text}
