"""What one forward pass of each model leaves behind for training: prefixes, activations, top-k sets.

Legend: B batch, T tokens, N supervised positions of a sample, D teacher width, E student width, K top-k, V vocabulary.
A supervised token t is predicted by the state at t - 1: position-wise records hold those states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from semalign.data import Sample
from semalign.data.batches import batch_inputs, labels_of
from semalign.maths.pairing import blend
from semalign.maths.quantise import dequantise_rows, quantise_rows, relative_error
from semalign.maths.topk import followed_logit, outside_of, rest_of, union_topk, with_labels
from semalign.models.capture import Point, capture
from semalign.models.decoder import Decoder
from semalign.models.head import Head
from semalign.run.files import Record
from semalign.signals.finite import check_finite
from semalign.signals.request import (
    PREFIX,
    PREFIX_ERROR,
    PREFIX_SCALE,
    Request,
    own_name,
    position_name,
    rest_name,
    teacher_name,
)
from semalign.signals.served import Told

LOGIT_CHUNK = 128  # positions whose full logits are live at once
STATES = 512  # positions that layers are compared on


def prefix_record(stream_TE: Tensor, request: Request, whose: str = "a row") -> Record:
    """PREFIX (T, E); in eight bits also PREFIX_SCALE (T,) and the relative error PREFIX_ERROR (T,); `whose` begins a message."""
    if request.prefix_dtype is None:
        stored_TE = stream_TE.to(request.dtype).cpu().clone()
        check_finite(f"{whose}: {PREFIX}", stored_TE, stream_TE)
        return {PREFIX: stored_TE}
    # In codes it would not show.
    check_finite(f"{whose}: {PREFIX}", stream_TE, stream_TE)
    codes_TE, scale_T = quantise_rows(stream_TE.float(), request.prefix_dtype)
    error_T = relative_error(stream_TE, dequantise_rows(codes_TE, scale_T))
    record = {PREFIX: codes_TE, PREFIX_SCALE: scale_T, PREFIX_ERROR: error_T.half()}
    return {name: tensor.cpu() for name, tensor in record.items()}


def stream_of(record: Mapping[str, Tensor]) -> Tensor:
    """The stored stream in float32 (T, E)."""
    codes_TE, scale_T = record[PREFIX], record.get(PREFIX_SCALE)
    return codes_TE.float() if scale_T is None else dequantise_rows(codes_TE, scale_T)


def topk(
    head: Head, hidden_ND: Tensor, k: int, temperatures: Sequence[float] = (1.0,)
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (N, k) and logits (N, k) of the likeliest tokens, and t log sum exp(z / t) over the vocabulary (N, temperatures), in chunks.

    A head in half precision rounds its logits, by some 0.03 at 20, and with them what is left outside the top k. So the
    likeliest tokens' logits are computed again in float32, and take their old places in the sum.
    """
    ids, values, sums = [], [], []
    for chunk in hidden_ND.split(LOGIT_CHUNK):
        logits_NV = head.logits(chunk)
        top = logits_NV.topk(min(k, logits_NV.shape[1]), dim=1)
        exact_NK = head.gathered(chunk, top.indices)
        ids.append(top.indices)
        values.append(exact_NK)
        of_chunk = []
        for t in temperatures:
            rounded_N1 = (logits_NV / t).logsumexp(1, keepdim=True)
            left_N = 1 - (top.values / t - rounded_N1).exp().sum(1)
            exact_N = (exact_NK / t - rounded_N1).exp().sum(1) + left_N.clamp_min(0)
            of_chunk.append(t * (rounded_N1[:, 0] + exact_N.log()))
        sums.append(torch.stack(of_chunk, 1))
    return torch.cat(ids), torch.cat(values), torch.cat(sums)


@torch.no_grad()
def student_signals(student: Decoder, samples: Sequence[Sample], request: Request) -> list[Record]:
    """Per sample: tokens.prefix (T, E); positions.own.<interface>.<place> (N, E); positions.student_output (N, E),
    positions.student_ids and .student_logp (N, K), positions.student_lse (N, temperatures) of the untouched student; the first
    temperature is 1. Stops after the deepest layer that anything needs."""
    ids_BT, states_BT = batch_inputs(student, samples)
    points = [Point(p.student, i, p.student_head) for i in request.interfaces for p in request.at(i)]
    if request.cut is not None:
        points.append(Point(request.cut, "block"))
    needs_output = request.needs_student_output
    stop = student.num_layers if needs_output else max((point.layer for point in points), default=0)
    with capture(student, points) as found, student.span(0, stop, norm=needs_output):
        output_BTE = student.forward(ids_BT)
    records: list[Record] = [{} for _ in samples]
    if request.cut is not None:
        for record, row, sample in zip(records, found[Point(request.cut, "block")], samples, strict=True):
            record |= prefix_record(row[: len(sample.input_ids)], request, f"sample {sample.id}")
    for interface in request.interfaces:
        for pair in request.at(interface):
            name = own_name(interface, pair.place)
            point = Point(pair.student, interface, pair.student_head)
            _put(records, name, found[point][states_BT], samples, request.dtype)
    if request.top_k:
        output_XE = output_BTE[states_BT]
        top, values, lse = topk(student.head(), output_XE, request.top_k, _with_one(request))
        _put(records, position_name("student_output"), output_XE, samples, request.dtype)
        _put(records, position_name("student_ids"), top, samples, torch.int32)
        _put(records, position_name("student_logp"), values - lse[:, :1], samples, None)
        _put(records, position_name("student_lse"), lse, samples, None)
    return records


@torch.no_grad()
def extended_prefix(
    student: Decoder,
    samples: Sequence[Sample],
    streams: Sequence[Tensor] | None,
    span: tuple[int, int],
    request: Request,
) -> list[Record]:
    """Per sample tokens.prefix (T, E) in the request's type after layer span[1], from streams (T, E) after layer span[0], or from token ids."""
    inputs, _ = batch_inputs(student, samples)
    if streams is not None:
        inputs = nn.utils.rnn.pad_sequence([s.float() for s in streams], batch_first=True).to(student.device)
    with student.span(*span, norm=False):
        stream_BTE = student.forward(inputs)
    return [
        prefix_record(row[: len(sample.input_ids)], request, f"sample {sample.id}")
        for row, sample in zip(stream_BTE, samples, strict=True)
    ]


@torch.no_grad()
def teacher_signals(
    teacher: Decoder,
    samples: Sequence[Sample],
    request: Request,
    own: Sequence[Record],
    student_head: Head,
    candidates_C: Tensor,
) -> list[Record]:
    """Per sample: positions.teacher.<interface>.<place> (N, D), blended over depth where the pair says so;
    positions.teacher_output (N, D); positions.ids, .teacher_logp, .student_logp, .valid (N, 2K + 1) over the union of
    both models' top-k sets and the row's own token; positions.rest.<temperature> (N, 3). Stops after the deepest layer that
    anything needs."""
    samples = [sample.for_teacher for sample in samples]
    ids_BT, states_BT = batch_inputs(teacher, samples)
    points = sorted(
        {
            Point(layer, i, p.teacher_head)
            for i in request.interfaces
            for p in request.at(i)
            for layer in p.blend
        },
        key=str,
    )
    needs_output = request.needs_teacher_output
    stop = teacher.num_layers if needs_output else max(p.layer for p in points)
    with capture(teacher, points) as found, teacher.span(0, stop, norm=needs_output):
        output_BTD = teacher.forward(ids_BT)
    records: list[Record] = [{} for _ in samples]
    for interface in request.interfaces:
        for pair in request.at(interface):
            points_of = [Point(layer, interface, pair.teacher_head) for layer in pair.blend]
            parts = [_picked(found[point], states_BT).float() for point in points_of]
            states = parts[0] if len(parts) == 1 else blend(parts[0], parts[1], pair.fraction)
            _put(records, teacher_name(interface, pair.place), states, samples, request.dtype)
    output_XD = output_BTD[states_BT]
    if request.teacher_output:
        _put(records, position_name("teacher_output"), output_XD, samples, request.dtype)
    if request.top_k:
        _put_union(records, samples, teacher.head(), output_XD, own, student_head, candidates_C, request)
    return records


@torch.no_grad()
def told_signals(
    told: Sequence[Told],
    samples: Sequence[Sample],
    request: Request,
    own: Sequence[Record],
    student_head: Head,
    candidates_C: Tensor,
) -> list[Record]:
    """As `teacher_signals` at temperature 1, of a teacher that tells its K likeliest tokens and no more: (N, K + 1) with the row's own
    token. What the student finds likely and the teacher does not tell is of the rest."""
    records: list[Record] = [{} for _ in samples]
    device = student_head.weight_VD.device
    union, logp = told_union(told, samples)
    ids, valid, logp = union[0].to(device), union[1].to(device), logp.to(device)
    _put_slots(
        records,
        samples,
        ids,
        valid,
        logp,
        {1.0: torch.zeros(len(ids), device=device)},
        own,
        student_head,
        candidates_C,
        request,
    )
    return records


def told_heldout(told: Sequence[Told], samples: Sequence[Sample]) -> list[Record]:
    """Per sample positions.ids, .valid and .teacher_logp (N, K + 1): all that is kept of such a teacher on a held-out row."""
    records: list[Record] = [{} for _ in samples]
    (ids, valid), logp = told_union(told, samples)
    for name, part, dtype in (
        ("ids", ids, torch.int32),
        ("valid", valid, None),
        ("teacher_logp", logp, None),
    ):
        _put(records, position_name(name), part, samples, dtype)
    return records


def told_union(told: Sequence[Told], samples: Sequence[Sample]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Ids and mask (X, K + 1) of the likeliest tokens and the rows' own, and the teacher's log-probabilities (X, K + 1), 0 where masked."""
    logp_XK = torch.cat([one.logp_NK for one in told])
    labels_X = torch.cat([labels_of(sample) for sample in samples])
    ids, valid = with_labels(torch.cat([one.ids_NK for one in told]), logp_XK > -torch.inf, labels_X)
    logp = torch.cat([logp_XK, torch.cat([one.label_logp_N for one in told])[:, None]], 1)
    return (ids, valid), logp.masked_fill(~valid, 0.0)


@torch.no_grad()
def states_at(decoder: Decoder, samples: Sequence[Sample], points: Sequence[Point]) -> dict[Point, Tensor]:
    """Activations at the supervised positions of a few rows, the first STATES of them: (N, D) by point."""
    kept: dict[Point, list[Tensor]] = {point: [] for point in points}
    for sample in samples:
        ids, states = batch_inputs(decoder, [sample])
        with capture(decoder, points) as found:
            decoder.forward(ids)
        for point in points:
            kept[point].append(_picked(found[point], states).cpu())
        if sum(len(part) for part in kept[points[0]]) >= STATES:
            break
    return {point: torch.cat(parts)[:STATES] for point, parts in kept.items()}


def _picked(activation_BTD: Tensor, states_BT: Tensor) -> Tensor:
    """An activation at some positions (N, D), on the positions' device; a teacher's layers may lie on several."""
    return activation_BTD[states_BT.to(activation_BTD.device)].to(states_BT.device)


def layer_states(decoder: Decoder, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Streams after every layer at the supervised positions of a few rows: `layer.<n>` (N, D)."""
    points = [Point(n, "block") for n in range(1, decoder.num_layers + 1)]
    return {f"layer.{p.layer}": states for p, states in states_at(decoder, samples, points).items()}


def _put_union(
    records: list[Record],
    samples: Sequence[Sample],
    head: Head,
    output_XD: Tensor,
    own: Sequence[Record],
    student_head: Head,
    candidates_C: Tensor,
    request: Request,
) -> None:
    device = output_XD.device
    theirs = _of_student(own, ("ids", "logp"), device)
    temperatures = _with_one(request)
    top, values, lse_XT = topk(head, output_XD, request.top_k, temperatures)
    labels_X = torch.cat([labels_of(sample) for sample in samples]).to(device)
    union = union_topk(top, values, theirs["ids"].long(), theirs["logp"])
    ids, valid = with_labels(*union, labels_X)
    teacher_logp = head.gathered(output_XD, ids) - lse_XT[:, :1]
    lse = {t: lse_XT[:, n] - lse_XT[:, 0] for n, t in enumerate(temperatures)}
    _put_slots(records, samples, ids, valid, teacher_logp, lse, own, student_head, candidates_C, request)


def _put_slots(
    records: list[Record],
    samples: Sequence[Sample],
    ids: Tensor,
    valid: Tensor,
    teacher_logp: Tensor,
    teacher_lse: Mapping[float, Tensor],
    own: Sequence[Record],
    student_head: Head,
    candidates_C: Tensor,
    request: Request,
) -> None:
    """The slots of the union, with both models' log-probabilities and what is left of each outside.

    Args:
        teacher_lse: by temperature t log sum exp(log p / t) of the teacher's log-probabilities over the vocabulary (X); 0 at 1.
    """
    device = ids.device
    theirs = _of_student(own, ("ids", "logp", "lse", "output"), device)
    student_head, candidates_C = student_head.to(device), candidates_C.to(device)
    student_logp = student_head.gathered(theirs["output"], ids) - theirs["lse"][:, :1]
    # The stored state is rounded. Its own likeliest tokens, which hold nearly all of the mass, are known better.
    known_NJK = ids[:, :, None] == theirs["ids"].long()[:, None, :]
    known_logp = torch.where(known_NJK, theirs["logp"][:, None, :], 0.0).sum(2)
    student_logp = torch.where(known_NJK.any(2), known_logp, student_logp)
    student_NJ = student_logp + theirs["lse"][:, :1]
    others_NC = student_head.rows(candidates_C).logits(theirs["output"])
    for n, t in enumerate(_with_one(request)):
        if t not in request.temperatures:
            continue
        own_N = theirs["lse"][:, n]
        followed_N = followed_logit(others_NC, candidates_C, ids, valid, temperature=t)
        outside_N = outside_of(followed_N, student_NJ, own_N, valid, temperature=t)
        # Of the log-probabilities at temperature 1, as the union has them.
        teacher_N = rest_of(teacher_logp, teacher_lse[t], valid, temperature=t)
        rest = torch.stack([teacher_N, followed_N, outside_N], 1)
        _put(records, rest_name(t), rest, samples, None)
    _put(records, position_name("ids"), ids, samples, torch.int32)
    _put(records, position_name("valid"), valid, samples, None)
    _put(records, position_name("teacher_logp"), teacher_logp, samples, None)
    _put(records, position_name("student_logp"), student_logp, samples, None)


def _of_student(own: Sequence[Record], names: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """The untouched student's signals of all rows of a batch, by name."""
    return {name: torch.cat([r[position_name(f"student_{name}")] for r in own]).to(device) for name in names}


def _with_one(request: Request) -> tuple[float, ...]:
    """The temperatures of a request, 1 the first: probabilities are kept at it."""
    return (1.0, *(t for t in request.temperatures if t != 1.0))


def _put(
    records: Sequence[Record], name: str, rows: Tensor, samples: Sequence[Sample], dtype: torch.dtype | None
) -> None:
    stored = (rows if dtype is None else rows.to(dtype)).cpu()
    counts = [sample.supervised for sample in samples]
    parts = zip(records, samples, stored.split(counts), rows.split(counts), strict=True)
    for record, sample, part, computed in parts:
        if part.is_floating_point():
            check_finite(f"sample {sample.id}: {name}", part, computed)
        # clone: a view would keep the whole batch alive
        record[name] = part.clone()
