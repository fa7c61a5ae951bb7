"""Rows of several datasets in proportion to weights, split into training and held-out rows by prompt."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from semalign.data.kinds import Row
from semalign.data.overlap import without_prompts_of
from semalign.errors import DataError

log = logging.getLogger(__name__)
Stopping = Literal["first_exhausted", "all_exhausted"]


@dataclass(frozen=True)
class Drawn:
    """Rows for training and for measuring, and where they come from."""

    train: list[Row]
    heldout: list[Row]
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per dataset: its weight, the rows it holds, and how many of them are in train and heldout."""


def apportion(weights: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers that add up to total, as near to weight * total as can be (largest remainders first).

    >>> apportion([Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)], 10)
    [5, 3, 2]
    """
    exact = [w * total for w in weights]
    counts = [math.floor(x) for x in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_rest[: total - sum(counts)]:
        counts[i] += 1
    return counts


def mix(
    datasets: Mapping[str, Sequence[Row]],
    weights: Mapping[str, float],
    *,
    total: int | None = None,
    heldout: int = 0,
    stopping: Stopping = "first_exhausted",
    seed: int = 0,
    rows_seed: int | None = None,
) -> Drawn:
    """Draws rows at random; the same seed draws the same rows, wherever the files lie.

    With a `rows_seed` other training rows are drawn beside the same held-out ones.

    `heldout` rows are drawn first, in the same proportions; rows that share a prompt with one of them are not trained
    on. With first_exhausted no row is drawn twice, and the shortest dataset decides how many rows there are in all: the
    weights hold, rows of the others are left over. With all_exhausted every row is drawn at least once, unless `total`
    is smaller, and those of short datasets repeatedly. `total` is the number of training rows, or the most of them.

    Raises:
        DataError: a dataset is too short for its share of the held-out rows, or nothing is left to train on.
    """
    names = list(weights)
    exact = [Fraction(str(weights[name])) for name in names]
    shares = [w / sum(exact) for w in exact]
    # By number, for names may be paths.
    shuffled = [_shuffled(datasets[name], f"{seed}/{i}") for i, name in enumerate(names)]
    held_counts = apportion(shares, heldout)
    for name, rows, count in zip(names, shuffled, held_counts, strict=True):
        if count >= len(rows):
            raise DataError(
                f"data.heldout_rows: expected fewer than the {len(rows)} rows of {name} for its share, got {count}; lower it."
            )
    held = [rows[:count] for rows, count in zip(shuffled, held_counts, strict=True)]
    out = [row for rows in held for row in rows]
    pools = [
        without_prompts_of(rows[count:], out) if out else rows
        for rows, count in zip(shuffled, held_counts, strict=True)
    ]
    if rows_seed is not None:
        pools = [_shuffled(pool, f"{seed}/{i}/{rows_seed}") for i, pool in enumerate(pools)]
    counts = apportion(shares, _size(names, shares, pools, total, stopping))
    train = [pool[i % len(pool)] for pool, count in zip(pools, counts, strict=True) for i in range(count)]
    if not train:
        raise DataError(
            "data.dataset_name: the mixture has no row to train on; give more rows or other weights."
        )
    figures = zip(names, shares, counts, held_counts, strict=True)
    sources = {
        name: {"weight": float(share), "available": len(datasets[name]), "train": count, "heldout": kept}
        for name, share, count, kept in figures
    }
    return Drawn(_shuffled(train, f"{seed}/train"), _shuffled(out, f"{seed}/heldout"), sources)


def _shuffled(rows: Sequence[Row], seed: str) -> list[Row]:
    return random.Random(seed).sample(list(rows), len(rows))


def _size(
    names: Sequence[str],
    shares: Sequence[Fraction],
    pools: Sequence[Sequence[Row]],
    total: int | None,
    stopping: Stopping,
) -> int:
    """How many training rows the mixture has."""
    if not all(pools):
        short = names[[bool(pool) for pool in pools].index(False)]
        raise DataError(
            f"{short}: no row is left to train on beside the held-out ones; lower data.heldout_rows."
        )
    exact = [len(pool) / share for pool, share in zip(pools, shares, strict=True)]
    if stopping == "all_exhausted":
        return total if total is not None else math.ceil(max(exact))
    most = math.floor(min(exact))
    if total is not None and total > most:
        short = names[exact.index(min(exact))]
        log.warning(
            "data.max_rows: %d rows in these proportions are not there, %s is exhausted after %d; training on those",
            total,
            short,
            most,
        )
    return most if total is None else min(total, most)
