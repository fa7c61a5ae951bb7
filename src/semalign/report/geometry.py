"""Sections on the layers: attribution and pairs, alignment, CKA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from semalign.maths.pairing import LayerPair
from semalign.report import plots, stacks, words
from semalign.report.blocks import Cell, HeatLegend, Legend, Panel, Panels, Row, Section, Table
from semalign.report.files import Json, RunFiles
from semalign.report.stacks import HeatScale
from semalign.report.words import finite, listing, number, percent

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
    trained, critical = pairs.get("trained_layers") or [], pairs.get("critical_layers") or []
    items = [("c-teacher", "paired teacher layer"), ("c-after", "trained student layer")]
    if critical:
        items.insert(1, ("outline", "critical teacher layer (highest scores)"))
    blocks = [
        Panels(_layer_panels(files, pairs, links), stacked=True),
        Legend(items),
        _pair_table(pairs, files),
    ]
    finding = f"Student layers {words.layers(trained)} of {pairs['student_layers']} are trained; "
    finding += _attribution_words(files.scores, critical)
    rows = files.metrics.get("alignment") or []
    interface = pairs.get("interface") or next((row.get("interface") for row in rows), None)
    note = f"Selection: {pairs.get('selection', 'unknown')}. "
    note += f"Supervised activation: {interface}. " if interface else ""
    note += (
        "No layer has a target, since the recipe's loss is at the output alone. "
        if _is_output_only(files)
        else ""
    )
    note += "Depth runs from left to right."
    if files.scores is None:
        note += " scores.json is not in this run folder; the attribute step writes it."
    elif _scores(files.scores) is None:
        note += " No layer has a score, since the plan does not depend on scores; semalign attribute computes them."
    return Section("layers", title, finding, note, blocks)


def _layer_panels(files: RunFiles, pairs: Json, links: Sequence[LayerPair]) -> list[Panel]:
    """Scores, pairs and weight changes, where there are any."""
    depths = (int(pairs["teacher_layers"]), int(pairs["student_layers"]))
    trained, critical = pairs.get("trained_layers") or [], pairs.get("critical_layers") or []
    panels = []
    if (scores := _scores(files.scores)) is not None:
        paired = {layer for link in links for layer in link.blend}
        title = "Attribution score per teacher layer"
        name = f"{title}; highest in layer {_highest(scores)}"
        panels.append(Panel(title, Markup(stacks.attribution_bars(scores, paired, critical, name))))
    name = "Pairs: " + (listing([link.label for link in links]) or "none")
    drawing = stacks.pairing(depths, links, critical=critical, trained=trained, name=name)
    title = "Layers at equal depth" if _is_output_only(files) else "Targets, from teacher to student"
    panels.append(Panel(title, Markup(drawing)))
    if changes := _movement(files.metrics):
        title = "Relative weight change per student layer"
        panels.append(Panel(title, Markup(stacks.movement_bars(changes, depths[1], title))))
    return panels


def _is_output_only(files: RunFiles) -> bool:
    """Whether the plan says that no activation is supervised; plans of earlier versions do not."""
    return files.pairs is not None and files.pairs.get("interface", "unknown") is None


def _highest(scores: Mapping[int, float]) -> int:
    return max(scores, key=lambda layer: abs(scores[layer]))


def _links(pairs: Json | None, key: str = "pairs") -> list[LayerPair]:
    """What is paired: layers, or (key heads) heads."""
    return [LayerPair.from_json(row) for row in (pairs or {}).get(key) or []]


def _attribution_words(file: Json | None, critical: Sequence[int]) -> str:
    scores = _scores(file)
    if scores is None:
        return "the teacher's layers were not scored."
    top = critical or [_highest(scores)]
    return (
        f"teacher layer {top[0]} scores highest."
        if len(top) == 1
        else f"teacher layers {words.layers(top)} score highest."
    )


def _scores(file: Json | None) -> dict[int, float] | None:
    """Score by teacher layer; None when there are none."""
    rows = (file or {}).get("layers") or []
    scores = {int(row["layer"]): score for row in rows if (score := finite(row.get("score"))) is not None}
    return scores or None


def _movement(metrics: Json) -> dict[int, float]:
    rows = metrics.get("movement") or []
    return {int(r["layer"]): change for r in rows if (change := finite(r.get("relative_change"))) is not None}


def _pair_table(pairs: Json, files: RunFiles) -> Table:
    """Every pair, with each map that was fitted for it, how well it fitted, and how far the student layer moved."""
    moved = _movement(files.metrics)
    rows = []
    # A student layer or head has one pair, so its place finds it.
    aligned = [(LayerPair.from_json(fit).place, fit) for fit in (files.manifest or {}).get("alignment") or []]
    for link in [*_links(pairs), *_links(pairs, "heads")]:
        fits = [fit for place, fit in aligned if place == link.place]
        for fit in fits or [{}]:
            texts = [str(fit.get(key) or words.DASH) for key in ("interface", "map")]
            texts += [number(finite(fit.get("cosine")), 2), percent(moved.get(link.student), 2)]
            rows.append(Row(link.label, [Cell(text) for text in texts]))
    columns = ["Pair", "Activation", "Map", "Cosine when cached", "Weight change"]
    return Table("Pairs of teacher and student layers", columns, rows, summary="All numbers")


def alignment_section(files: RunFiles) -> Section:
    """Cosine between each trained layer and its target, before and after."""
    rows = files.metrics.get("alignment") or []
    title = "Alignment of the pairs"
    if not rows:
        return Section(
            "alignment",
            title,
            missing="No layer has a target to be aligned with, since the recipe's loss is at the output alone."
            if _is_output_only(files)
            else "metrics.json holds no alignment; the evaluate step measures it for paired layers.",
        )
    # Earlier versions gave a blend's depth as one number here, which pairs.json says exactly.
    names = {link.place: link.label for key in ("pairs", "heads") for link in _links(files.pairs, key)}
    measured = [LayerPair.from_json(row) for row in rows]
    labels = [names.get(pair.place, pair.label) for pair in measured]
    found = [
        (label, finite(r.get("before")), finite(r.get("after")))
        for label, r in zip(labels, rows, strict=True)
    ]
    means = [words.mean([b for _, b, _ in found]), words.mean([a for _, _, a in found])]
    finding = f"The mean cosine with the targets {words.moved(means[0], means[1], shown=words.number_2)}."
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


def cka_section(files: RunFiles) -> Section:
    """CKA of all layer pairs, before and after, on one colour scale."""
    maps = {key: _matrix(value) for key, value in (files.metrics.get("cka") or {}).items()}
    title = "Similarity of all layers"
    before, after = maps.get("before"), maps.get("after")
    if before is None or after is None:
        return Section(
            "cka",
            title,
            missing="metrics.json holds no CKA; the evaluate step measures it when evaluation.cka_rows is above 0 and the teacher's "
            "layers are known.",
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
        words.mean([m[t - 1][s - 1] for t, s in pairs if t <= len(m) and s <= len(m[0])])
        for m in (before, after)
    ]
    finding = "How alike each student layer is to each teacher layer."
    if means[0] is not None:
        finding = (
            f"The mean CKA of the paired layers {words.moved(means[0], means[1], shown=words.number_2)}."
        )
    note = "CKA, 1 for the same geometry. Paired layers are framed; both maps share one colour scale."
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
