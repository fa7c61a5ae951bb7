"""The top of the page: headline, caveats, gaps closed, numbers to remember."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from markupsafe import Markup

from semalign.report import outcome, plots, words
from semalign.report.blocks import Panel, Panels, Tile, contenders
from semalign.report.files import Json, RunFiles
from semalign.report.plots import Bar
from semalign.report.words import CLOSENESS, Headline, finite, listing, number, percent

_MEASURES = (("accuracy_gap_closed", "accuracy gap"), ("kl_gap_closed", "KL gap"))


def top_line(metrics: Json) -> Headline:
    """The headline: what got worse, if anything did; else about accuracy where that was measured, else about KL."""
    if (worse := words.setback(metrics)) is not None:
        return worse
    key, measure = next((m for m in _MEASURES if finite(metrics.get(m[0])) is not None), _MEASURES[0])
    recipe = str(metrics.get("recipe") or "this run")
    found = words.headline(recipe, measure, finite(metrics.get(key)), _shares(metrics, key))
    if finite(metrics.get(key)) is None and (reason := metrics.get("no_gap")):
        return replace(found, rest=f": {reason}.")
    return found


def _shares(metrics: Json, key: str) -> dict[str, float]:
    found = {name: finite(values.get(key)) for name, values in (metrics.get("baselines") or {}).items()}
    return {name: share for name, share in found.items() if share is not None}


def notes(metrics: Json) -> list[str]:
    """What a careful reader asks next: the other measure, lost tasks, overlapping intervals."""
    lines = [words.MEND] if words.setback(metrics) else []
    share = finite(metrics.get("kl_gap_closed"))
    if share is not None and finite(metrics.get("accuracy_gap_closed")) is not None:
        baselines = _shares(metrics, "kl_gap_closed")
        tail = words.comparison(share, baselines) if baselines else ""
        verb = (
            f"widened the gap by {percent(-share)}"
            if share < -words.LEVEL
            else f"closed {percent(share)} of the gap"
        )
        lines.append(f"By KL divergence to the teacher's predictions, training {verb}{tail}.")
    tasks: Mapping[str, Json] = metrics.get("tasks") or {}
    lost = {
        name: change
        for name, task in tasks.items()
        if (change := words.change(task)) is not None and change < 0
    }
    if lost:
        named = [
            f"{outcome.task_name(name)} ({number(100 * change, 1)} points)" for name, change in lost.items()
        ]
        lines.append(f"Below the untouched student on {listing(named)}.")
    unsure = [outcome.task_name(name) for name, task in tasks.items() if words.overlap(task)]
    if unsure:
        lines.append(
            f"Before and after have overlapping 95% intervals on {listing(unsure)}: there it may be chance."
        )
    lines.append("One run with one seed: repeat it with other seeds before relying on small differences.")
    return lines


def gap_panels(metrics: Json) -> Panels | None:
    """Share of the gap closed by this run and by each baseline, for both measures; None when neither was measured."""
    titles = ("Accuracy gap closed", "KL gap closed")
    panels = []
    for (key, _), title in zip(_MEASURES, titles, strict=True):
        mine = finite(metrics.get(key))
        if mine is None:
            continue
        shares = _shares(metrics, key) | {"after": mine}
        bars = [
            Bar(one.label, shares[one.key], percent(shares[one.key]), one.kind)
            for one in sorted(contenders(metrics), key=lambda one: one.key != "after")
            if one.key in shares
        ]
        name = f"{title}: " + ", ".join(f"{bar.label} {bar.shown}" for bar in bars)
        panels.append(Panel(title, Markup(plots.gap_bars(bars, name))))
    return Panels(panels) if panels else None


def tiles(files: RunFiles) -> list[Tile]:
    """The numbers to remember."""
    metrics, found = files.metrics, []
    tasks = list((metrics.get("tasks") or {}).values())
    means = {
        key: words.mean([words.accuracy(task, key) for task in tasks])
        for key in ("before", "after", "teacher")
    }
    if means["after"] is not None:
        note = f"untouched {percent(means['before'])}, teacher {percent(means['teacher'])}"
        found.append(
            Tile(f"Mean accuracy, {len(tasks)} task{'s' * (len(tasks) != 1)}", percent(means["after"]), note)
        )
    closeness = metrics.get("closeness") or {}
    before, after = closeness.get("before") or {}, closeness.get("after") or {}
    for m in CLOSENESS[:2]:
        if (value := finite(after.get(m.key))) is not None:
            found.append(Tile(m.title, m.shown(value), f"untouched {m.shown(finite(before.get(m.key)))}"))
    pairs = files.pairs or {}
    if pairs.get("trained_layers"):
        note = f"of {pairs.get('student_layers')}: {words.layers(pairs['trained_layers'])}"
        found.append(Tile("Student layers trained", str(len(pairs["trained_layers"])), note))
    if (wall := finite(metrics.get("wall_seconds"))) is not None:
        found.append(Tile("Wall time", words.seconds(wall), "all steps"))
    if (peak := finite(metrics.get("peak_rss_bytes"))) is not None:
        gpu = finite(metrics.get("peak_gpu_bytes"))
        note = "resident, highest step" + ("" if gpu is None else f"; {words.size(gpu)} on the GPU")
        found.append(Tile("Peak memory", words.size(peak), note))
    return found
