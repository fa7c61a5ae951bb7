"""Sections on what came out: accuracy per task, closeness, sample answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from semalign.report import plots, words
from semalign.report.blocks import (
    Answer,
    Cell,
    Contender,
    Panel,
    Panels,
    Row,
    Sample,
    Samples,
    Section,
    Table,
    contenders,
)
from semalign.report.files import Json
from semalign.report.plots import Bar
from semalign.report.words import (
    CLOSENESS,
    accuracy,
    change,
    figure_name,
    finite,
    number,
    overlap,
    percent,
    share_closed,
)

TEXT_LIMIT = 4000
"""Characters of a prompt or an answer that are shown."""
SAMPLE_LIMIT = 24
"""Samples that are shown."""


def task_name(name: str) -> str:
    """A task's key as people read it."""
    return name.replace("_", " ")


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
    finding = _tasks_finding(tasks)
    note = "Share of items answered correctly, with its 95% interval. The band is the gap between untouched student and teacher."
    panels = [_task_panel(name, task, runs) for name, task in tasks.items()]
    return Section("tasks", title, finding, note, [Panels(panels), _task_table(tasks, runs)])


def _tasks_finding(tasks: Mapping[str, Json]) -> str:
    """On how many tasks the trained student is better, and where the intervals leave no doubt."""
    better = [task for task in tasks.values() if (change(task) or 0) > 0]
    clear = sum(overlap(task) is False for task in better)
    where = f" on {len(better)} of {len(tasks)} tasks" if len(tasks) > 1 else ""
    if not better:
        return f"Not better than before on any of {len(tasks)} tasks." if where else "Not better than before."
    if not clear:
        return f"Better than before{where}, with intervals that overlap or are unknown."
    which = "all" if clear == len(better) else str(clear)
    return (
        f"Better than before{where}, "
        + (f"on {which} of them " if len(better) > 1 else "")
        + "with intervals apart."
    )


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
    before, teacher = accuracy(task, "before"), accuracy(task, "teacher")
    share = share_closed(before, accuracy(task, "after"), teacher)
    band = (before, teacher) if before is not None and teacher is not None and teacher > before else None
    aside = "no gap: the teacher is not ahead"
    if share is not None:
        aside = (
            f"gap wider by {percent(-share)}"
            if share < -words.LEVEL
            else f"{percent(share)} of the gap closed"
        )
    spoken = f"{task_name(name)}: " + ", ".join(f"{bar.label} {bar.shown}" for bar in bars)
    kept = [bar for bar in bars if bar.value is not None]
    items = f" · {words.count(finite(task.get('n')))} items" if task.get("n") else ""
    if task.get("samples"):
        items += f", {task['samples']} answers each"
    return Panel(
        f"{words.capital(task_name(name))}{items}", Markup(plots.interval_rows(kept, band, spoken)), aside
    )


def _task_table(tasks: Mapping[str, Json], runs: list[Contender]) -> Table:
    rows = []
    for name, task in tasks.items():
        before, teacher = accuracy(task, "before"), accuracy(task, "teacher")
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
            ended = finite(result.get("ended"))
            cut = percent(None if ended is None else 1 - ended, 1)
            cells = [
                words.capital(task_name(name)),
                percent(value, 1),
                interval,
                percent(share),
                failures,
                cut,
            ]
            rows.append(Row(run.label, [Cell(text) for text in cells], run.kind))
    columns = ["Model", "Task", "Accuracy", "95% interval", "Gap closed", "No answer found", "Cut off"]
    return Table("Accuracy of every model on every task", columns, rows, summary="All numbers")


def harness_section(metrics: Json) -> Section | None:
    """Figures of lm-evaluation-harness for every contender; None where it was not asked for."""
    entries = metrics.get("harness") or []
    if not entries:
        return None
    rows = []
    for entry in entries:
        for run in contenders(metrics):
            result: Json = entry.get(run.key) or {}
            value, low, high = (finite(result.get(key)) for key in ("value", "low", "high"))
            if value is None:
                continue
            interval = words.DASH if low is None or high is None else f"{number(low, 3)} to {number(high, 3)}"
            cells = [entry["task"], figure_name(entry), number(value, 3), interval, str(entry["n"])]
            rows.append(Row(run.label, [Cell(text) for text in cells], run.kind))
    gained = [e for e in entries if _value(e, "after") > _value(e, "before")]
    finding = f"Higher than before in {len(gained)} of {len(entries)} figure{'s' * (len(entries) > 1)}."
    note = "Zero-shot, with the chat template where the model has one; intervals are 1.96 standard errors either way."
    columns = ["Model", "Task", "Metric", "Value", "95% interval", "Items"]
    table = Table("Figures of lm-evaluation-harness", columns, rows)
    return Section("harness", "lm-evaluation-harness", finding, note, [table])


def _value(entry: Json, key: str) -> float:
    return finite((entry.get(key) or {}).get("value")) or 0.0


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
    kl, top = ([finite(values.get(key)) for values in (before, after)] for key in ("kl", "top1_agreement"))
    finding = f"KL to the teacher {words.moved(kl[0], kl[1])}; the share of positions with the teacher's next token "
    finding += f"{words.moved(top[0], top[1], shown=words.percent_1)}."
    note = (
        f"Measured on {words.count(finite(closeness.get('rows')))} held-out rows, "
        f"{words.count(finite(closeness.get('tokens')))} tokens. KL and NLL in nats a token: lower is better. "
        "The best student in each column is set in bold."
    )
    if metrics.get("kl_over") == "told_tokens":
        note += " The teacher's server tells its likeliest tokens alone; KL takes all others as one, and is at most the whole one."
    columns = ["Model", *(m.title for m in CLOSENESS)]
    return Section(
        "closeness",
        title,
        finding,
        note,
        [Table("Closeness on held-out rows", columns, _closeness_rows(closeness, runs))],
    )


def _closeness_rows(closeness: Mapping[str, Any], runs: list[Contender]) -> list[Row]:
    table = {run.key: {m.key: finite(closeness[run.key].get(m.key)) for m in CLOSENESS} for run in runs}
    rows = []
    for run in runs:
        cells = []
        for m in CLOSENESS:
            value = table[run.key][m.key]
            students = [values[m.key] for name, values in table.items() if name != "teacher"]
            known = [v for v in students if v is not None]
            # Where all are level there is no best.
            ranked = len(set(known)) > 1 and run.key != "teacher" and value is not None
            best = ranked and value == (max if m.is_high_good else min)(known)
            # An agreement has an end, 1; the others are drawn against the largest.
            longest = 1.0 if m.is_high_good else max([*known, value or 0.0], default=1.0)
            bar = Markup(plots.mini_bar(value, longest, run.kind)) if value is not None else None
            cells.append(Cell(m.shown(value), bar, best))
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
    plural = "s" if len(samples) > 1 else ""
    finding = (
        f"{len(samples)} sample{plural}: {gained} turned from wrong to right, {lost} from right to wrong."
    )
    note = "A few items as the evaluate step kept them; too few to prove anything."
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
        words.capital(task_name(str(sample.get("task", "")))),
        prompt,
        words.clip(str(sample.get("gold", "")), TEXT_LIMIT),
        answers,
    )
