"""Padding that changes nothing, and batches for passes in which order does not matter."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from semalign.data import collate, length_batches, prepare


@given(
    st.lists(st.integers(1, 50), max_size=40), st.one_of(st.none(), st.integers(1, 200)), st.integers(1, 9)
)
def test_every_index_once_within_the_limits_longest_first(lengths, max_tokens, batch_size):
    batches = length_batches(lengths, max_tokens=max_tokens, batch_size=batch_size)
    order = [i for batch in batches for i in batch]
    assert order == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert max_tokens is None or len(batch) == 1 or len(batch) * lengths[batch[0]] <= max_tokens


@given(st.lists(st.integers(1, 50), min_size=2, max_size=40), st.integers(1, 200), st.integers(1, 9))
def test_no_batch_could_have_taken_the_next_row(lengths, max_tokens, batch_size):
    batches = length_batches(lengths, max_tokens=max_tokens, batch_size=batch_size)
    for batch in batches[:-1]:
        assert len(batch) == batch_size or (len(batch) + 1) * lengths[batch[0]] > max_tokens


def test_padding_changes_nothing(tokenizer):
    tok = tokenizer("chatml", eos="<|im_end|>")
    turns = [(("user", "Q" * n), ("assistant", "A" * (n + 1))) for n in range(1, 9)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in pair]} for pair in turns]
    samples = prepare(rows, tok, max_length=4096)
    alone, together = [collate([s]) for s in samples], collate(samples, pad_id=tok.eos_token_id)
    for b, (sample, batch) in enumerate(zip(samples, alone, strict=True)):
        length = len(sample.input_ids)
        assert batch["input_ids"].tolist() == [sample.input_ids]
        for key, tensor in batch.items():
            assert together[key][b, :length].equal(tensor[0]), "padding is on the right and alters no sample"
        assert not together["mask"][b, length:].any()
        assert not together["attention_mask"][b, length:].any()
        assert together["mask"][b].sum() == sample.supervised, "the real end of turn stays supervised"
