"""The student's answers with the teacher's corrections, against a loop over single tokens without any cache."""

from __future__ import annotations

import functools
import sys
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor

from semalign.config import SamplingConfig
from semalign.errors import ModelError
from semalign.evaluation import speculative
from semalign.evaluation.decoding import GREEDY
from semalign.evaluation.speculative import BLOCK, corrected_answers
from semalign.models.decoder import Decoder

V, MOST = 320, 21
TOKENIZER = tiny_tokenizer()
PROMPTS = [list(range(20, 20 + n)) for n in (3, 11, 1, 6, 7)]
ROWS = [(ids, ids) for ids in PROMPTS]
FURTHER = [(ids, [*range(200, 200 + 3 * n), *ids]) for n, ids in enumerate(PROMPTS)]
"""The teacher reads more."""


def pair(kind: str = "llama") -> tuple[Decoder, Decoder]:
    models = (tiny_model(kind, layers=3, wide=False, seed=2), tiny_model(kind, layers=4, wide=True, seed=1))
    own, theirs = (Decoder(model, TOKENIZER, kind) for model in models)
    return own, theirs


def told(
    models: tuple[Decoder, Decoder], rows: list[tuple[list[int], list[int]]] = ROWS, **options: Any
) -> list[tuple[str, bool]]:
    fixed = {"vocabulary": V, "accepted": 4, "max_new_tokens": MOST, "batch_size": 3, "samples": 1, "seed": 0}
    return corrected_answers(*models, rows, TOKENIZER, **{**fixed, "sampling": GREEDY, **options})


@torch.no_grad()
def logits_after(decoder: Decoder, ids: list[int]) -> Tensor:
    return decoder.model(torch.tensor([ids])).logits[0, -1]


def by_hand(
    models: tuple[Decoder, Decoder], own: list[int], theirs: list[int], accepted: int, ends: set[int]
) -> tuple[str, bool]:
    written: list[int] = []
    while len(written) < MOST and ends.isdisjoint(written):
        proposed = int(logits_after(models[0], own + written).argmax())
        logits = logits_after(models[1], theirs + written)
        stays = proposed in logits.topk(accepted).indices.tolist()
        written.append(proposed if stays else int(logits.argmax()))
    has_ended = written[-1] in ends
    return TOKENIZER.decode(written[: len(written) - has_ended]), has_ended


def ending(models: tuple[Decoder, Decoder], *ends: int) -> set[int]:
    for model in models:
        model.model.generation_config.eos_token_id = list(ends)
    return {TOKENIZER.eos_token_id, *ends}


@pytest.mark.parametrize("rows", [ROWS, FURTHER], ids=["alike", "further"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2", "gemma3_text"])
def test_equals_a_loop_over_single_tokens(kind: str, rows: list[tuple[list[int], list[int]]]) -> None:
    models = pair(kind)
    ends = ending(models)
    expected = [by_hand(models, *both, 4, ends) for both in rows]
    assert told(models, rows) == expected
    assert told(models, rows, batch_size=1) == expected


@pytest.mark.parametrize("spare", [0, 9])
def test_no_position_is_read_that_a_model_has_not_learned(
    spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, length = pair("gpt2"), 11
    ends = ending(models)
    # Of rows of one length those with fewer corrections are ahead, and are read on while the others catch up.
    rows = [(ids, ids) for ids in (list(range(n, n + length)) for n in range(20, 120, 20))]
    monkeypatch.setattr(sys.modules[__name__], "MOST", MOST - spare)
    expected = [by_hand(models, *both, 60, ends) for both in rows]
    for model in models:
        embedding = model.model.transformer.wpe
        model.model.transformer.wpe = torch.nn.Embedding.from_pretrained(embedding.weight[: length + MOST])
        model.model.config.n_positions = length + MOST
    assert told(models, rows, accepted=60, batch_size=5, max_new_tokens=MOST + spare) == expected


def test_answers_that_end_leave_their_batch_and_change_no_other() -> None:
    models = pair()
    first = torch.tensor([int(logits_after(models[0], ids).argmax()) for ids in PROMPTS]).tolist()
    found: set[bool] = set()
    for end in {*first[:3], *range(30, 320, 60)}:
        ends = ending(models, end)
        expected = [by_hand(models, *both, 4, ends) for both in ROWS]
        assert told(models, batch_size=5) == expected
        found |= {has_ended for _, has_ended in expected}
    assert found == {False, True}


def test_one_accepted_token_is_the_teachers_answer_and_all_the_students() -> None:
    models = pair()
    ends = ending(models)
    for accepted, model in ((1, models[1]), (V, models[0])):
        assert told(models, accepted=accepted) == [by_hand((model, model), *both, V, ends) for both in ROWS]


@pytest.mark.parametrize("accepted", [1, 3, V])
def test_a_block_costs_one_pass_of_the_teacher(accepted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    models, passes = pair(), []
    forward = models[1].model.forward

    @functools.wraps(forward)
    def counted(**options: Any) -> Any:
        passes.append(tuple(options["input_ids"].shape))
        return forward(**options)

    monkeypatch.setattr(models[1].model, "forward", counted)
    told(models, ROWS[:1], accepted=accepted)
    prompt, *blocks = passes
    assert prompt == (1, 2) and max(size for _, size in blocks) == BLOCK
    if accepted == V:
        assert blocks == [(1, 8), (1, 8), (1, 5)]
    else:
        assert len(blocks) <= MOST


def test_drawn_answers_are_told_by_the_seed_and_stay_among_what_is_accepted() -> None:
    models = pair()
    ending(models)
    sampling = SamplingConfig(temperature=1.0, top_k=4)
    state = torch.random.get_rng_state()
    found = told(models, samples=3, sampling=sampling, seed=5)
    assert torch.equal(state, torch.random.get_rng_state())
    assert found == told(models, samples=3, sampling=sampling, seed=5)
    assert found != told(models, samples=3, sampling=sampling, seed=6)
    assert len(found) == 3 * len(ROWS) and found[0] != found[1]


def test_replaced_tokens_are_drawn_as_the_teacher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    models = pair()
    ending(models)
    seen: list[list[int]] = []
    decode = speculative.until_end
    monkeypatch.setattr(
        speculative, "until_end", lambda ids, ends, tok: (seen.append(ids), decode(ids, ends, tok))[1]
    )
    sampling = SamplingConfig(temperature=1.0, top_k=4)
    told(models, ROWS[:1], samples=400, batch_size=400, accepted=1, max_new_tokens=1, sampling=sampling)
    own, theirs = (logits_after(model, PROMPTS[0]) for model in models)
    likeliest = int(theirs.argmax())
    shares = [
        torch.zeros(V).scatter(0, z.topk(4).indices, z.topk(4).values.softmax(0)) for z in (own, theirs)
    ]
    # What the student says stays where it is the teacher's first choice; else the teacher draws.
    kept = shares[0][likeliest]
    expected = (1 - kept) * shares[1]
    expected[likeliest] += kept
    counts = torch.bincount(torch.tensor(seen)[:, 0], minlength=V) / 400
    assert float((counts - expected).abs().max()) < 0.1
    assert set(counts.nonzero()[:, 0].tolist()) <= set(expected.nonzero()[:, 0].tolist())


def test_a_model_that_keeps_no_keys_and_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own, theirs = pair()
    forward = theirs.model.forward

    @functools.wraps(forward)
    def keeping_nothing(**options: Any) -> Any:
        return forward(**{**options, "past_key_values": None, "use_cache": False})

    monkeypatch.setattr(theirs.model, "forward", keeping_nothing)
    with pytest.raises(
        ModelError, match=r"expected a cache of all tokens' keys and values .* set data.completions"
    ):
        told((own, theirs))
