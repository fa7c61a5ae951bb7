"""What one pass of each model leaves behind, against the whole transformers model run on every row alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from in_memory import samples, student, teacher
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor

from semalign.data import Sample, prepare
from semalign.data.batches import candidates_of, labels_of
from semalign.errors import ModelError
from semalign.maths.head import HeadOptions
from semalign.maths.pairing import LayerPair
from semalign.models.capture import Point
from semalign.models.decoder import Decoder
from semalign.models.head import Head
from semalign.run.files import Record
from semalign.signals import passes
from semalign.signals.passes import (
    extended_prefix,
    layer_states,
    prefix_record,
    states_at,
    stream_of,
    student_signals,
    teacher_signals,
    topk,
)
from semalign.signals.request import PREFIX, PREFIX_ERROR, PREFIX_SCALE, Request

K = 6
PAIRS = (LayerPair(2, 2, 0.25), LayerPair(4, 3))
REQUEST = Request(
    pairs=PAIRS, interfaces=("block",), cut=1, top_k=K, teacher_output=True, dtype=torch.float32
)
ROWS = samples(4)


@torch.no_grad()
def whole(decoder: Decoder, sample: Sample) -> tuple[list[Tensor], Tensor, Tensor]:
    """Of one row by itself: streams after layers 0..L, the last one after the final norm (T, D), logits, state mask."""
    found = decoder.model(torch.tensor([sample.input_ids]), output_hidden_states=True)
    states = torch.tensor([*sample.mask[1:], False])
    return [hidden[0] for hidden in found.hidden_states], found.logits[0], states


TEMPERATURES = (2.0, 0.5)  # beside 1, at which probabilities are kept


def test_what_is_left_outside_the_top_k_of_a_half_precision_head_is_not_rounding() -> None:
    draw = torch.Generator().manual_seed(0)
    weight, states = torch.randn(400, 16, generator=draw).bfloat16(), 3 * torch.randn(50, 16, generator=draw)
    ids, logits, lse = topk(Head(weight), states.bfloat16().float(), 8)
    exact = states.bfloat16().float() @ weight.float().T
    torch.testing.assert_close(logits, exact.gather(1, ids))
    left = 1 - (logits - lse).exp().sum(1)
    wanted = 1 - (exact.gather(1, ids) - exact.logsumexp(1)[:, None]).exp().sum(1)
    assert float(wanted.min()) < 1e-3 and float(wanted.max()) > 0.01, "both certain and uncertain positions"
    torch.testing.assert_close(left, wanted, rtol=0.05, atol=1e-5)


def test_activations_that_are_not_finite_name_the_sample() -> None:
    decoder = Decoder(tiny_model("llama", layers=2, wide=False), tiny_tokenizer())
    samples = prepare(
        [{"prompt": "add two", "completion": " five", "id": "row-7"}], tiny_tokenizer(), max_length=64
    )
    with torch.no_grad():
        decoder.layers[1].mlp.down_proj.weight.fill_(torch.inf)
    with pytest.raises(ModelError, match="sample row-7"):
        student_signals(decoder, samples, Request(pairs=(), top_k=4))


def test_the_student_leaves_its_stream_its_activations_and_its_likeliest_tokens() -> None:
    decoder = student()
    for record, sample in zip(student_signals(decoder, ROWS, REQUEST), ROWS, strict=True):
        hidden, logits, states = whole(decoder, sample)
        logp = logits[states].log_softmax(-1)
        expected = {
            PREFIX: hidden[1],
            "positions.own.block.2": hidden[2][states],
            "positions.student_output": hidden[3][states],
            "positions.student_logp": logp.topk(K).values,
            "positions.student_lse": logits[states].logsumexp(-1, keepdim=True),
        }
        assert record.keys() == expected.keys() | {"positions.own.block.3", "positions.student_ids"}
        for key, value in expected.items():
            torch.testing.assert_close(record[key], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(record["positions.student_ids"].long(), logp.topk(K).indices)


def test_a_row_leaves_the_same_whatever_its_batch() -> None:
    decoder, request = student(), Request(pairs=PAIRS, interfaces=("mlp", "attn"), cut=2, dtype=torch.float32)
    together = student_signals(decoder, ROWS, request)
    for record, sample in zip(together, ROWS, strict=True):
        (alone,) = student_signals(decoder, [sample], request)
        assert alone.keys() == record.keys()
        for key, value in alone.items():
            torch.testing.assert_close(record[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "keys"),
    [
        ({}, set()),
        ({"cut": 2}, {PREFIX}),
        ({"cut": 2, "prefix_dtype": "int8"}, {PREFIX, PREFIX_SCALE, PREFIX_ERROR}),
        ({"interfaces": ("mlp",)}, {"positions.own.mlp.2", "positions.own.mlp.3"}),
        ({"top_k": 2}, {f"positions.student_{name}" for name in ("output", "ids", "logp", "lse")}),
    ],
)
def test_only_what_is_requested_is_kept(fields: dict[str, Any], keys: set[str]) -> None:
    (record,) = student_signals(student(), ROWS[:1], Request(pairs=PAIRS, **fields))
    assert record.keys() == keys


@pytest.mark.parametrize(
    ("fields", "deepest"),
    [({"cut": 1}, 1), ({"cut": 2}, 2), ({"interfaces": ("mlp",)}, 3), ({"top_k": 2}, 3), ({}, 0)],
)
def test_the_student_runs_no_layer_below_which_nothing_is_asked_for(
    fields: dict[str, Any], deepest: int
) -> None:
    decoder, ran = student(), set()
    for number, layer in enumerate(decoder.layers, 1):
        layer.register_forward_pre_hook(lambda *_, number=number: ran.add(number))
    student_signals(decoder, ROWS[:1], Request(pairs=PAIRS, **fields))
    assert ran == set(range(1, deepest + 1))


def signals_of_teacher(
    request: Request, rows: Sequence[Sample] = ROWS
) -> tuple[list[Record], Decoder, Decoder]:
    own, theirs = student(), teacher()
    records = student_signals(own, rows, request)
    found = teacher_signals(theirs, rows, request, records, own.head(), candidates_of(rows[:1]))
    return found, theirs, own


def test_the_teacher_leaves_blended_layers_and_its_own_output() -> None:
    found, theirs, _ = signals_of_teacher(REQUEST)
    for record, sample in zip(found, ROWS, strict=True):
        hidden, _, states = whole(theirs, sample)
        expected = {
            "positions.teacher.block.2": (0.75 * hidden[2] + 0.25 * hidden[3])[states],
            "positions.teacher.block.3": hidden[4][states],
            "positions.teacher_output": hidden[5][states],
        }
        for key, value in expected.items():
            torch.testing.assert_close(record[key], value, rtol=1e-4, atol=1e-5)


def test_the_union_of_likeliest_tokens_has_both_models_log_probabilities() -> None:
    found, theirs, own = signals_of_teacher(replace(REQUEST, temperatures=TEMPERATURES))
    followed = candidates_of(ROWS[:1])
    for record, sample in zip(found, ROWS, strict=True):
        (_, z_T, states), (_, z_S, _) = whole(theirs, sample), whole(own, sample)
        z_T, z_S = z_T[states].double(), z_S[states].double()
        ids, valid = record["positions.ids"].long(), record["positions.valid"]
        for name, logits in (("teacher_logp", z_T), ("student_logp", z_S)):
            expected = logits.log_softmax(-1).gather(1, ids)
            torch.testing.assert_close(record[f"positions.{name}"].double(), expected, rtol=1e-4, atol=1e-4)
        for n, row in enumerate(ids):
            union = {*z_T[n].topk(K).indices.tolist(), *z_S[n].topk(K).indices.tolist()}
            union.add(int(labels_of(sample)[n]))
            assert sorted(row[valid[n]].tolist()) == sorted(union), "every token once"
            for t in TEMPERATURES:
                rest, known = (
                    record[f"positions.rest.{t:g}"][n],
                    [v for v in followed.tolist() if v not in union],
                )
                left, logp = z_S[n].clone(), z_T[n].log_softmax(0)
                left[[*union, *known]] = logp[[*union]] = -torch.inf
                expected = [t * (z / t).logsumexp(0) for z in (logp, z_S[n][known], left)]
                torch.testing.assert_close(rest.double(), torch.stack(expected), rtol=0, atol=2e-2)


def test_a_token_of_the_students_list_keeps_the_log_probability_of_the_unrounded_state() -> None:
    request = Request(pairs=(), top_k=K, dtype=torch.float16)
    found, _, own = signals_of_teacher(request)
    for record, kept in zip(found, student_signals(own, ROWS, request), strict=True):
        ids, top = record["positions.ids"], kept["positions.student_ids"]
        for n in range(len(ids)):
            place = {int(token): j for j, token in enumerate(top[n])}
            for j, token in enumerate(ids[n].tolist()):
                if token in place:
                    exact = kept["positions.student_logp"][n, place[token]]
                    assert torch.equal(record["positions.student_logp"][n, j], exact)


def test_the_teacher_stops_after_the_deepest_layer_that_is_needed() -> None:
    theirs, ran = teacher(), []
    for number, layer in enumerate(theirs.layers, start=1):
        layer.register_forward_hook(lambda m, a, out, number=number: ran.append(number))
    empty = torch.tensor([1])

    def run(**fields: Any) -> list[int]:
        ran.clear()
        teacher_signals(theirs, ROWS[:1], Request(**fields), [], student().head(), empty)
        return list(ran)

    assert run(pairs=(LayerPair(2, 2),), interfaces=("block",)) == [1, 2]
    assert run(pairs=(LayerPair(2, 2, 0.5),), interfaces=("block",)) == [1, 2, 3], (
        "a blend reads one layer more"
    )
    assert run(pairs=(LayerPair(2, 2),), interfaces=("output",)) == [1, 2, 3, 4, 5]
    assert run(pairs=(), teacher_output=True) == [1, 2, 3, 4, 5]


def test_activations_have_the_requested_type_and_log_probabilities_do_not() -> None:
    request = Request(pairs=PAIRS, interfaces=("block",), cut=1, top_k=K, teacher_output=True)
    found, _, own = signals_of_teacher(request)
    record = found[0] | student_signals(own, ROWS[:1], request)[0]
    types = {key.removeprefix("positions."): tensor.dtype for key, tensor in record.items()}
    half = {
        "own.block.2",
        "own.block.3",
        "teacher.block.2",
        "teacher.block.3",
        "teacher_output",
        "student_output",
        PREFIX,
    }
    assert {key for key, kind in types.items() if kind == torch.bfloat16} == half
    assert types["ids"] == types["student_ids"] == torch.int32 and types["valid"] == torch.bool
    exact = {"teacher_logp", "student_logp", "student_lse", "rest.1"}
    assert {key for key, kind in types.items() if kind == torch.float32} == exact


def test_a_record_holds_no_more_memory_than_its_own_rows() -> None:
    found, _, own = signals_of_teacher(REQUEST)
    for record in (*found, *student_signals(own, ROWS, REQUEST)):
        for key, tensor in record.items():
            assert tensor.untyped_storage().nbytes() == tensor.nbytes and not tensor.requires_grad, key


def test_a_teacher_that_is_not_finite_names_the_sample_and_the_signal() -> None:
    theirs = teacher()
    with torch.no_grad():
        theirs.layers[3].mlp.down_proj.weight[0, 0] = torch.nan
    request = Request(pairs=PAIRS, interfaces=("block",), dtype=torch.float32)
    with pytest.raises(
        ModelError, match=r"sample row-0: positions\.teacher\.block\.3 holds NaN .*float32 or bfloat16"
    ):
        teacher_signals(theirs, ROWS, request, [], student().head(), torch.tensor([1]))


def test_values_too_large_for_the_stored_type_are_found_too() -> None:
    own = student()
    with torch.no_grad():
        own.layers[2].mlp.down_proj.weight.mul_(1e6)
    sentence = (
        r"sample row-0: {} holds values up to .*e\+\d+, too large for cache\.dtype: float16, whose largest is 6\.55e\+04; "
        r"set cache\.dtype: bfloat16 or float32\."
    )
    request = Request(pairs=PAIRS, interfaces=("block",), dtype=torch.float16)
    with pytest.raises(ModelError, match=sentence.format(r"positions\.own\.block\.3")):
        student_signals(own, ROWS, request)
    # The model is fine, and so is a larger type.
    student_signals(own, ROWS, replace(request, dtype=torch.bfloat16))
    prefix = Request(pairs=(), cut=3, dtype=torch.float16)
    with pytest.raises(ModelError, match=sentence.format(r"tokens\.prefix")):
        student_signals(own, ROWS, prefix)
    with pytest.raises(ModelError, match=sentence.format(r"tokens\.prefix")):
        extended_prefix(own, ROWS, None, (0, 3), prefix)
    student_signals(own, ROWS, replace(prefix, prefix_dtype="int8"))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", [None, "int8", "fp8"])
def test_a_stream_that_is_not_finite_names_the_sample_and_the_model(bad: float, kind: Any) -> None:
    own = student()
    with torch.no_grad():
        own.layers[0].mlp.down_proj.weight[0, 0] = bad
    request = Request(pairs=(), cut=1, prefix_dtype=kind)
    with pytest.raises(
        ModelError,
        match=r"sample row-0: tokens\.prefix holds NaN or infinite values; load the model in float32 or",
    ):
        student_signals(own, ROWS, request)


def stream(rows: int) -> Tensor:
    return torch.randn(rows, 24, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 9, 24)


def test_a_stream_in_a_float_type_comes_back_as_it_was_rounded() -> None:
    exact = prefix_record(stream(5), Request(pairs=(), dtype=torch.float32))
    assert torch.equal(stream_of(exact), stream(5)) and exact.keys() == {PREFIX}
    half = prefix_record(stream(5), Request(pairs=()))
    assert torch.equal(stream_of(half), stream(5).bfloat16().float())


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_stream_in_eight_bits_comes_back_with_the_error_on_record(kind: Any) -> None:
    record = prefix_record(stream(5), Request(pairs=(), prefix_dtype=kind))
    restored = stream_of(record)
    assert record[PREFIX].element_size() == 1 and restored.dtype == torch.float32
    error = (restored - stream(5)).norm(dim=1) / stream(5).norm(dim=1)
    torch.testing.assert_close(record[PREFIX_ERROR].float(), error, rtol=2e-3, atol=0)
    assert 0 < float(error.max()) < (0.01 if kind == "int8" else 0.0625)


@pytest.mark.parametrize("start", [None, 1], ids=["from token ids", "from stored streams"])
def test_streams_are_carried_on_to_a_later_layer(start: int | None) -> None:
    own, request = student(), Request(pairs=(), cut=1, dtype=torch.float32)
    streams = None
    if start is not None:
        streams = [stream_of(record) for record in student_signals(own, ROWS, request)]
    found = extended_prefix(own, ROWS, streams, (start or 0, 2), request)
    for record, sample in zip(found, ROWS, strict=True):
        torch.testing.assert_close(record[PREFIX], whole(own, sample)[0][2], rtol=1e-4, atol=1e-5)


def test_likeliest_tokens_of_many_positions_are_found_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "LOGIT_CHUNK", 7)
    draw = torch.Generator().manual_seed(0)
    weight, hidden = torch.randn(50, 16, generator=draw), torch.randn(24, 16, generator=draw)
    head = Head(weight, HeadOptions(torch.randn(50, generator=draw), 0.7, 9.0))
    ids, values, lse = topk(head, hidden, 5)
    logits = 9.0 * torch.tanh(0.7 * (hidden.double() @ weight.double().T + head.options.bias_V) / 9.0)
    assert torch.equal(ids, logits.topk(5).indices)
    torch.testing.assert_close(values.double(), logits.topk(5).values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse[:, 0].double(), logits.logsumexp(1), rtol=1e-4, atol=1e-5)


def test_no_more_tokens_are_kept_than_there_are() -> None:
    draw = torch.Generator().manual_seed(0)
    head, hidden = Head(torch.randn(4, 16, generator=draw)), torch.randn(3, 16, generator=draw)
    ids, values, lse = topk(head, hidden, 9)
    assert ids.shape == values.shape == (3, 4)
    torch.testing.assert_close((values - lse).exp().sum(1), torch.ones(3))


def test_states_of_every_layer_are_those_of_the_whole_model() -> None:
    own = student()
    found = layer_states(own, ROWS)
    assert list(found) == ["layer.1", "layer.2", "layer.3"]
    streams: dict[int, list[Tensor]] = {1: [], 2: []}
    for sample in ROWS:
        hidden, _, states = whole(own, sample)
        for k, parts in streams.items():
            parts.append(hidden[k][states])
    for k, parts in streams.items():
        torch.testing.assert_close(found[f"layer.{k}"], torch.cat(parts), rtol=1e-4, atol=1e-5)


def test_layers_are_compared_on_so_many_positions_and_no_further_row_is_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, ran = student(), []
    own.layers[0].register_forward_hook(lambda m, a, out: ran.append(1))
    first = ROWS[0].supervised
    monkeypatch.setattr(passes, "STATES", first + 2)
    point = Point(1, "block")
    found = states_at(own, ROWS, [point])[point]
    assert len(found) == first + 2 and len(ran) == 2
    monkeypatch.setattr(passes, "STATES", first)
    assert torch.equal(states_at(own, ROWS, [point])[point], found[:first]) and len(ran) == 3
