"""Items of every family: drawn evenly over facts or kinds, and turned into rows."""

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

from semalign.embedded import arithmetic, function_kinds, functions, world
from semalign.embedded.splits import Item, Split, Task, unique_items

_COUNTS: dict[Split, dict[Task, int]] = {
    "transfer": {"knowledge": 400, "arithmetic": 260, "code_complete": 260, "code_write": 260},
    "validation": {"knowledge": 50, "arithmetic": 50, "code_complete": 50, "code_write": 50},
    "test": {"knowledge": 150, "arithmetic": 150, "code_complete": 150, "code_write": 150},
}


def kinds_of(task: Task) -> Sequence[Any]:
    """Everything a task asks about: facts, problem kinds or function kinds."""
    return {
        "knowledge": world.world().facts,
        "arithmetic": arithmetic.KINDS,
        "code_complete": function_kinds.COMPLETE_KINDS,
        "code_write": function_kinds.WRITE_KINDS,
    }[task]


def make_item(task: Task, kind: Any, split: Split, rng: random.Random) -> Item:
    """One item about ``kind``, one of ``kinds_of(task)``."""
    if task == "knowledge":
        return world.knowledge_item(kind, split, rng)
    if task == "arithmetic":
        return arithmetic.arithmetic_item(kind, split, rng)
    return functions.code_item(kind, split, rng)


def items(task: Task, split: Split, count: int, seed: int) -> list[Item]:
    """``count`` items with different prompts, going round the kinds in a shuffled order."""
    rng = random.Random(f"{split}|{task}|{seed}")
    kinds = list(kinds_of(task))
    rng.shuffle(kinds)
    return unique_items(lambda r, n: make_item(task, kinds[n % len(kinds)], split, r), count, rng)


def messages(item: Item) -> list[dict[str, str]]:
    """The item as a chat: the question and its gold answer."""
    return [{"role": "user", "content": item.prompt}, {"role": "assistant", "content": item.answer}]


def split_rows(split: Split, seed: int) -> list[dict[str, Any]]:
    """All rows of one split, family after family."""
    return [
        {
            "id": f"{split}-{task}-{seed}-{n:04d}",
            "task": task,
            "messages": messages(item),
            "check": dict(item.check),
        }
        for task, drawn in _drawn(split, seed).items()
        for n, item in enumerate(drawn)
    ]


@cache
def _drawn(split: Split, seed: int) -> dict[Task, list[Item]]:
    return {task: items(task, split, count, seed) for task, count in _COUNTS[split].items()}
