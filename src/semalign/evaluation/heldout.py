"""A model over the held-out rows, beside what the cache step stored of the teacher."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from semalign.data import length_batches
from semalign.data.batches import batch_inputs, labels_of
from semalign.maths.full_vocabulary import closeness
from semalign.maths.similarity import linear_cka, mean_cosine
from semalign.maths.topk import told_closeness
from semalign.methods.maps import MAPS
from semalign.models.capture import Point, capture
from semalign.models.decoder import Decoder
from semalign.models.head import Head
from semalign.run.files import Record, read_json, read_tensors
from semalign.run.folder import verified
from semalign.run.progress import bar
from semalign.signals.passes import LOGIT_CHUNK, layer_states
from semalign.signals.prepared import Prepared
from semalign.signals.request import position_name, target_name


@torch.no_grad()
def heldout_batches(
    decoder: Decoder,
    prepared: Prepared,
    name: str,
    points: Collection[Point] = (),
    rows: Sequence[int] | None = None,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[tuple[list[int], list[Record], dict[str, Tensor], dict[Point, Tensor]]]:
    """Batches of held-out rows: their numbers, stored signals, closeness to the teacher per token, captured states.

    With `rows` each of these alone; else all of them, rows of like length together. The student's pass runs inside `within`.
    """
    inputs, store = prepared.inputs, prepared.stores.heldout
    head = decoder.head()
    # A teacher that only tells has none here.
    is_told = prepared.config.teacher.only_tells
    teacher = None if is_told else prepared.teacher_head.to(decoder.device)
    lengths = [len(s.input_ids) for s in inputs.heldout]
    batches = (
        length_batches(lengths, max_tokens=None, batch_size=prepared.config.cache.batch_size)
        if rows is None
        else [[number] for number in rows]
    )
    progress = bar(sum(map(len, batches)), f"held-out {name}")
    for batch in batches:
        samples = [inputs.heldout[i] for i in batch]
        ids, states = batch_inputs(decoder, samples)
        with capture(decoder, points) as found, decoder.span(0, decoder.num_layers, norm=True), within():
            output_XE = decoder.forward(ids)[states]
        stored = [store.read(i) for i in batch]
        labels = torch.cat([labels_of(s) for s in samples]).to(output_XE.device)
        figures = _closeness(teacher, head, output_XE, stored, labels)
        yield (
            batch,
            stored,
            {key: values.cpu() for key, values in figures.items()},
            {point: found[point][states].float().cpu() for point in points},
        )
        progress.update(len(batch))
    progress.close()


def _closeness(
    teacher: Head | None, head: Head, output_XE: Tensor, stored: Sequence[Record], labels_X: Tensor
) -> dict[str, Tensor]:
    """Over the whole vocabulary where there is the teacher's head, else over the tokens that it tells and the rest."""

    def every(name: str) -> Tensor:
        return torch.cat([r[position_name(name)] for r in stored]).to(output_XE.device)

    if teacher is not None:
        return closeness(
            output_XE,
            head.weight_VD,
            every("teacher_output"),
            teacher.weight_VD,
            labels_X,
            student=head.options,
            teacher=teacher.options,
        )
    parts = [output_XE, every("ids").long(), every("teacher_logp"), every("valid"), labels_X]
    chunks = [
        told_closeness(head.logits(states), *known)
        for states, *known in zip(*(part.split(LOGIT_CHUNK) for part in parts), strict=True)
    ]
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def heldout_figures(decoder: Decoder, prepared: Prepared, name: str) -> dict[str, Any]:
    """Closeness to the teacher per token, alignment per pair, CKA between all layers, on the held-out rows."""
    recipe = prepared.recipe
    is_aligned = recipe.layer is not None and MAPS[recipe.map].is_aligned
    chosen = prepared.plan.at(recipe.interface) if is_aligned else ()
    points = {p: Point(p.student, recipe.interface, p.student_head) for p in chosen}
    tokens: dict[str, list[Tensor]] = {}
    pairs: dict[Any, list[tuple[Tensor, Tensor]]] = {p: [] for p in points}
    for _, stored, figures, found in heldout_batches(decoder, prepared, name, points.values()):
        for key, values in figures.items():
            tokens.setdefault(key, []).append(values)
        for pair, point in points.items():
            target = torch.cat([r[target_name(recipe.map, recipe.interface, pair.place)] for r in stored])
            pairs[pair].append((target.float(), found[point]))
    figure = {key: torch.cat(parts) for key, parts in tokens.items()}
    return {
        "closeness": {
            "kl": float(figure["kl"].mean()),
            "top1_agreement": float(figure["top1"].mean()),
            "nll": float(figure["nll_student"].mean()),
        },
        "teacher_nll": float(figure["nll_teacher"].mean()),
        "tokens": len(figure["kl"]),
        "alignment": {
            p.place: mean_cosine(*(torch.cat(x) for x in zip(*v, strict=True))) for p, v in pairs.items()
        },
        "cka": _cka(decoder, prepared)
        if name in ("before", "after") and prepared.config.evaluation.cka_rows
        else None,
    }


def _cka(decoder: Decoder, prepared: Prepared) -> list[list[float]] | None:
    """Linear CKA of teacher layer (row) and student layer (column) streams; None where the cache has no teacher's."""
    manifest, name = prepared.run.manifest, "cka.safetensors"
    if name not in read_json(manifest, "cache").get("files", {}):
        return None
    teacher = read_tensors(verified(manifest, name, "cache"))
    student = layer_states(decoder, prepared.inputs.heldout[: prepared.config.evaluation.cka_rows])
    rows, columns = len(teacher), len(student)
    # Both start at the first held-out row; the cache may have been made for another number of rows.
    n = min(len(teacher["layer.1"]), len(student["layer.1"]))
    return [
        [
            round(linear_cka(teacher[f"layer.{t}"][:n].float(), student[f"layer.{s}"][:n].float()), 4)
            for s in range(1, columns + 1)
        ]
        for t in range(1, rows + 1)
    ]
