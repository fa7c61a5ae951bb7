"""Numbers as text, and the sentences of the report. Pure functions of plain values.

A *share* is a part of the gap between the untouched student (0) and the teacher (1); it may leave that range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

GAPS = (("accuracy_gap_closed", "Accuracy gap closed"), ("kl_gap_closed", "KL gap closed"))
"""The two headline figures of metrics.json, with their titles."""
DASH = "–"
NBSP = "\u00a0"
LEVEL = 0.01
"""Two shares closer than this are called level: one seed and a few hundred items cannot tell them apart."""

RECIPES: Mapping[str, str] = {
    "aligned": "Aligned",
    "cosine": "Cosine",
    "fisher": "Fisher",
    "cross_entropy": "Cross-entropy",
    "kl": "Full KL",
}


def finite(value: object) -> float | None:
    """`value` as a float, or None when it is missing, not a number or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the known values; None when there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def recipe_name(key: str) -> str:
    """Name of a recipe as people read it."""
    return RECIPES.get(key) or capital(key.replace("_", " "))


def _number(value: float | None) -> str:
    return number(value)


@dataclass(frozen=True)
class Measure:
    """A figure of a model beside its teacher, as metrics.json has it under `closeness`."""

    key: str
    title: str
    shown: Callable[[float | None], str] = _number
    is_high_good: bool = False


def capital(text: str) -> str:
    """`text` with a capital first letter and the rest as it is: MMLU stays MMLU."""
    return text[:1].upper() + text[1:]


def in_sentence(key: str) -> str:
    """Name of a recipe within a sentence: cross-entropy, full KL."""
    return recipe_name(key).lower().replace("kl", "KL")


def percent(value: float | None, digits: int = 0) -> str:
    """0.614 -> 61%."""
    return (
        DASH
        if value is None
        else f"{_unsigned_zero(round(100 * value, digits)):.{digits}f}%".replace("-", "−")
    )


def number(value: float | None, digits: int = 3) -> str:
    """A measured value with `digits` decimals; more for tiny values, fewer for large ones."""
    if value is None:
        return DASH
    size = abs(value)
    if 0 < size < 10 ** (-digits):
        return f"{value:.1e}".replace("-", "−")
    places = digits if size < 100 else 1 if size < 10_000 else 0
    return f"{_unsigned_zero(round(value, places)):,.{places}f}".replace("-", "−")


def percent_1(value: float | None) -> str:
    """0.6142 -> 61.4%."""
    return percent(value, 1)


def number_2(value: float | None) -> str:
    """A measured value with two decimals."""
    return number(value, 2)


CLOSENESS = (
    Measure("kl", "KL to the teacher"),
    Measure("top1_agreement", "Top-1 agreement", percent_1, is_high_good=True),
    Measure("nll", "NLL"),
)
"""What is measured of every model on held-out rows; KL and NLL are in nats a token."""


def moved(before: float | None, after: float | None, *, shown: Callable[[float | None], str] = number) -> str:
    """How a value changed, as the rest of a sentence: fell from 0.284 to 0.080."""
    first, last = shown(before), shown(after)
    if before is None or after is None:
        return f"is {last}" if before is None and after is not None else "was not measured"
    if first == last:
        return f"stayed at {last}"
    return f"{'rose' if after > before else 'fell'} from {first} to {last}"


def count(value: float | None) -> str:
    """12345 -> 12,345."""
    return DASH if value is None else f"{round(value):,}"


def seconds(value: float | None) -> str:
    """A duration: 0.42 s, 31 s, 4 min 05 s, 2 h 10 min; with spaces that do not break."""
    if value is None:
        return DASH
    whole = round(value)
    if value < 9.95:
        shown = f"{value:.2g} s" if value < 1 else f"{value:.1f} s"
    elif whole < 60:
        shown = f"{whole} s"
    elif whole < 3600:
        shown = f"{whole // 60} min {whole % 60:02d} s"
    else:
        shown = f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return shown.replace(" ", NBSP)


def size(value: float | None) -> str:
    """Bytes with a decimal unit: 1.2 GB."""
    if value is None:
        return DASH
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= step:
            shown = f"{value / step:.3g}" if value < 999.5 * step else f"{value / step:,.0f}"
            return f"{shown}{NBSP}{unit}"
    return f"{value:.0f}{NBSP}bytes"


def moment(text: str) -> str:
    """An ISO time to the minute, 2026-05-11 09:30 UTC; any other text as it is."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    zone = time.strftime("%z").replace("+0000", "UTC")
    return f"{time:%Y-%m-%d %H:%M} {zone}".rstrip()


def listing(items: Sequence[object]) -> str:
    """1, 2 and 3."""
    words = [str(item) for item in items]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def layers(numbers: Sequence[int]) -> str:
    """Layer numbers with runs joined: 3, 4, 5, 9 -> 3–5 and 9."""
    runs: list[list[int]] = []
    for layer in sorted(set(numbers)):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = [f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return listing(", ".join(parts).split(", ")) if parts else "none"


def clip(text: str, limit: int) -> str:
    """`text`, cut at `limit` characters with a note of how many are left out."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters)"


def _unsigned_zero(value: float) -> float:
    return 0.0 if value == 0 else value


def share_closed(before: float | None, after: float | None, teacher: float | None) -> float | None:
    """(after - before) / (teacher - before); None where the teacher is not ahead of the student."""
    if before is None or after is None or teacher is None or teacher <= before:
        return None
    return (after - before) / (teacher - before)


@dataclass(frozen=True)
class Headline:
    """The one sentence, cut around its number so that the page can set the number off."""

    lead: str
    number: str
    rest: str

    @property
    def sentence(self) -> str:
        """The whole sentence."""
        return f"{self.lead}{self.number}{self.rest}"


def headline(recipe: str, measure: str, share: float | None, baselines: Mapping[str, float]) -> Headline:
    """What the run reached, and how that compares with the best baseline.

    `measure` names the gap ("accuracy gap"), `share` is the part of it that was closed, `baselines` the same per
    baseline (those without a value left out).
    """
    if share is None:
        return Headline("The run was evaluated, but no gap between student and teacher was measured", "", ".")
    name = recipe_name(recipe)
    against = comparison(share, baselines)
    if share < -LEVEL:
        lead = f"{name} training widened the {measure} between student and teacher by "
        return Headline(lead, percent(-share), f"{against}.")
    beyond = " (the student passed its teacher)" if share > 1 + LEVEL else ""
    lead = f"{name} training closed "
    return Headline(lead, percent(share), f" of the {measure} between student and teacher{beyond}{against}.")


MEND = "Lower train.learning_rate first; then try LoRA (train.lora_r), fewer layers (pairing.num_layers), or more rows."
"""What to change when a training did harm."""


def setback(metrics: Mapping[str, Any]) -> Headline | None:
    """What got worse, when a student ends further from its teacher than it began: by KL, or by right answers.

    Where the teacher's own lead may be chance, answers are worse if the intervals of before and after lie apart on some task.
    """
    near, right = metrics.get("closeness") or {}, metrics.get("accuracy") or {}
    kl = [finite((near.get(name) or {}).get("kl")) for name in ("before", "after")]
    found = []
    if kl[0] is not None and kl[1] is not None and kl[1] > (1 + LEVEL) * kl[0]:
        found.append(("KL to the teacher rose from ", f"{number(kl[0])} to {number(kl[1])}"))
    share = finite(metrics.get("accuracy_gap_closed"))
    answers = [finite(right.get(name)) for name in ("before", "after")]
    if share < -LEVEL if share is not None else _is_clearly_lower(answers, metrics.get("tasks") or {}):
        found.append(("mean accuracy fell from ", " to ".join(map(percent_1, answers))))
    if not found:
        return None
    (what, values), others = found[0], found[1:]
    rest = "".join(f", and {other}{numbers}" for other, numbers in others)
    is_told_by_kl = what.startswith("KL")
    lead = (
        "ends further from its teacher than it began"
        if share is not None or is_told_by_kl
        else "answers worse than before"
    )
    return Headline(f"This student {lead}: {what}", values, f"{rest}.")


def _is_clearly_lower(answers: Sequence[float | None], tasks: Mapping[str, Any]) -> bool:
    """Whether right answers became fewer, on some task with intervals apart."""
    before, after = answers
    if before is None or after is None or after >= before:
        return False
    return any(overlap(task) is False and (change(task) or 0.0) < 0 for task in tasks.values())


def accuracy(task: Mapping[str, Any], key: str) -> float | None:
    """Accuracy of one contender on a task."""
    return finite((task.get(key) or {}).get("accuracy"))


def change(task: Mapping[str, Any]) -> float | None:
    """Accuracy after less accuracy before."""
    before, after = accuracy(task, "before"), accuracy(task, "after")
    return None if before is None or after is None else after - before


def overlap(task: Mapping[str, Any]) -> bool | None:
    """Whether the intervals of before and after meet; None when one of them is unknown."""
    ends = [finite((task.get(key) or {}).get(end)) for key in ("before", "after") for end in ("low", "high")]
    known = [end for end in ends if end is not None]
    if len(known) < len(ends):
        return None
    low_before, high_before, low_after, high_after = known
    return low_after <= high_before and low_before <= high_after


def comparison(share: float, baselines: Mapping[str, float]) -> str:
    """How the best baseline did, as the end of a sentence."""
    if not baselines:
        return "; no baseline was measured beside it"
    best = max(baselines, key=lambda key: baselines[key])
    name, value = in_sentence(best), baselines[best]
    if value > share + LEVEL:
        return f"; the {name} baseline did better and {closed(value)}"
    if value >= share - LEVEL:
        return f"; the {name} baseline came out level, at {percent(value)}"
    if share < -LEVEL:
        return f"; the best baseline, {name}, {closed(value)}"
    others = "any baseline (best: " if len(baselines) > 1 else "the baseline ("
    return f", more than {others}{name}, {percent(value)})"


def closed(share: float) -> str:
    """closed 45% / widened it by 3%."""
    return f"widened it by {percent(-share)}" if share < -LEVEL else f"closed {percent(share)}"


def figure_name(entry: Mapping[str, Any]) -> str:
    """A figure of metrics.json's `harness` in words: its metric, and how the answer was read off."""
    return entry["metric"] + ("" if entry["filter"] == "none" else f", {entry['filter']}")
