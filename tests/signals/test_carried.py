"""A teacher's distribution in its own tokens, carried to another tokenizer's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer
from tokenizers_apart import byte_level, with_sign
from transformers import PreTrainedTokenizerFast

from semalign.config import DataConfig
from semalign.data.lexicon import Lexicon
from semalign.data.rereading import reread
from semalign.data.samples import Sample, prepare
from semalign.signals.carried import Carrier
from semalign.signals.served import Told

OURS, BYTES, SIGN = tiny_tokenizer(), byte_level(), with_sign()
SINGLE = byte_level(size=260)
"""Without merges: every byte is a token."""
TEXTS = st.text(alphabet=st.sampled_from("aehinot wdr\n🙂é你"), min_size=1, max_size=20)


def sample_of(answer: str, theirs: PreTrainedTokenizerFast, ours: PreTrainedTokenizerFast = OURS) -> Sample:
    row: dict[str, Any] = {"prompt": [{"role": "user", "content": "go"}]}
    row["completion"] = [{"role": "assistant", "content": answer}]
    made = prepare([row], ours, max_length=200)
    [found] = reread(
        made, (Lexicon(ours), Lexicon(theirs)), DataConfig("rows"), positions=None, source="rows"
    )
    return found


def told_of(sample: Sample, tokenizer: PreTrainedTokenizerFast, k: int, seed: int = 0) -> Told:
    """A random teacher: its K likeliest tokens at each of its supervised positions."""
    generator = torch.Generator().manual_seed(seed)
    labels = [i for i, m in zip(sample.for_teacher.input_ids, sample.for_teacher.mask, strict=True) if m]
    logits = 4 * torch.randn(len(labels), len(tokenizer), generator=generator)
    logits[torch.arange(len(labels)), torch.tensor(labels)] += 6
    logp = logits.log_softmax(1)
    top = logp.topk(k)
    return Told(top.indices, top.values, logp.gather(1, torch.tensor(labels)[:, None])[:, 0])


def entries(told: Told, n: int) -> dict[int, float]:
    pairs = zip(told.ids_NK[n].tolist(), told.logp_NK[n].exp().tolist(), strict=True)
    return {index: p for index, p in pairs if p > 0}


def made(
    sample: Sample, tokens: list[tuple[dict[str, float], str]], tokenizer: PreTrainedTokenizerFast
) -> Told:
    """What a teacher tells: by position the probabilities of some tokens, and which is the row's own."""
    k = max(len(said) for said, _ in tokens)
    ids, logp = torch.zeros(len(tokens), k, dtype=torch.long), torch.full((len(tokens), k), -torch.inf)
    for n, (said, _) in enumerate(tokens):
        for slot, (token, p) in enumerate(said.items()):
            ids[n, slot] = tokenizer.convert_tokens_to_ids(token)
            logp[n, slot] = torch.tensor(p).log()
    own = [said[label] for said, label in tokens]
    assert [tokenizer.convert_tokens_to_ids(label) for _, label in tokens] == [
        i for i, m in zip(sample.for_teacher.input_ids, sample.for_teacher.mask, strict=True) if m
    ]
    return Told(ids, logp, torch.tensor(own).log())


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.integers(0, 5))
def test_with_one_tokenizer_on_both_sides_nothing_changes(answer: str, seed: int) -> None:
    assume(answer.strip())
    sample = sample_of(answer, OURS)
    told = told_of(sample, OURS, 12, seed)
    carrier = Carrier(Lexicon(OURS), Lexicon(OURS), 12)
    carried = carrier.carry(told, sample)
    assert torch.allclose(carried.label_logp_N, told.label_logp_N, atol=1e-5)
    end, control = OURS.eos_token_id, Lexicon(OURS)
    for n in range(len(told.ids_NK)):
        # Other control tokens are left to the rest.
        known = {i: p for i, p in entries(told, n).items() if i == end or control.text_of(i) is not None}
        found = entries(carried, n)
        assert all(found[i] == pytest.approx(p, abs=1e-6) for i, p in known.items())
        assert len(found.keys() - known.keys()) <= 1, "at most the row's own token besides"
    assert carrier.counted.as_json()["exact_tokens"] == 1


@settings(max_examples=60, deadline=None)
@given(
    TEXTS,
    st.integers(0, 5),
    st.sampled_from([(BYTES, OURS), (OURS, BYTES), (SIGN, OURS), (BYTES, SIGN), (SINGLE, OURS)]),
)
def test_what_is_carried_is_a_distribution_with_the_row_s_own_token_in_it(
    answer: str, seed: int, pair: tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]
) -> None:
    assume(answer.strip())
    theirs, ours = pair
    sample = sample_of(answer, theirs, ours)
    carrier = Carrier(Lexicon(theirs), Lexicon(ours), 16)
    carried = carrier.carry(told_of(sample, theirs, 16, seed), sample)
    assert len(carried.ids_NK) == sample.supervised
    assert float(carried.logp_NK.exp().sum(1).max()) <= 1 + 1e-5
    assert torch.isfinite(carried.label_logp_N).all() and float(carried.label_logp_N.max()) <= 1e-6
    for n in range(len(carried.ids_NK)):
        kept = carried.ids_NK[n][carried.logp_NK[n] > -torch.inf].tolist()
        assert len(kept) == len(set(kept)) and all(i < len(ours) for i in kept)
    shares = carrier.counted.as_json()
    assert 0 <= shares["exact_tokens"] <= 1 and 0 < shares["carried_mass"] <= 1 + 1e-6


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.integers(0, 5))
def test_of_a_teacher_with_shorter_tokens_the_probability_of_the_text_is_kept(answer: str, seed: int) -> None:
    assume(answer.strip())
    sample = sample_of(answer, SINGLE)
    told = told_of(sample, SINGLE, 260, seed)
    carried = Carrier(Lexicon(SINGLE), Lexicon(OURS), 16).carry(told, sample)
    # Every token of the student's is some of the teacher's, one after the other.
    assert float(carried.label_logp_N.sum()) == pytest.approx(float(told.label_logp_N.sum()), abs=1e-3)


def test_a_longer_token_of_the_teacher_s_is_begun_and_then_ended() -> None:
    """The teacher has "Ġand" in one token, the student in single bytes."""
    sample = sample_of("x and", OURS, SINGLE)
    end = {"<|end|>": 0.9, "a": 0.05}
    first = {"x": 1.0}
    second = {"Ġand": 0.6, "Ġan": 0.1, "Ġthree": 0.2, "a": 0.05}
    told = made(sample, [(first, "x"), (second, "Ġand"), (end, "<|end|>")], OURS)
    carrier = Carrier(Lexicon(OURS), Lexicon(SINGLE), 8)
    carried = carrier.carry(told, sample)
    ids = {c: SINGLE.convert_tokens_to_ids(c) for c in ("x", "Ġ", "a", "n", "d", "t", "<eot>")}
    # " ": all that begins with one. Then the teacher's candidates that agree so far, renormalised.
    assert entries(carried, 1) == pytest.approx({ids["Ġ"]: 0.9, ids["a"]: 0.05})
    assert entries(carried, 2) == pytest.approx({ids["a"]: 0.7 / 0.9, ids["t"]: 0.2 / 0.9})
    assert entries(carried, 3) == pytest.approx({ids["n"]: 1.0})
    # What follows " an" where it ends there is not known.
    assert entries(carried, 4) == pytest.approx({ids["d"]: 0.6 / 0.7})
    assert entries(carried, 5) == pytest.approx({ids["<eot>"]: 0.9, ids["a"]: 0.05})
    assert carried.label_logp_N.exp().tolist() == pytest.approx([1, 0.9, 0.7 / 0.9, 1, 0.6 / 0.7, 0.9])
    assert carrier.counted.as_json()["exact_tokens"] == 2 / 6


def test_a_longer_token_of_the_student_s_gets_the_product_and_its_beginning_nothing() -> None:
    sample = sample_of("x and", SINGLE)
    letters = [
        ({"x": 1.0}, "x"),
        ({"Ġ": 0.8, "a": 0.2}, "Ġ"),
        ({"a": 0.5, "t": 0.5}, "a"),
        ({"n": 0.5, "m": 0.5}, "n"),
        ({"d": 0.5}, "d"),
        ({"<eot>": 1.0}, "<eot>"),
    ]
    told = made(sample, letters, SINGLE)
    carried = Carrier(Lexicon(SINGLE), Lexicon(OURS), 8).carry(told, sample)
    ids = {t: OURS.convert_tokens_to_ids(t) for t in ("x", "Ġand", "a", "<|end|>")}
    assert sample.supervised == 3
    # The other seven tenths of " " begin words that are not known.
    assert entries(carried, 1) == pytest.approx({ids["Ġand"]: 0.8 * 0.125, ids["a"]: 0.2})
    assert entries(carried, 2) == pytest.approx({ids["<|end|>"]: 1.0})


def test_the_space_that_one_of_the_two_puts_before_the_first_word_is_not_counted() -> None:
    sample = sample_of("and", SIGN)
    first = {"▁and": 0.5, "▁is": 0.25, "i": 0.125}
    told = made(sample, [(first, "▁and"), ({"<eot>": 1.0}, "<eot>")], SIGN)
    carried = Carrier(Lexicon(SIGN), Lexicon(OURS), 8).carry(told, sample)
    labels = [i for i, m in zip(sample.input_ids, sample.mask, strict=True) if m]
    assert OURS.decode(labels) == "and<|end|>" and len(labels) > 2
    # "▁is" is "is" at the beginning, as the student would write it.
    found = {OURS.convert_ids_to_tokens(i): p for i, p in entries(carried, 0).items()}
    assert found == pytest.approx({OURS.convert_ids_to_tokens(labels[0]): 0.5, "is": 0.25, "i": 0.125})
    assert float(carried.label_logp_N.exp().prod()) == pytest.approx(0.5)
