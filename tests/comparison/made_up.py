"""Results of a made-up comparison, and plain loops over them."""

from __future__ import annotations

import random
from statistics import mean
from typing import Any

TASKS = ("letters", "sums")
ACCURACY = {"teacher": 0.95, "untouched": 0.3, "ours": 0.8, "kl": 0.7, "bad": 0.25}
KL = {"teacher": 0.0, "untouched": 0.8, "ours": 0.1, "kl": 0.2, "bad": 0.9}


def lines_of(*, seeds: int = 3, items: int = 60, rows: int = 25, luck: int = 0) -> list[dict[str, Any]]:
    """Results of a made-up comparison: independent draws around known accuracies."""
    dice = random.Random(luck)
    methods = ["ours", "kl", "bad"]
    found: list[dict[str, Any]] = [
        {"kind": "comparison", "default": "ours", "methods": methods, "tasks": list(TASKS), "seeds": seeds}
        | {"equal_time": ["kl"], "teacher": "big", "student": "small"}
    ]
    cells: list[dict[str, Any]] = [{"method": m} for m in ("untouched", "teacher")]
    cells += [
        {"method": m, "trained": t, "seed": s, "budget": b}
        for m in methods
        for t in TASKS
        for s in range(seeds)
        for b in (("rows", "time") if m == "kl" else ("rows",))
    ]
    for cell in cells:
        costs = {
            "wall_seconds": 2.0 + len(cell["method"]),
            "train_seconds": 1.0,
            "rows": 5,
            "steps": 7,
            "peak_rss_bytes": 9,
            "budget_seconds": 3.0 if cell.get("budget") == "time" else None,
        }
        found.append({"kind": "cell", **cell, **(costs if "seed" in cell else {})})
        for measured in TASKS:
            is_own = cell.get("trained") in (None, measured)
            share = ACCURACY[cell["method"]] if is_own else 0.28
            for n in range(items if is_own else items // 3):
                right = int(dice.random() < share)
                found.append(
                    {"kind": "item", **cell, "measured": measured, "item": f"i{n}"}
                    | {"correct": right, "extracted": int(right or dice.random() < 0.9), "ended": n % 4 > 0}
                )
            for n in range(rows):
                kl = (KL[cell["method"]] if is_own else 0.85) * (0.5 + dice.random())
                found.append(
                    {"kind": "row", **cell, "measured": measured, "row": n, "tokens": 3 + n % 5}
                    | {"kl": kl, "top1": 1 - kl / 4, "nll": kl + 0.1}
                )
    return found


def select(lines: list[dict[str, Any]], kind: str, **wanted: Any) -> list[dict[str, Any]]:
    return [x for x in lines if x["kind"] == kind and all(x.get(k) == v for k, v in wanted.items())]


def accuracy(lines: list[dict[str, Any]], **wanted: Any) -> float:
    return mean(x["correct"] for x in select(lines, "item", **wanted))


def kl(lines: list[dict[str, Any]], **wanted: Any) -> float:
    rows = select(lines, "row", **wanted)
    return sum(x["kl"] * x["tokens"] for x in rows) / sum(x["tokens"] for x in rows)
