"""Sections on the run itself: training, time and memory, setup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from semalign.data.samples import lines_of
from semalign.report import plots, words
from semalign.report.blocks import Cell, Code, Facts, Legend, Panel, Panels, Row, Section, Table
from semalign.report.files import Json, RunFiles
from semalign.report.plots import Series
from semalign.report.words import finite, number, recipe_name


def training_section(files: RunFiles) -> Section:
    """Loss curves of this run and of the baselines, each on its own scale."""
    recipe = recipe_name(str(files.metrics.get("recipe") or "this run"))
    logs: list[tuple[str, Sequence[Json]]] = [(f"{recipe} (ours)", files.train)]
    logs += [(recipe_name(name), rows) for name, rows in files.baseline_train.items()]
    drawn = [(name, rows, series) for name, rows in logs if (series := _series(rows))]
    title = "Training"
    if not files.train:
        missing = "train.jsonl is not in this run folder, or empty; the train step writes it, a line every train.logging_steps steps."
        return Section("training", title, missing=missing)
    panels = []
    for index, (name, rows, series) in enumerate(drawn):
        if index:
            series = [
                Series(s.label, s.steps, s.values, s.kind.replace("c-after", f"c-base{(index - 1) % 4 + 1}"))
                for s in series
            ]
        ends = [finite(row.get("loss")) for row in (rows[0], rows[-1])]
        aside = " → ".join(map(number, ends)) if any(end is not None for end in ends) else ""
        panels.append(Panel(name, Markup(plots.curves(series, f"Loss of {name} over the steps")), aside))
    last = files.train[-1]
    finding = f"{words.count(finite(last.get('step')))} steps, {number(finite(last.get('epoch')), 1)} epochs."
    note = "Every recipe has its own loss, so compare the shapes of the curves and not their heights. "
    note += "A scale is logarithmic when the values span a factor of 20."
    kinds = {s.kind for _, _, series in drawn for s in series}
    styles = [("line", "loss"), ("line dash", "output part"), ("line dots", "layer part")]
    shown = [
        item for item in styles if item[0] == "line" or any(item[0].split()[-1] in kind for kind in kinds)
    ]
    blocks: list[Any] = [Panels(panels)]
    blocks += [Legend(shown)] if len(shown) > 1 else []
    return Section("training", title, finding, note, [*blocks, *_target_facts(files)])


def _series(rows: Sequence[Json]) -> list[Series]:
    """The loss and, where they say more than it, its parts."""
    found: list[Series] = []
    styles = (
        ("loss", "loss", "c-after"),
        ("loss_output", "output part", "c-after dash"),
        ("loss_layer", "layer part", "c-after dots"),
    )
    for key, label, kind in styles:
        points = [
            (s, v)
            for r in rows
            if (s := finite(r.get("step"))) is not None and (v := finite(r.get(key))) is not None
        ]
        values = [v for _, v in points]
        same = any(values == list(series.values) for series in found)
        if points and any(values) and not same:
            found.append(Series(label, [s for s, _ in points], values, kind))
    return found if found and found[0].label == "loss" else []


def _target_facts(files: RunFiles) -> list[Facts]:
    manifest = files.manifest
    if manifest is None:
        return [
            Facts(
                [
                    (
                        "Cached targets",
                        "targets/manifest.json is not in this run folder; the cache step writes it",
                    )
                ]
            )
        ]
    items = [
        ("Rows in the cache", words.count(finite(manifest.get("samples")))),
        ("Supervised tokens", words.count(finite(manifest.get("supervised_tokens")))),
        ("Tokens kept a position", f"top {words.count(finite(manifest.get('top_k')))}"),
        ("Size on disk", words.size(finite(manifest.get("bytes")))),
        *[("Not in the rows' tokens", line) for line in lines_of(files.data)],
        *_prefix_facts(manifest),
    ]
    return [Facts(items)]


def _prefix_facts(manifest: Json) -> list[tuple[str, str]]:
    error = manifest.get("prefix_error")
    if not isinstance(error, Mapping):
        return []
    mean, worst = (words.percent(finite(error.get(key)), 2) for key in ("mean", "worst"))
    return [("Error of eight-bit streams a token", f"{mean} on average, {worst} at worst")]


def cost_section(metrics: Json) -> Section:
    """Time and peak memory of every step, and training time of the baselines."""
    steps = metrics.get("steps") or []
    title = "Time and memory"
    if not steps:
        return Section(
            "cost",
            title,
            missing="metrics.json holds no steps; a complete run records time and memory of each.",
        )
    times = _times(metrics, steps)
    longest = max((c.seconds for c in times if c.seconds is not None), default=0.0)
    largest = max((c.peak for c in times if c.peak is not None), default=0.0)
    on_gpu = max((c.gpu for c in times if c.gpu is not None), default=None)
    rows = []
    for cost in times:
        cells = [
            Cell(words.seconds(cost.seconds), Markup(plots.mini_bar(cost.seconds, longest, cost.kind))),
            _memory(cost.peak, largest, cost.kind),
        ]
        if on_gpu is not None:
            cells.append(_memory(cost.gpu, on_gpu, cost.kind))
        rows.append(Row(words.capital(cost.name), cells, cost.kind if cost.kind != "c-step" else ""))
    most = max(times, key=lambda cost: cost.seconds or 0.0)
    finding = (
        f"The longest step is {most.name}, at {words.seconds(most.seconds)}; memory peaks at {words.size(largest)}"
        + (f", and at {words.size(on_gpu)} on the GPU." if on_gpu is not None else ".")
    )
    note = "Memory is the largest resident size of the process during a step."
    columns = ["Step", "Time", "Peak memory"]
    if on_gpu is not None:
        note += " That of the GPU is what tensors took on it."
        columns.append("On the GPU")
    return Section("cost", title, finding, note, [Table("Time and memory per step", columns, rows)])


def _memory(peak: float | None, largest: float, kind: str) -> Cell:
    return Cell(words.size(peak), Markup(plots.mini_bar(peak, largest, kind)) if peak is not None else None)


class _Cost(NamedTuple):
    """Of a step: seconds, peak bytes, those on the GPU, and its colour."""

    name: str
    seconds: float | None
    peak: float | None
    gpu: float | None
    kind: str


def _times(metrics: Json, steps: Sequence[Json]) -> list[_Cost]:
    """Costs of the steps; a baseline that is no step of its own follows after them."""
    baselines: Mapping[str, Json] = metrics.get("baselines") or {}
    kinds = {name: f"c-base{index % 4 + 1}" for index, name in enumerate(baselines)}
    times, seen = [], set()
    for step in steps:
        name = str(step.get("name"))
        baseline = name.removeprefix("train ")
        seen.add(baseline)
        shown = f"{recipe_name(baseline)} training" if baseline in kinds else name
        spent, peak, gpu = (finite(step.get(key)) for key in ("seconds", "peak_rss_bytes", "peak_gpu_bytes"))
        times.append(_Cost(shown, spent, peak, gpu, kinds.get(baseline, "c-step")))
    for name, values in baselines.items():
        if name not in seen and (spent := finite(values.get("train_seconds"))) is not None:
            times.append(_Cost(f"{recipe_name(name)} training", spent, None, None, kinds[name]))
    return times


_FACTS = (
    ("platform", "Platform"),
    ("cpu", "Processor"),
    ("cores", "Cores"),
    ("semalign", "SemAlign"),
    ("torch", "PyTorch"),
    ("transformers", "Transformers"),
    ("python", "Python"),
)


def setup_section(files: RunFiles) -> Section:
    """Command, versions, machine and the resolved configuration."""
    environment, blocks = files.environment or {}, list[Facts | Code]()
    facts = [(label, str(environment[key])) for key, label in _FACTS if environment.get(key) is not None]
    if (memory := finite(environment.get("memory_bytes"))) is not None:
        facts.append(("Memory", words.size(memory)))
    if environment.get("command"):
        blocks.append(Facts([("Command", str(environment["command"]))]))
    unknown = [("Environment", "environment.json is not in this run folder; a run writes it at its start")]
    blocks.append(Facts(facts or unknown))
    if files.config_text is None:
        blocks.append(
            Facts([("Configuration", "config.yaml is not in this run folder; a run writes it at its start")])
        )
    else:
        blocks.append(Code("Configuration as the run resolved it (config.yaml)", files.config_text))
    return Section("setup", "Setup", "What ran, and where.", "", blocks)
