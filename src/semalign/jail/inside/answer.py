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
    send(channel, run(receive(channel, _MOST), names))
    while True:
        send(channel, call(receive(channel, _MOST), names))


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run code that fills `names`; what to say of it."""
    try:
        exec(compile(code, "program", "exec", dont_inherit=True, optimize=0), names)
    except BaseException as error:
        return _raised(error)
    return {"ran": True}


def call(order: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    """Call a function of `names`; what it gave."""
    try:
        if order["name"] not in names:
            raise NameError(f"the code does not define {order['name']}")
        return _answered(names[order["name"]], order["args"], order["kwargs"])
    except BaseException as error:
        return _raised(error)


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
