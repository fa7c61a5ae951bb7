"""results.jsonl as arrays, and averages over them under the weights of every bootstrap draw.

Legend: R draws, S seeds, N items or held-out rows of a task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semalign.comparison.plan import UNTOUCHED

Line = Mapping[str, Any]
Array = NDArray[np.float64]


class Results:
    """results.jsonl as arrays: what a cell did on each item and held-out row of a task."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.head: Line = {}
        self.cells: dict[tuple[str, str, str, int], Line] = {}
        self.failed: list[Line] = []
        self.found: dict[tuple[Any, ...], dict[Any, Line]] = {}
        for line in lines:
            kind = line["kind"]
            cell = (line.get("method"), line.get("budget"), line.get("trained"), line.get("seed"))
            if kind == "comparison":
                self.head = line
            elif kind == "failed":
                self.failed.append(line)
            elif kind == "cell":
                self.cells[cell] = line  # type: ignore[index]
            else:
                self.found.setdefault((kind, *cell, line["measured"]), {})[line[kind]] = line
        self.tasks: list[str] = list(self.head["tasks"])
        self.trained = [task for task in self.tasks if task not in self.head.get("measured_only", ())]
        self.default: str = self.head["default"]

    def names(self, kind: str, task: str) -> list[Any]:
        """All items or rows of a task, as the untouched student met them."""
        return list(self.found.get((kind, UNTOUCHED, None, None, None, task), {}))

    def seeds(self, method: str, budget: str, task: str | None = None) -> list[int]:
        """Seeds whose cells are there for every task that is trained on, or for the one."""
        tasks = self.trained if task is None else [task]
        return [
            s for s in range(self.head["seeds"]) if all((method, budget, t, s) in self.cells for t in tasks)
        ]

    def values(self, key: str, cells: Sequence[tuple[Any, ...]], task: str) -> Array:
        """(S, N) of a field of items or rows, NaN where a cell has no such item."""
        kind = "row" if key in ("kl", "top1", "nll", "tokens") else "item"
        names = self.names(kind, task)
        nothing: Line = {}
        lines = [self.found.get((kind, *cell, task), {}) for cell in cells]
        values = [[x.get(n, nothing).get(key, np.nan) for n in names] for x in lines]
        return np.array(values, dtype=float).reshape(len(cells), len(names))


class Bootstrap:
    """Weights of items, rows and seeds in every draw, and averages under them."""

    def __init__(self, results: Results, draws: int, seed: int) -> None:
        self.results, self.draws = results, draws
        self.random = np.random.default_rng(seed)
        self.weights = {
            (kind, task): self._weights(len(results.names(kind, task)))
            for kind in ("item", "row")
            for task in results.tasks
        }
        self.seed_weights: dict[tuple[Any, ...], Array] = {}
        self._means: dict[tuple[Any, ...], Array] = {}

    def _weights(self, count: int, drawn: int | None = None) -> Array:
        """(R + 1, count): how often each was among the `drawn` (as many as there are); row 0 is all ones."""
        weights = (
            self.random.multinomial(drawn or count, np.full(count, 1 / max(1, count)), size=self.draws)
            if count
            else np.zeros((self.draws, 0))
        )
        return np.vstack([np.ones((1, count)), weights])

    def mean(
        self,
        method: str,
        budget: str | None,
        trained: str | None,
        key: str,
        measured: str,
        *,
        subset: Array | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Array:
        """(R + 1,) mean of a field over a method's seeds and a task's items, or tokens.

        `subset` (N,) keeps some items, `seeds` says which cells to use, else those of the seeds that are whole. NaN where nothing
        was measured.
        """
        if budget and seeds is None:
            seeds = self.results.seeds(method, budget)
        chosen = tuple(seeds or ())
        place = (method, budget, trained, key, measured, None if subset is None else subset.tobytes(), chosen)
        if place not in self._means:
            self._means[place] = self._mean(method, budget, trained, key, measured, subset, chosen)
        return self._means[place]

    def _mean(
        self,
        method: str,
        budget: str | None,
        trained: str | None,
        key: str,
        measured: str,
        subset: Array | None,
        seeds: Sequence[int],
    ) -> Array:
        results = self.results
        kind = "row" if key in ("kl", "top1", "nll") else "item"
        cells = [(method, budget, trained, s) for s in (seeds if budget else [None])]
        weights = self.weights[kind, measured]
        if not cells or not weights.shape[1]:
            return np.full(self.draws + 1, np.nan)
        if kind == "row":
            weights = weights * results.values("tokens", [(UNTOUCHED, None, None, None)], measured)
        values = results.values(key, cells, measured)
        kept = ~np.isnan(values).any(0) if subset is None else subset
        with np.errstate(invalid="ignore", divide="ignore"):
            by_seed = weights[:, kept] @ values[:, kept].T / weights[:, kept].sum(1, keepdims=True)
        if budget is None:
            return by_seed[:, 0]
        drawn = (method, budget, *seeds)
        if drawn not in self.seed_weights:
            # One less than there are: the mean of n drawn from n has only (n - 1)/n of its variance, which tells
            # where seeds are few (the rescaled bootstrap of Rao and Wu, 1988).
            self.seed_weights[drawn] = self._weights(len(seeds), max(1, len(seeds) - 1))
        own = self.seed_weights[drawn]
        return (by_seed * own).sum(1) / own.sum(1)

    def answered(
        self, method: str, budget: str, trained: str, measured: str, seeds: Sequence[int] | None = None
    ) -> Array:
        """(N,) which items of another task a method's students answered."""
        chosen = self.results.seeds(method, budget) if seeds is None else seeds
        cells = [(method, budget, trained, s) for s in chosen]
        return np.asarray(~np.isnan(self.results.values("correct", cells, measured)).any(0))
