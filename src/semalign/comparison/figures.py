"""Figures of a comparison from the lines of results.jsonl alone, with 95% bootstrap intervals.

Shares of the teacher-student gap, averaged over tasks t:
    accuracy: (a_m - a_untouched) / (a_teacher - a_untouched), over tasks where the teacher is ahead by more than chance explains;
    KL:       1 - kl_m / kl_untouched, kl averaged over the supervised tokens of the held-out rows.
The gain on a student's own task t, averaged over tasks: 100 (a_m - a_untouched), in points.
What becomes of the tasks t' that a student was not trained on, averaged over pairs of tasks:
    retention:     100 (a_m - a_untouched), in points;
    KL, elsewhere: 1 - kl_m / kl_untouched there; below 0 the student has moved away from the teacher.
Averages are of the seeds whose cells are there for every task; a task's own figures, of all of its cells.

Intervals come from a hierarchical paired bootstrap: in each draw the items (and held-out rows) of every task are drawn
anew, the same ones for all methods, and of the n seeds of every method n - 1 are drawn anew, the same ones for all its
tasks, which gives their mean its unbiased variance; the tasks are fixed. A draw is a set of weights, and weights of one
make the figure itself, which is draw 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from semalign.comparison.bootstrap import Array, Bootstrap, Line, Results
from semalign.comparison.plan import TEACHER, UNTOUCHED, WRONG_TASK
from semalign.maths.similarity import LEAST_KL

DRAWS = 4000


def figures(lines: Iterable[Line], *, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """Everything that is reported; see the module.

    Returns: `methods`, one entry each (gain, accuracy_gap_closed, kl_gap_closed, retention, kl_gap_closed_elsewhere, their
    `_interval`s and `_minus_default`s, rows, steps, wall_seconds, extraction_failures, cut_off, tasks, and the same under equal_time),
    `controls`, `models`, `failed` and the comparison's own fields. `tasks` holds what the students trained on each did on it, and
    as accuracy_change the points they gained or lost on every task. A figure that was not measured is None.
    """
    results = Results(lines)
    boot = Bootstrap(results, draws, seed)
    reference = _shares(boot, results.default, "rows")
    methods = [_method(boot, name, reference) for name in results.head["methods"]]
    return {
        **{k: results.head[k] for k in ("teacher", "student", "default", "tasks", "seeds")},
        "trained": results.trained,
        "methods": methods,
        "controls": {WRONG_TASK: wrong_task(boot)},
        "models": {m: _model(boot, m) for m in (UNTOUCHED, TEACHER)},
        "failed": [{k: v for k, v in line.items() if k != "kind"} for line in results.failed],
    }


def _method(boot: Bootstrap, name: str, reference: Mapping[str, Array]) -> dict[str, Any]:
    results = boot.results
    is_default = name == results.default
    entry = {"method": name, "default": is_default, **_outcome(boot, name, "rows", reference)}
    timed = results.head["equal_time"]
    entry["equal_time"] = None
    if name in timed or (is_default and timed):
        entry["equal_time"] = _outcome(boot, name, "rows" if is_default else "time", reference)
    return entry


def _outcome(boot: Bootstrap, name: str, budget: str, reference: Mapping[str, Array]) -> dict[str, Any]:
    """Figures of a method at one budget."""
    results = boot.results
    seeds = results.seeds(name, budget)
    found: dict[str, Any] = {"seeds": len(seeds)}
    for key, values in _shares(boot, name, budget).items():
        found[key] = point(values)
        found[f"{key}_interval"] = interval(values)
        found[f"{key}_minus_default"] = point(values - reference[key])
        found[f"{key}_minus_default_interval"] = interval(values - reference[key])
    cells = [results.cells[name, budget, t, s] for t in results.trained for s in seeds]
    for key, kind in (
        ("wall_seconds", np.mean),
        ("train_seconds", np.mean),
        ("rows", np.mean),
        ("steps", np.mean),
        ("peak_rss_bytes", np.max),
    ):
        known = [c[key] for c in cells if c.get(key) is not None]
        found[key] = round(float(kind(known)), 3) if known else None
    budgets = [c["budget_seconds"] for c in cells if c.get("budget_seconds") is not None]
    found["budget_seconds"] = round(float(np.mean(budgets)), 3) if budgets else None
    found |= _lacking(boot, lambda task, key: boot.mean(name, budget, task, key, task))
    found["tasks"] = {t: _task(boot, name, budget, t) for t in results.trained}
    return found


def _shares(boot: Bootstrap, name: str, budget: str) -> dict[str, Array]:
    """Draws of the headline figures."""
    tasks = boot.results.trained
    answered = [t for t in tasks if boot.results.names("item", t)]
    return {
        "gain": _average([accuracy_change(boot, name, budget, t, t) for t in answered]),
        "accuracy_gap_closed": _average([accuracy_share(boot, name, budget, t, t) for t in tasks]),
        "kl_gap_closed": _average([kl_share(boot, name, budget, t, t) for t in tasks]),
        "retention": retention(boot, name, budget),
        "kl_gap_closed_elsewhere": _average(
            [kl_share(boot, name, budget, trained, other) for trained, other in _other_tasks(boot, "row")]
        ),
    }


def accuracy_share(
    boot: Bootstrap,
    name: str,
    budget: str,
    trained: str,
    measured: str,
    *,
    subset: Array | None = None,
    seeds: Sequence[int] | None = None,
) -> Array | None:
    """Draws of the share of a task's accuracy gap; None where the 95% interval of the gap holds 0, which could make any share of it."""
    before, teacher = (
        boot.mean(m, None, None, "correct", measured, subset=subset) for m in (UNTOUCHED, TEACHER)
    )
    ends = interval(teacher - before)
    if ends is None or not ends[0] > 0:
        return None
    after = boot.mean(name, budget, trained, "correct", measured, subset=subset, seeds=seeds)
    gap = np.where(teacher > before, teacher - before, np.nan)  # a draw without a gap has no share of it
    return (after - before) / gap


def kl_share(
    boot: Bootstrap, name: str, budget: str, trained: str, measured: str, seeds: Sequence[int] | None = None
) -> Array | None:
    """Draws of the share of a task's KL gap; None without held-out rows, or where there is no gap."""
    before = boot.mean(UNTOUCHED, None, None, "kl", measured)
    if not before[0] >= LEAST_KL:
        return None
    return 1 - boot.mean(name, budget, trained, "kl", measured, seeds=seeds) / before


def accuracy_change(
    boot: Bootstrap, name: str, budget: str, trained: str, measured: str, seeds: Sequence[int] | None = None
) -> Array:
    """Draws of the change of accuracy against the untouched student, in points, on the items that both answered."""
    subset = boot.answered(name, budget, trained, measured, seeds)
    after = boot.mean(name, budget, trained, "correct", measured, subset=subset, seeds=seeds)
    return 100 * (after - boot.mean(UNTOUCHED, None, None, "correct", measured, subset=subset))


def retention(boot: Bootstrap, name: str, budget: str) -> Array:
    """Draws of the change of accuracy, in points, on items of the tasks a student was not trained on."""
    return _average([accuracy_change(boot, name, budget, *pair) for pair in _other_tasks(boot)])


def wrong_task(boot: Bootstrap) -> dict[str, Any]:
    """A control: the default's students trained on another task, on the items that they answered."""
    default, shares = boot.results.default, list[Array | None]()
    for trained, measured in _other_tasks(boot):
        subset = boot.answered(default, "rows", trained, measured)
        shares.append(accuracy_share(boot, default, "rows", trained, measured, subset=subset))
    values = _average(shares)
    return {"accuracy_gap_closed": point(values), "accuracy_gap_closed_interval": interval(values)}


def _other_tasks(boot: Bootstrap, kind: str = "item") -> list[tuple[str, str]]:
    """(trained, measured) pairs of tasks of which the second has items, or held-out rows."""
    tasks = [t for t in boot.results.tasks if boot.results.names(kind, t)]
    return [
        (trained, measured) for trained in boot.results.trained for measured in tasks if trained != measured
    ]


def _task(boot: Bootstrap, name: str, budget: str, task: str) -> dict[str, Any]:
    """Figures of the students trained on one task, of whatever seeds there are."""
    seeds = boot.results.seeds(name, budget, task)
    entry: dict[str, Any] = {
        "seeds": len(seeds),
        "items": len(boot.results.names("item", task)),
        **_means(boot, name, budget, task, seeds),
    }
    shares = {
        "accuracy_gap_closed": accuracy_share(boot, name, budget, task, task, seeds=seeds),
        "kl_gap_closed": kl_share(boot, name, budget, task, task, seeds),
    }
    for key, share in shares.items():
        entry[key] = None if share is None else point(share)
        entry[f"{key}_interval"] = None if share is None else interval(share)
    changes = {t: accuracy_change(boot, name, budget, task, t, seeds) for t in boot.results.tasks}
    entry["accuracy_change"] = {t: point(v) for t, v in changes.items()}
    entry["accuracy_change_interval"] = {t: interval(v) for t, v in changes.items()}
    return entry


def _model(boot: Bootstrap, name: str) -> dict[str, Any]:
    """Untouched student or teacher."""
    tasks = {t: _means(boot, name, None, t) for t in boot.results.tasks}
    return _lacking(boot, lambda task, key: boot.mean(name, None, None, key, task)) | {"tasks": tasks}


def _lacking(boot: Bootstrap, mean: Callable[[str, str], Array]) -> dict[str, float | None]:
    """Shares of answers in which none was found, and of those that had not ended."""
    return {
        "extraction_failures": _over_tasks(boot, lambda task: 1 - mean(task, "extracted")),
        "cut_off": _over_tasks(boot, lambda task: 1 - mean(task, "ended")),
    }


def _means(
    boot: Bootstrap, name: str, budget: str | None, task: str, seeds: Sequence[int] | None = None
) -> dict[str, Any]:
    """Accuracy and closeness on a task, of a model as it is or of students trained on that task."""
    trained = task if budget else None
    values = {
        k: boot.mean(name, budget, trained, k, task, seeds=seeds) for k in ("correct", "kl", "top1", "nll")
    }
    found: dict[str, Any] = {("accuracy" if k == "correct" else k): point(v) for k, v in values.items()}
    return found | {"accuracy_interval": interval(values["correct"])}


def _over_tasks(boot: Bootstrap, figure: Callable[[str], Array]) -> float | None:
    tasks = [t for t in boot.results.trained if boot.results.names("item", t)]
    return point(_average([figure(t) for t in tasks]))


def _average(parts: Sequence[Array | None]) -> Array:
    known = [p for p in parts if p is not None]
    return np.mean(known, axis=0) if known else np.full(1, np.nan)


def point(values: Array) -> float | None:
    """The figure itself: draw 0."""
    return None if np.isnan(values[0]) else round(float(values[0]), 6)


def interval(values: Array) -> list[float] | None:
    """The 2.5% and 97.5% points of the draws."""
    drawn = values[1:][~np.isnan(values[1:])]
    if not len(drawn) or np.isnan(values[0]):
        return None
    return [round(float(q), 6) for q in np.quantile(drawn, (0.025, 0.975))]
