"""Values as plain data: what may pass between an answer and what checks it, as JSON with exact types.

None, bool, int, str and list are themselves; every other type is an object of one key, its tag. What comes out of `decode`
holds objects of exact built-in types alone (and deque, Decimal, Fraction), whatever was written by the other side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import Any

MOST_ITEMS = 100_000
"""Items that are taken from an iterator."""
_LARGE = 2**63


class NotPlainError(TypeError):
    """A value that has no form as plain data."""


def _items(value: Any) -> list[Any]:
    return [encode(item) for item in value]


def _taken(value: Any) -> list[Any]:
    """All that an iterator gives; one that never ends is no plain data."""
    found = list(islice(value, MOST_ITEMS + 1))
    if len(found) > MOST_ITEMS:
        raise NotPlainError(f"an iterator of more than {MOST_ITEMS} items cannot leave the sandbox")
    return _items(found)


# The first type that a value is an instance of decides; an instance of a subclass leaves as one of the type itself.
_ENCODERS: tuple[tuple[type, str, Callable[[Any], Any]], ...] = (
    (float, "float", lambda v: float.hex(v)),
    (complex, "complex", lambda v: [float.hex(v.real), float.hex(v.imag)]),
    (tuple, "tuple", lambda v: _items(tuple.__iter__(v))),
    (set, "set", lambda v: _items(set.__iter__(v))),
    (frozenset, "frozenset", lambda v: _items(frozenset.__iter__(v))),
    (dict, "dict", lambda v: [[encode(k), encode(w)] for k, w in dict.items(v)]),
    (bytes, "bytes", lambda v: memoryview(v).hex()),
    (bytearray, "bytearray", lambda v: memoryview(v).hex()),
    (range, "range", lambda v: _items((v.start, v.stop, v.step))),
    (deque, "deque", lambda v: _items(deque.__iter__(v))),
    (Decimal, "decimal", lambda v: str(v)),
    (Fraction, "fraction", lambda v: str(v)),
    (type({}.keys()), "keys", _items),
    (type({}.values()), "values", _items),
    (type({}.items()), "items", _items),
)
_DECODERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda b: int(b, 16),
    "float": float.fromhex,
    "complex": lambda b: complex(float.fromhex(b[0]), float.fromhex(b[1])),
    "tuple": lambda b: tuple(decode(list(b))),
    "set": lambda b: set(decode(list(b))),
    "frozenset": lambda b: frozenset(decode(list(b))),
    "dict": lambda b: {decode(key): decode(value) for key, value in b},
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "range": lambda b: range(*decode(list(b))),
    "deque": lambda b: deque(decode(list(b))),
    "decimal": Decimal,
    "fraction": Fraction,
    "keys": lambda b: dict.fromkeys(decode(list(b))).keys(),
    "values": lambda b: dict(enumerate(decode(list(b)))).values(),
    "items": lambda b: dict(decode(list(b))).items(),
    "iterator": lambda b: iter(decode(list(b))),
}


def encode(value: Any) -> Any:
    """A value as what JSON holds.

    Raises:
        NotPlainError: a value, or one inside it, is of another type (a function, an instance of a class).
        RecursionError: it holds itself.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        number = int.__index__(value)
        return number if -_LARGE < number < _LARGE else {"int": hex(number)}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return _items(list.__iter__(value))
    for kind, tag, write in _ENCODERS:
        if isinstance(value, kind):
            return {tag: write(value)}
    if hasattr(type(value), "__next__"):
        return {"iterator": _taken(value)}
    raise NotPlainError(f"a value of type {type(value).__name__} cannot leave the sandbox as plain data")


def decode(data: Any) -> Any:
    """The value that `encode` wrote.

    Raises:
        ValueError, TypeError, LookupError, ArithmeticError, RecursionError: `data` is nothing that `encode` writes.
    """
    if data is None or type(data) in (bool, int, str):
        return data
    if type(data) is list:
        return [decode(item) for item in data]
    if type(data) is not dict or len(data) != 1:
        raise ValueError("no plain data")
    ((tag, body),) = data.items()
    return _DECODERS[tag](body)
