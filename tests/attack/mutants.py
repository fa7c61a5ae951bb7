"""Files as nobody writes them: mutations of valid ones, each known by its seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 4.0, 1.5, 10**8, 2**31, 10**18, 10**30, 1e308, -1e308, 5e-324, float("inf"), float("nan"), "",
    "x", "\0", "\ud800", "a\u2028b", "x" * 5000, "1e400", [], {}, [[]], [None], {"": 1}, {"class_path": "os.system"}, [1] * 300,
)  # fmt: skip


def mutant(seed: int, valid: Sequence[bytes]) -> bytes:
    """One of the valid texts, changed in one to three ways; now and then random bytes instead."""
    rng = random.Random(seed)
    data = rng.choice(valid)
    if rng.random() < 0.05:
        return rng.randbytes(rng.randrange(200))
    for _ in range(rng.randrange(1, 4)):
        data = rng.choice(WAYS)(rng, data)
    return data


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 4) if changed else 0):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    stop = min(len(data), start + rng.randrange(1, 80))
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[start:stop] * rng.choice((1, 2, 30)) + data[at:]


def _nest(rng: random.Random, data: bytes) -> bytes:
    depth = rng.choice((70, 900, 10_000))
    at = rng.randrange(len(data) + 1)
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return data[:at] + opening * depth + b"1" + closing * depth + data[at:]


def _alias(rng: random.Random, data: bytes) -> bytes:
    bombs = (
        b"&a [*a]",
        b"&a {x: *a}",
        b"[&b [1,1,1,1,1,1,1,1,1], &c [*b,*b,*b,*b,*b,*b,*b,*b], [*c,*c,*c,*c,*c,*c]]",
        b"{<<: &m {a: 1}}",
    )
    return data.replace(rng.choice((b"null", b"true", b"1", b"[]")), rng.choice(bombs), 1)


def _swap(rng: random.Random, data: bytes) -> bytes:
    """An odd value, or nothing, at a random place of the JSON value, or of one of the lines."""
    lines = data.split(b"\n") if data.count(b"\n{") else [data]
    at = rng.randrange(len(lines))
    try:
        value = json.loads(lines[at])
    except (ValueError, RecursionError):
        return _flip(rng, data)
    whole: Any = [value]
    holder: Any = whole
    key: Any = 0
    while isinstance(holder[key], (dict, list)) and holder[key] and rng.random() < 0.8:
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        if rng.random() < 0.1:
            holder[key] = copy.deepcopy(rng.choice(ODD))
    if isinstance(holder, dict) and rng.random() < 0.3:
        holder.pop(key)
    elif rng.random() < 0.9:
        holder[key] = copy.deepcopy(rng.choice(ODD))
    else:
        holder[key] = [holder[key]] * 2
    lines[at] = json.dumps(whole[0]).encode()
    return b"\n".join(lines)


WAYS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _flip,
    _cut,
    _repeat,
    _nest,
    _alias,
    _swap,
    _swap,
    _swap,
    _swap,
)
