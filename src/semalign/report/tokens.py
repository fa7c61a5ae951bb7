"""The section that goes through a few rows token by token, and through the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from semalign.report import plots, words
from semalign.report.blocks import Grid, GridCell, GridRow, HeatLegend, Panel, Panels, Section, Text
from semalign.report.files import Json
from semalign.report.plots import Series
from semalign.report.words import finite, number, percent

STUDENTS = (("before", "Untouched"), ("after", "Trained"))
HIGHEST_KL = 4.0  # nats; what is beyond has the darkest shade
PROMPT_LIMIT = 600


def tokens_section(metrics: Json) -> Section:
    """What teacher and student say at every token of a few held-out rows."""
    rows: Sequence[Json] = metrics.get("tokens") or []
    title = "Token by token"
    if not rows:
        return Section(
            "tokens",
            title,
            missing="metrics.json holds no token view; the evaluate step makes one from held-out rows.",
        )
    agree = {key: _agreement(rows, key) for key, _ in STUDENTS}
    shown = sum(len(row["expected"]) for row in rows)
    finding = (
        f"At {shown} tokens of {len(rows)} held-out rows the student's likeliest token is the teacher's in "
        f"{percent(agree['before'], 0)} of cases before and {percent(agree['after'], 0)} after."
    )
    note = (
        "Each column is a token of the expected answer, each cell what a model says there, given the true tokens before it. "
        "Shading is KL to the teacher. Below, what the student would say if it ended after each layer; "
        "a frame marks the teacher's own choice."
    )
    blocks: list[Any] = [HeatLegend("KL 0", f"{number(HIGHEST_KL, 0)} nats or more")]
    if panel := _lens_curves(rows):
        blocks.append(Panels([panel]))
    for index, row in enumerate(rows, 1):
        blocks.append(Text(f"Row {index}", words.clip(str(row["prompt"]), PROMPT_LIMIT)))
        blocks.append(_grid(row, index))
        blocks += [_lens(row, key, label, index) for key, label in STUDENTS if _of(row, key).get("lens")]
    return Section("tokens", title, finding, note, blocks)


def _of(row: Json, key: str) -> Mapping[str, Any]:
    return row.get(key) or {}


def _agreement(rows: Sequence[Json], key: str) -> float | None:
    same = [
        a == b
        for row in rows
        for a, b in zip(row["teacher"]["top"], _of(row, key).get("top", ()), strict=False)
    ]
    return sum(same) / len(same) if same else None


def _grid(row: Json, index: int) -> Grid:
    teacher: Json = row["teacher"]
    lines = [
        GridRow(
            "Teacher",
            [
                GridCell(piece(t), title=f"probability {percent(finite(p))}")
                for t, p in zip(teacher["top"], teacher["p"], strict=True)
            ],
        )
    ]
    for key, label in STUDENTS:
        own = _of(row, key)
        if not own:
            continue
        cells = [
            GridCell(piece(t), _shade(kl), t == best, f"KL {number(finite(kl), 3)} nats")
            for t, kl, best in zip(own["top"], own["kl"], teacher["top"], strict=True)
        ]
        lines.append(GridRow(label, cells))
    return Grid(f"Row {index}, token by token", [piece(t) for t in row["expected"]], lines)


def _lens(row: Json, key: str, label: str, index: int) -> Grid:
    layers: Sequence[Sequence[str]] = _of(row, key)["lens"]
    lines = [
        GridRow(
            f"Layer {n}",
            [
                GridCell(piece(t), same=t == best)
                for t, best in zip(layer, row["teacher"]["top"], strict=True)
            ],
        )
        for n, layer in reversed(list(enumerate(layers, 1)))
    ]
    caption = f"Row {index}, layer by layer: {label.lower()} student"
    return Grid(caption, [piece(t) for t in row["expected"]], lines, summary=caption)


def _lens_curves(rows: Sequence[Json]) -> Panel | None:
    """Share of the shown tokens at which the student would say the teacher's token after each layer."""
    series, ends = [], []
    for key, label in STUDENTS:
        stacks = [(row["teacher"]["top"], _of(row, key).get("lens") or []) for row in rows]
        depth = min((len(layers) for _, layers in stacks), default=0)
        if not depth:
            return None
        shares = []
        for n in range(depth):
            same = [a == b for best, layers in stacks for a, b in zip(best, layers[n], strict=True)]
            shares.append(sum(same) / len(same))
        kind = "c-before dash" if key == "before" else "c-after"
        series.append(
            Series(f"{label.lower()} student", [float(n) for n in range(1, depth + 1)], shares, kind)
        )
        ends.append(f"{label.lower()} {percent(shares[-1])}")
    title = "The teacher's token, had the student ended after layer ..."
    return Panel(
        title,
        Markup(plots.curves(series, f"{title}: at the last layer {', '.join(ends)}", unit="layer")),
        ", ".join(ends),
    )


def piece(text: str) -> str:
    """A token with its blanks made visible."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·") or "∅"


def _shade(kl: Any) -> int:
    value = finite(kl)
    return 0 if value is None else round(20 * min(max(value, 0.0) / HIGHEST_KL, 1.0) ** 0.5)
