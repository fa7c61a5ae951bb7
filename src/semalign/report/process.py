"""Sections on how it came out: layers and pairs, alignment, CKA, training, cost, setup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from semalign.report import plots, stacks, words
from semalign.report.blocks import (
    Cell,
    Code,
    Facts,
    HeatLegend,
    Legend,
    Panel,
    Panels,
    Row,
    Section,
    Table,
)
from semalign.report.files import Json, RunFiles
from semalign.report.plots import Series
from semalign.report.stacks import HeatScale, Link
from semalign.report.words import finite, listing, number, percent, recipe_name

Matrix = Sequence[Sequence[float | None]]


def layers_section(files: RunFiles) -> Section:
    """Attribution, pairing and weight movement, on one horizontal layout."""
    title = "Layers and pairs"
    pairs = files.pairs
    if pairs is None:
        return Section(
            "layers", title, missing="pairs.json is not in this run folder; the pair step writes it."
        )
    links = _links(pairs)
    depths = (int(pairs["teacher_layers"]), int(pairs["student_layers"]))
    trained, critical = pairs.get("trained_layers") or [], pairs.get("critical_layers") or []
    panels, note = [], ""
    if (scores := _scores(files.scores)) is not None:
        paired = {layer for link in links for layer in link.blend}
        name = f"Attribution score per teacher layer; highest in layer {max(scores, key=lambda k: abs(scores[k]))}"
        panels.append(
            Panel(
                "Attribution score per teacher layer",
                Markup(stacks.attribution_bars(scores, paired, critical, name)),
            )
        )
    else:
        note = " scores.json is not in this run folder; the attribute step writes it."
    name = "Pairs: " + (listing([link.words for link in links]) or "none")
    drawing = stacks.pairing(depths, links, critical=critical, trained=trained, name=name)
    panels.append(Panel("Targets, from teacher to student", Markup(drawing)))
    if changes := _movement(files.metrics):
        drawing = stacks.movement_bars(changes, depths[1], "Relative weight change per student layer")
        panels.append(Panel("Relative weight change per student layer", Markup(drawing)))
    items = [
        ("c-teacher", "paired teacher layer"),
        ("outline", "critical teacher layer"),
        ("c-after", "trained student layer"),
    ]
    blocks = [Panels(panels, stacked=True), Legend(items if critical else [items[0], items[2]])]
    finding = f"Student layers {words.layers(trained)} of {depths[1]} are trained; " + _attribution_words(
        files.scores, critical
    )
    note = (
        f"Selection: {pairs.get('selection', 'unknown')}. Supervised activation: {pairs.get('interface', 'unknown')}. "
        "Depth runs from left to right." + note
    )
    return Section("layers", title, finding, note, [*blocks, _pair_table(pairs, files)])


def _links(pairs: Json | None) -> list[Link]:
    rows = (pairs or {}).get("pairs") or []
    return [Link(int(p["teacher"]), int(p["student"]), finite(p.get("fraction")) or 0.0) for p in rows]


def _attribution_words(file: Json | None, critical: Sequence[int]) -> str:
    scores = _scores(file)
    if critical:
        which = f"layer {critical[0]} was" if len(critical) == 1 else f"layers {words.layers(critical)} were"
        return f"teacher {which} found critical."
    if scores is None:
        return "the teacher's layers were not scored."
    return f"the teacher's layer {max(scores, key=lambda layer: abs(scores[layer]))} scores highest."


def _scores(file: Json | None) -> dict[int, float] | None:
    """Score by teacher layer; None when there are none."""
    rows = (file or {}).get("layers") or []
    scores = {int(row["layer"]): score for row in rows if (score := finite(row.get("score"))) is not None}
    return scores or None


def _movement(metrics: Json) -> dict[int, float]:
    rows = metrics.get("movement") or []
    return {int(r["layer"]): change for r in rows if (change := finite(r.get("relative_change"))) is not None}


def _pair_table(pairs: Json, files: RunFiles) -> Table:
    """Every pair with the map that made its target and how well the map fitted."""
    maps = {
        (row.get("teacher"), row.get("student")): row for row in (files.manifest or {}).get("alignment") or []
    }
    moved = _movement(files.metrics)
    rows = []
    for link in _links(pairs):
        fit: Json = maps.get((link.teacher, link.student), {})
        change = percent(moved.get(link.student), 2)
        texts = [str(fit.get("map") or words.DASH), number(finite(fit.get("cosine")), 2), change]
        rows.append(Row(link.words, [Cell(text) for text in texts]))
    columns = ["Pair", "Map", "Cosine when cached", "Weight change"]
    return Table("Pairs of teacher and student layers", columns, rows, summary="All numbers")


def alignment_section(files: RunFiles) -> Section:
    """Cosine between each trained layer and its target, before and after."""
    rows = files.metrics.get("alignment") or []
    title = "Alignment of the pairs"
    if not rows:
        return Section(
            "alignment",
            title,
            missing="metrics.json holds no alignment; the evaluate step measures it for paired layers.",
        )
    names = {(link.teacher, link.student): link.words for link in _links(files.pairs)}
    keys = [(int(row["teacher"]), int(row["student"])) for row in rows]
    labels = [names.get(key) or Link(*key).words for key in keys]
    found = [
        (label, finite(r.get("before")), finite(r.get("after")))
        for label, r in zip(labels, rows, strict=True)
    ]
    before, after = (_mean([row[index] for row in found]) for index in (1, 2))
    rose = "rose" if (after or 0) > (before or 0) else "did not rise: it went"
    finding = f"The mean cosine with the targets {rose} from {number(before, 2)} to {number(after, 2)}."
    interfaces = listing(sorted({str(row.get("interface")) for row in rows if row.get("interface")}))
    note = f"Cosine between the student's activation ({interfaces or 'unknown interface'}) and its target, on held-out rows."
    spoken = "Cosine before and after: " + "; ".join(
        f"{n} {number(b, 2)} to {number(a, 2)}" for n, b, a in found
    )
    blocks = [
        Panels([Panel("Cosine with the target", Markup(plots.dumbbells(found, spoken)))]),
        Legend([("c-before ring", "untouched student"), ("c-after", "trained student")]),
    ]
    return Section("alignment", title, finding, note, blocks)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def cka_section(files: RunFiles) -> Section:
    """CKA of all layer pairs, before and after, on one colour scale."""
    maps = {key: _matrix(value) for key, value in (files.metrics.get("cka") or {}).items()}
    title = "Similarity of all layers"
    before, after = maps.get("before"), maps.get("after")
    if before is None or after is None:
        return Section(
            "cka",
            title,
            missing="metrics.json holds no CKA; the evaluate step measures it when evaluation.cka_rows is above 0.",
        )
    known = [v for m in (before, after) for row in m for v in row if v is not None]
    scale = _heat_scale(known)
    pairs = {(layer, link.student) for link in _links(files.pairs) for layer in link.blend}
    first = stacks.heat_map(before, scale, pairs=pairs, name="CKA of teacher and untouched student")
    second = stacks.heat_map(
        after, scale, before_ts=before, pairs=pairs, name="CKA of teacher and trained student"
    )
    blocks = [
        Panels([Panel("Untouched student", Markup(first)), Panel("Trained student", Markup(second))]),
        HeatLegend(number(scale.low, 1), number(scale.high, 1)),
    ]
    means = [
        _mean([m[t - 1][s - 1] for t, s in pairs if t <= len(m) and s <= len(m[0])]) for m in (before, after)
    ]
    finding = "How alike each student layer is to each teacher layer."
    if means[0] is not None:
        finding = f"Mean CKA of the paired layers: {number(means[0], 2)} before, {number(means[1], 2)} after."
    note = "Linear CKA, 1 for the same geometry. Paired layers are framed; both maps share one colour scale."
    return Section("cka", title, finding, note, blocks)


def _matrix(value: Any) -> Matrix | None:
    """Rows of finite numbers or None; None for an empty or ragged matrix."""
    if not isinstance(value, Sequence) or not value or not value[0]:
        return None
    rows = [[finite(v) for v in row] for row in value]
    return rows if len({len(row) for row in rows}) == 1 else None


def _heat_scale(values: Sequence[float]) -> HeatScale:
    """From the tenth below the smallest value to the tenth above the largest."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    return HeatScale(
        int(low * 10 + 1e-9) / 10, max(-int(-high * 10 - 0.999999) / 10, int(low * 10 + 1e-9) / 10 + 0.1)
    )


def training_section(files: RunFiles) -> Section:
    """Loss curves of this run and of the baselines, each on its own scale."""
    recipe = recipe_name(str(files.metrics.get("recipe") or "this run"))
    logs: list[tuple[str, Sequence[Json]]] = [(f"{recipe} (ours)", files.train)]
    logs += [(recipe_name(name), rows) for name, rows in files.baseline_train.items()]
    drawn = [(name, rows, series) for name, rows in logs if (series := _series(rows))]
    title = "Training"
    if not files.train:
        return Section(
            "training", title, missing="train.jsonl is not in this run folder; the train step writes it."
        )
    panels = []
    for index, (name, rows, series) in enumerate(drawn):
        if index:
            series = [
                Series(s.label, s.steps, s.values, s.kind.replace("c-after", f"c-base{(index - 1) % 4 + 1}"))
                for s in series
            ]
        ends = [v for row in (rows[0], rows[-1]) if (v := finite(row.get("loss"))) is not None]
        aside = f"{number(ends[0])} → {number(ends[-1])}" if ends else ""
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
    ]
    return [Facts(items)]


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
    times = [
        (str(s.get("name")), finite(s.get("seconds")), finite(s.get("peak_rss_bytes")), "c-step")
        for s in steps
    ]
    baselines: Mapping[str, Json] = metrics.get("baselines") or {}
    for index, (name, values) in enumerate(baselines.items()):
        if (spent := finite(values.get("train_seconds"))) is not None:
            times.append((f"{recipe_name(name)} training", spent, None, f"c-base{index % 4 + 1}"))
    longest = max((t for _, t, _, _ in times if t is not None), default=0.0)
    largest = max((m for _, _, m, _ in times if m is not None), default=0.0)
    rows = []
    for name, spent, peak, kind in times:
        cells = [
            Cell(words.seconds(spent), Markup(plots.mini_bar(spent, longest, kind))),
            Cell(words.size(peak), Markup(plots.mini_bar(peak, largest, kind)) if peak is not None else None),
        ]
        rows.append(Row(name.capitalize(), cells, kind if kind != "c-step" else ""))
    most = max(times[: len(steps)], key=lambda item: item[1] or 0.0)
    finding = (
        f"The longest step is {most[0]}, at {words.seconds(most[1])}; memory peaks at {words.size(largest)}."
    )
    note = "Memory is the largest resident size of the process during a step; on a graphics card its memory is not included."
    return Section(
        "cost",
        title,
        finding,
        note,
        [Table("Time and memory per step", ["Step", "Time", "Peak memory"], rows)],
    )


_FACTS = (
    ("command", "Command"),
    ("started", "Started"),
    ("platform", "Platform"),
    ("cpu", "Processor"),
    ("cores", "Cores"),
)


def setup_section(files: RunFiles) -> Section:
    """Versions, machine and the resolved configuration."""
    environment, blocks = files.environment or {}, list[Any]()
    facts = [(label, str(environment[key])) for key, label in _FACTS if environment.get(key) is not None]
    if (memory := finite(environment.get("memory_bytes"))) is not None:
        facts.append(("Memory", words.size(memory)))
    versions = [
        f"{key} {environment[key]}"
        for key in ("semalign", "torch", "transformers", "python")
        if environment.get(key)
    ]
    facts += [("Versions", ", ".join(versions))] if versions else []
    blocks += (
        [Facts(facts)]
        if facts
        else [
            Facts(
                [("Environment", "environment.json is not in this run folder; a run writes it at its start")]
            )
        ]
    )
    blocks.append(
        Code("Configuration as the run resolved it (config.yaml)", files.config_text)
        if files.config_text is not None
        else Facts([("Configuration", "config.yaml is not in this run folder; a run writes it at its start")])
    )
    return Section("setup", "Setup", "What ran, and where.", "", blocks)
