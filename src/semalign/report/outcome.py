"""Sections on what came out: the top of the page, accuracy per task, closeness, sample answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from semalign.report import plots, words
from semalign.report.blocks import (
    Answer,
    Cell,
    Contender,
    Legend,
    Panel,
    Panels,
    Row,
    Sample,
    Samples,
    Section,
    Table,
    Tile,
    contenders,
)
from semalign.report.files import Json, RunFiles
from semalign.report.plots import Bar
from semalign.report.words import Headline, finite, listing, number, percent, recipe_name, share_closed

TEXT_LIMIT = 4000
"""Characters of a prompt or an answer that are shown."""
SAMPLE_LIMIT = 24
"""Samples that are shown."""

_MEASURES = (("accuracy_gap_closed", "accuracy gap"), ("kl_gap_closed", "KL gap"))


def top_line(metrics: Json) -> Headline:
    """The headline: about accuracy where that was measured, else about KL."""
    for key, measure in _MEASURES:
        if finite(metrics.get(key)) is not None:
            break
    return words.headline(
        str(metrics.get("recipe") or "this run"), measure, finite(metrics.get(key)), _shares(metrics, key)
    )


def _shares(metrics: Json, key: str) -> dict[str, float]:
    found = {name: finite(values.get(key)) for name, values in (metrics.get("baselines") or {}).items()}
    return {name: share for name, share in found.items() if share is not None}


def notes(metrics: Json) -> list[str]:
    """What a careful reader asks next: the other measure, lost tasks, overlapping intervals."""
    lines = []
    share = finite(metrics.get("kl_gap_closed"))
    if share is not None and finite(metrics.get("accuracy_gap_closed")) is not None:
        best = max(_shares(metrics, "kl_gap_closed").items(), key=lambda item: item[1], default=None)
        tail = (
            f"; the best baseline, {recipe_name(best[0]).lower().replace('kl', 'KL')}, {words.closed(best[1])}"
            if best
            else ""
        )
        verb = (
            f"widened the gap by {percent(-share)}"
            if share < -words.LEVEL
            else f"closed {percent(share)} of the gap"
        )
        lines.append(f"By KL divergence to the teacher's predictions, training {verb}{tail}.")
    tasks: Mapping[str, Json] = metrics.get("tasks") or {}
    lost = {
        name: change for name, task in tasks.items() if (change := _change(task)) is not None and change < 0
    }
    if lost:
        named = [f"{_task_name(name)} ({number(100 * change, 1)} points)" for name, change in lost.items()]
        lines.append(f"Below the untouched student on {listing(named)}.")
    unsure = [_task_name(name) for name, task in tasks.items() if _overlap(task)]
    if unsure:
        lines.append(
            f"Before and after have overlapping 95% intervals on {listing(unsure)}: there it may be chance."
        )
    lines.append("One run with one seed: repeat it with other seeds before relying on small differences.")
    return lines


def _task_name(name: str) -> str:
    return name.replace("_", " ")


def _change(task: Json) -> float | None:
    before, after = _accuracy(task, "before"), _accuracy(task, "after")
    return None if before is None or after is None else after - before


def _accuracy(task: Json, key: str) -> float | None:
    return finite((task.get(key) or {}).get("accuracy"))


def _overlap(task: Json) -> bool:
    """Whether the intervals of before and after meet."""
    ends = [finite((task.get(key) or {}).get(end)) for key in ("before", "after") for end in ("low", "high")]
    if any(end is None for end in ends):
        return False
    low_b, high_b, low_a, high_a = (end or 0.0 for end in ends)
    return low_a <= high_b and low_b <= high_a


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
    means = {key: _mean([_accuracy(task, key) for task in tasks]) for key in ("before", "after", "teacher")}
    if means["after"] is not None:
        note = f"untouched {percent(means['before'])}, teacher {percent(means['teacher'])}"
        found.append(
            Tile(f"Mean accuracy, {len(tasks)} task{'s' * (len(tasks) != 1)}", percent(means["after"]), note)
        )
    closeness = metrics.get("closeness") or {}
    before, after = closeness.get("before") or {}, closeness.get("after") or {}
    if finite(after.get("kl")) is not None:
        note = f"untouched {number(finite(before.get('kl')))}"
        found.append(Tile("KL to the teacher", number(finite(after.get("kl"))), note))
    if finite(after.get("top1_agreement")) is not None:
        note = f"untouched {percent(finite(before.get('top1_agreement')), 1)}"
        found.append(Tile("Same next token", percent(finite(after.get("top1_agreement")), 1), note))
    pairs = files.pairs or {}
    if pairs.get("trained_layers"):
        note = f"of {pairs.get('student_layers')}: {words.layers(pairs['trained_layers'])}"
        found.append(Tile("Student layers trained", str(len(pairs["trained_layers"])), note))
    if (wall := finite(metrics.get("wall_seconds"))) is not None:
        found.append(Tile("Wall time", words.seconds(wall), "all steps"))
    if (peak := finite(metrics.get("peak_rss_bytes"))) is not None:
        found.append(Tile("Peak memory", words.size(peak), "resident, highest step"))
    return found


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def tasks_section(metrics: Json) -> Section:
    """Accuracy per task, with intervals, for every contender."""
    tasks: Mapping[str, Json] = metrics.get("tasks") or {}
    title = "Accuracy per task"
    if not tasks:
        return Section(
            "tasks",
            title,
            missing="This run measured closeness only. Set evaluation.tasks and run the evaluate step to compare answers.",
        )
    runs = contenders(metrics)
    changes = [change for task in tasks.values() if (change := _change(task)) is not None]
    better = sum(change > 0 for change in changes)
    clear = sum((_change(task) or 0) > 0 and not _overlap(task) for task in tasks.values())
    finding = f"Better than before on {better} of {len(tasks)} tasks"
    which = "all" if clear == better else str(clear)
    finding += f", on {which} of them with intervals that do not overlap." if better > 1 else "."
    note = "Share of items answered correctly, with its 95% interval. The band is the gap between untouched student and teacher."
    panels = [_task_panel(name, task, runs) for name, task in tasks.items()]
    return Section("tasks", title, finding, note, [Panels(panels), _task_table(tasks, runs)])


def _task_panel(name: str, task: Json, runs: list[Contender]) -> Panel:
    bars = []
    for run in runs:
        result = task.get(run.key) or {}
        value = finite(result.get("accuracy"))
        bars.append(
            Bar(
                run.label,
                value,
                percent(value),
                run.kind,
                finite(result.get("low")),
                finite(result.get("high")),
            )
        )
    before, teacher = _accuracy(task, "before"), _accuracy(task, "teacher")
    share = share_closed(before, _accuracy(task, "after"), teacher)
    band = (before, teacher) if before is not None and teacher is not None and teacher > before else None
    aside = "no gap: the teacher is not ahead"
    if share is not None:
        aside = (
            f"gap wider by {percent(-share)}"
            if share < -words.LEVEL
            else f"{percent(share)} of the gap closed"
        )
    spoken = f"{_task_name(name)}: " + ", ".join(f"{bar.label} {bar.shown}" for bar in bars)
    kept = [bar for bar in bars if bar.value is not None]
    items = f" · {words.count(finite(task.get('n')))} items" if task.get("n") else ""
    return Panel(
        f"{_task_name(name).capitalize()}{items}", Markup(plots.interval_rows(kept, band, spoken)), aside
    )


def _task_table(tasks: Mapping[str, Json], runs: list[Contender]) -> Table:
    rows = []
    for name, task in tasks.items():
        before, teacher = _accuracy(task, "before"), _accuracy(task, "teacher")
        for run in runs:
            result: Json = task.get(run.key) or {}
            value = finite(result.get("accuracy"))
            if value is None:
                continue
            low, high = finite(result.get("low")), finite(result.get("high"))
            share = share_closed(before, value, teacher) if run.key not in ("before", "teacher") else None
            interval = (
                f"{percent(low, 1)} to {percent(high, 1)}"
                if low is not None and high is not None
                else words.DASH
            )
            failures = percent(finite(result.get("extraction_failures")), 1)
            cells = [run.label, percent(value, 1), interval, percent(share), failures]
            rows.append(Row(_task_name(name).capitalize(), [Cell(text) for text in cells], run.kind))
    columns = ["Task", "Model", "Accuracy", "95% interval", "Gap closed", "No answer found"]
    return Table("Accuracy of every model on every task", columns, rows, summary="All numbers")


_CLOSENESS = (
    ("kl", "KL to the teacher", False),
    ("top1_agreement", "Same next token", True),
    ("nll", "NLL of the answers", False),
)


def closeness_section(metrics: Json) -> Section:
    """KL, agreement and NLL on held-out rows, for every contender."""
    closeness: Mapping[str, Any] = metrics.get("closeness") or {}
    title = "Closeness to the teacher"
    if not closeness:
        return Section(
            "closeness",
            title,
            missing="metrics.json holds no closeness; the evaluate step measures it on held-out rows.",
        )
    runs = [run for run in contenders(metrics) if closeness.get(run.key)]
    before, after = closeness.get("before") or {}, closeness.get("after") or {}
    kls, tops = (
        [finite(m.get("kl")) for m in (before, after)],
        [finite(m.get("top1_agreement")) for m in (before, after)],
    )
    verb = "fell" if (kls[1] or 0) < (kls[0] or 0) else "did not fall: it went"
    finding = f"KL {verb} from {number(kls[0])} to {number(kls[1])}; the next token is the teacher's in "
    finding += f"{percent(tops[1], 1)} of positions, before {percent(tops[0], 1)}."
    note = (
        f"Measured on {words.count(finite(closeness.get('rows')))} held-out rows, "
        f"{words.count(finite(closeness.get('tokens')))} tokens. KL and NLL in nats a token: lower is better. "
        "The best student in each column is set in bold."
    )
    columns = ["Model", *(name for _, name, _ in _CLOSENESS)]
    return Section(
        "closeness",
        title,
        finding,
        note,
        [Table("Closeness on held-out rows", columns, _closeness_rows(closeness, runs))],
    )


def _closeness_rows(closeness: Mapping[str, Any], runs: list[Contender]) -> list[Row]:
    table = {run.key: {key: finite(closeness[run.key].get(key)) for key, _, _ in _CLOSENESS} for run in runs}
    rows = []
    for run in runs:
        cells = []
        for key, _, high_is_good in _CLOSENESS:
            value = table[run.key][key]
            students = [values[key] for name, values in table.items() if name != "teacher"]
            known = [v for v in students if v is not None]
            best = (
                run.key != "teacher" and value is not None and value == (max if high_is_good else min)(known)
            )
            longest = 1.0 if key == "top1_agreement" else max([*known, value or 0.0], default=1.0)
            shown = percent(value, 1) if key == "top1_agreement" else number(value)
            bar = Markup(plots.mini_bar(value, longest, run.kind)) if value is not None else None
            cells.append(Cell(shown, bar, best))
        rows.append(Row(run.label, cells, run.kind))
    return rows


def samples_section(metrics: Json) -> Section:
    """A few prompts with what teacher, untouched and trained student answered."""
    samples = metrics.get("samples") or []
    title = "Sample answers"
    if not samples:
        return Section(
            "samples",
            title,
            missing="metrics.json holds no samples; the evaluate step keeps some when evaluation.tasks is set.",
        )
    labels = {run.key: run for run in contenders(metrics)}
    shown = [_sample(sample, labels) for sample in samples[:SAMPLE_LIMIT]]
    judged = [sample.get("correct") or {} for sample in samples]
    gained = sum(j.get("after") is True and j.get("before") is False for j in judged)
    lost = sum(j.get("after") is False and j.get("before") is True for j in judged)
    finding = (
        f"Of the {len(samples)} shown, {gained} turned from wrong to right and {lost} from right to wrong."
    )
    note = "Picked by the evaluate step, not by hand; too few to prove anything."
    return Section("samples", title, finding, note, [Samples(shown)])


def _sample(sample: Json, labels: Mapping[str, Contender]) -> Sample:
    judged: Json = sample.get("correct") or {}
    answers = [
        Answer(labels[key].label, labels[key].kind, words.clip(str(sample[key]), TEXT_LIMIT), judged.get(key))
        for key in ("before", "after", "teacher")
        if sample.get(key) is not None
    ]
    prompt = words.clip(str(sample.get("prompt", "")), TEXT_LIMIT)
    return Sample(
        _task_name(str(sample.get("task", ""))).capitalize(),
        prompt,
        words.clip(str(sample.get("gold", "")), TEXT_LIMIT),
        answers,
    )


def legend() -> Legend:
    """The three roles that keep their colour on the whole page."""
    return Legend(
        [("c-before ring", "untouched student"), ("c-after", "trained student"), ("c-teacher", "teacher")]
    )
