"""The process of an answer: runs its code, then the calls that it is sent, and returns what they give as plain data.

Nothing here is trusted or secret: the code may read and change all of it. It can only choose what it sends.
"""

from __future__ import annotations

import contextlib
from typing import Any

from .library import fresh_names
from .values import decode, encode
from .wire import receive, send

_MOST = 2**26
_MUTABLE = ("list", "dict", "set", "bytearray", "deque")


def serve(channel: int) -> None:
    """Run the code that arrives, say that it ran, and answer calls until the other side is gone."""
    names = fresh_names()
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
    """What the function returned, and its arguments, numbered with the named ones last, where it changed them in place."""
    before = [*sent, *named.values()]
    arguments = decode(before)
    value = encode(function(*arguments[: len(sent)], **dict(zip(named, arguments[len(sent) :], strict=True))))
    reply = {"value": value}
    after = [encode(a) if type(a).__name__ in _MUTABLE else None for a in arguments]
    changed = {str(n): a for n, a in enumerate(after) if a is not None and a != before[n]}
    return reply | ({"changed": changed} if changed else {})


def _raised(error: BaseException) -> dict[str, Any]:
    return {"raised": [kind.__name__[:100] for kind in type(error).__mro__], "said": _said(error)}


def _said(error: BaseException) -> Any:
    """The text of an exception, or the key that was missing, which a KeyError's text only shows as it is written in code."""
    with contextlib.suppress(BaseException):
        if type(error).__str__ is KeyError.__str__ and len(error.args) == 1:
            return encode(error.args[0])
    with contextlib.suppress(BaseException):
        return str(error)[:300]
    return ""
