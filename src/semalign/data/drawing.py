"""Which rows a run trains on and which it measures: read by name, cut or mixed, held-out rows apart."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from semalign import embedded
from semalign.config import DataConfig, TransferConfig
from semalign.data import (
    Sample,
    disjoint,
    load_rows,
)
from semalign.data.items import as_item
from semalign.data.mixture import Drawn, mix
from semalign.embedded.splits import TASKS
from semalign.errors import DataError


def rows_named(name: str, data: DataConfig) -> list[dict[str, Any]]:
    """Rows of a dataset, file, or split of the embedded world."""
    if name.startswith("embedded:"):
        return embedded_rows(name)
    return load_rows(
        name, dataset_config=data.dataset_config, split=data.dataset_train_split, on_bad_row=data.on_bad_row
    )


def embedded_rows(name: str) -> list[dict[str, Any]]:
    """Rows of a split of the embedded world, of all tasks or of one.

    `transfer-more` has the rows of transfer and three times as many other ones of that split, with their true answers.
    """
    split, _, task = name.removeprefix("embedded:").partition("/")
    if split not in ("transfer", "transfer-more", "validation", "test") or task not in ("", *TASKS):
        raise DataError(
            f"{name}: expected embedded:transfer, embedded:validation or embedded:test, alone or with one of "
            f"/{', /'.join(TASKS)}; choose one."
        )
    rows = _more_rows() if split == "transfer-more" else embedded.rows(split)  # type: ignore[arg-type]
    return [row for row in rows if task in ("", row["task"])]


TIMES_MORE = 4


def _more_rows() -> list[dict[str, Any]]:
    """Of each task TIMES_MORE as many rows as transfer has, those of transfer first, no prompt twice."""
    wanted = Counter(row["task"] for row in embedded.rows("transfer"))
    kept: dict[str, dict[str, Any]] = {}
    counts: Counter[str] = Counter()
    for seed in range(10 * TIMES_MORE):
        for row in embedded.rows("transfer", seed):
            prompt = row["messages"][0]["content"]
            if prompt not in kept and counts[row["task"]] < TIMES_MORE * wanted[row["task"]]:
                kept[prompt] = row | {"id": f"{row['id']}-{seed}" if seed else row["id"]}
                counts[row["task"]] += 1
    return list(kept.values())


def task_rows(config: TransferConfig, task: str | None = None) -> list[dict[str, Any]]:
    """Items to answer, of all tasks or of one, at most max_items of each; none where none are asked for."""
    if config.evaluation.tasks is None:
        return []
    counts: dict[str, int] = {}
    kept = []
    for number, given in enumerate(rows_named(config.evaluation.tasks, config.data), start=1):
        row = as_item(given, f"{config.evaluation.tasks}: item {number}")
        counts[row["task"]] = counts.get(row["task"], 0) + 1
        if config.evaluation.max_items is None or counts[row["task"]] <= config.evaluation.max_items:
            kept.append(row)
    return [row for row in kept if task in (None, row["task"])]


def split_rows(data: DataConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and held-out rows; an overlap between them stops the run."""
    drawn = draw_rows(data)
    return drawn.train, drawn.heldout


def draw_rows(data: DataConfig) -> Drawn:
    """As `split_rows`, with how many rows each dataset gave."""
    heldout = rows_named(data.heldout_name, data) if data.heldout_name is not None else None
    if heldout is not None and data.heldout_rows:
        heldout = heldout[: data.heldout_rows]
    to_hold = data.heldout_rows if heldout is None else 0
    drawn = _cut(data, to_hold) if isinstance(data.dataset_name, str) else _mixed(data, to_hold)
    if heldout is not None:
        drawn = replace(drawn, heldout=heldout)
    if drawn.heldout and (shared := disjoint(drawn.train, drawn.heldout)):
        raise DataError(
            f"{', '.join(data.weights)}: {shared} held-out prompts are among the training rows too; remove the duplicates from one side."
        )
    return drawn


def _cut(data: DataConfig, heldout: int) -> Drawn:
    """One dataset: the last rows are held out, of the others the first or the drawn ones are trained on."""
    (name,) = data.weights
    rows = rows_named(name, data)
    if heldout >= len(rows):
        raise DataError(
            f"data.heldout_rows: expected fewer than the {len(rows)} rows of {name}, got {heldout}; lower it."
        )
    at = len(rows) - heldout
    train, kept = rows[:at], rows[at:]
    if data.max_rows is not None and data.max_rows < len(train):
        chosen: Sequence[int] = range(data.max_rows)
        if data.rows_seed is not None:
            chosen = sorted(random.Random(f"rows {data.rows_seed}").sample(range(len(train)), data.max_rows))
        train = [train[n] for n in chosen]
    counts = {"weight": 1.0, "available": len(rows), "train": len(train), "heldout": len(kept)}
    return Drawn(train, kept, {name: counts})


def _mixed(data: DataConfig, heldout: int) -> Drawn:
    """Several datasets; rows without an id get one that says where they come from."""
    datasets = {
        name: [{"id": f"{name}:{n}", **row} for n, row in enumerate(rows_named(name, data), 1)]
        for name in data.weights
    }
    return mix(
        datasets,
        data.weights,
        total=data.max_rows,
        heldout=heldout,
        stopping=data.stopping_strategy,
        seed=data.mixture_seed,
        rows_seed=data.rows_seed,
    )


def attribution_rows(config: TransferConfig, samples: Sequence[Sample]) -> list[Sample]:
    """The rows that layers are scored on, drawn by the run's seed, in their order."""
    count = min(config.attribution.rows, len(samples))
    chosen = random.Random(f"attribution {config.seed}").sample(range(len(samples)), count)
    return [samples[n] for n in sorted(chosen)]
