"""Which split an item belongs to, decided by a hash of what the item is.

An item is named by a key such as ``got_more|12|7``. Its hash puts it in exactly one split, so the splits are
disjoint whatever seed draws the rows, and the text the models were trained on cannot hold a test item.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["pretraining", "transfer", "validation", "test"]
Task = Literal["knowledge", "arithmetic", "code_complete", "code_write"]

TASKS: tuple[Task, ...] = ("knowledge", "arithmetic", "code_complete", "code_write")
_UPPER_BOUNDS: tuple[tuple[Split, int], ...] = (
    ("pretraining", 45),
    ("transfer", 75),
    ("validation", 82),
    ("test", 100),
)
_ATTEMPTS = 10_000


@dataclass(frozen=True)
class Item:
    """One question with its gold answer."""

    task: Task
    key: str
    """Kind and parameters; items of different splits never share a key."""
    kind: str
    """Problem kind, function kind or fact."""
    prompt: str
    answer: str
    check: dict[str, Any] = field(hash=False)
    """What the answer checker needs; JSON values only."""


def split_of(key: str) -> Split:
    """The only split that may hold the item named ``key``."""
    bucket = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") % 100
    return next(split for split, bound in _UPPER_BOUNDS if bucket < bound)


def draw_key(split: Split, draw: Callable[[], tuple[str, Any]]) -> tuple[str, Any]:
    """Call ``draw`` until its key falls into ``split``."""
    for _ in range(_ATTEMPTS):
        key, value = draw()
        if split_of(key) == split:
            return key, value
    raise AssertionError(f"no key of split {split} in {_ATTEMPTS} draws; last key {key}")


def unique_items(make: Callable[[random.Random, int], Item], count: int, rng: random.Random) -> list[Item]:
    """``count`` items of pairwise different prompts; ``make`` gets the generator and a running number."""
    items: dict[str, Item] = {}
    for number in range(count * 50):
        item = make(rng, number)
        items.setdefault(item.prompt, item)
        if len(items) == count:
            return list(items.values())
    raise AssertionError(f"only {len(items)} different prompts where {count} were wanted")
