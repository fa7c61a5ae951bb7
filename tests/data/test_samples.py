"""Rows of every kind become samples: cut, dropped and counted, named, and shown as text."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semalign.data import Sample, effective_max_length, prepare, render_example
from semalign.data.samples import prepare_each
from semalign.errors import DataError

from .marked import answers, chat, only, supervised_text, texts


def test_crlf_and_other_scripts_survive(tokenizer):
    tok = tokenizer("chatml")
    for answer in ("def f(x):\r\n  return x\r\n", "你好,世界 👩‍👩‍👧‍👦", "שלום עולם", "na\u0308ive\u2028line"):
        sample = only(chat("Q\r\nR", answer), tok)
        assert supervised_text(sample, tok) == answer + "<|im_end|>"
        assert "Q\r\nR" in render_example(sample, tok)


def test_chat_pairs_equal_messages(tokenizer):
    tok, row = tokenizer("gemma"), chat("Q", "A", "R", "B")
    pair = {"prompt": row["messages"][:3], "completion": row["messages"][3:]}
    assert only(pair, tok).sha == only(row, tok).sha


def test_text_and_supervise_all(tokenizer):
    tok = tokenizer("chatml")
    for row, options in (({"text": "Just text"}, {}), (chat("Q", "A"), {"supervise": "all"})):
        sample = only(row, tok, **options)
        assert sample.mask == [False] + [True] * (len(sample.input_ids) - 1)
    assert tok.decode(only({"text": "Just text"}, tok).input_ids) == "Just text</s>"


def test_tokenised_rows(tokenizer):
    tok = tokenizer("none")
    ids = [9, 10, 11, 12]
    assert only({"input_ids": ids, "labels": [-100, -100, 11, 12]}, tok).mask == [False, False, True, True]
    assert only({"input_ids": ids, "completion_mask": [0, 0, 0, 1]}, tok).mask == [False, False, False, True]
    assert only({"input_ids": ids}, tok).mask == [False, True, True, True]
    assert only({"input_ids": ids, "labels": [-100] * 3 + [12]}, tok, supervise="all").supervised == 3
    with pytest.raises(DataError, match=r"rows:1: labels\[1\] is 11, expected -100 or input_ids\[1\] = 10"):
        only({"input_ids": ids, "labels": [-100, 11, 12, 12]}, tok)
    with pytest.raises(DataError, match=r"input_ids holds 9999, expected ids from 0 to \d+; tokenise"):
        only({"input_ids": [9999]}, tok)


@settings(max_examples=60)
@given(question=texts, answer=answers, max_length=st.integers(2, 60))
def test_cutting_keeps_the_prompt_and_a_part_of_the_answer_or_drops(tokenizer, question, answer, max_length):
    tok, row = tokenizer("chatml"), chat(question, answer)
    whole = only(row, tok)
    if whole.mask.index(True) >= max_length:
        with pytest.raises(DataError, match=r"0 usable samples of 1 rows .*1 x prompt fills max_length"):
            only(row, tok, max_length=max_length)
    else:
        cut = only(row, tok, max_length=max_length)
        assert (cut.input_ids, cut.mask) == (whole.input_ids[:max_length], whole.mask[:max_length])
        assert cut.supervised > 0


def test_dropped_rows_are_counted_by_reason(tokenizer, caplog):
    bad = [chat("Q", ""), chat("Q", " \n\t"), chat("Q", None), {"messages": None}, {"messages": []}]
    bad += [{"prompt": "Q", "completion": None}, {"text": ""}, {"input_ids": []}]
    bad += [chat("Q", "A", "and now?"), {"input_ids": [9, 10], "labels": [-100, -100]}]
    good = [chat("Q", "A")] * 10
    with caplog.at_level(logging.WARNING):
        samples = prepare(good + bad, tokenizer("chatml"), max_length=99, max_dropped=0.5, source="mine")
    assert len(samples) == 10
    assert "mine: dropped 10 of 20 rows (8 x empty, null or blank completion; 1 x conversation" in caplog.text
    with pytest.raises(DataError, match=r"10 of 20 rows had to be dropped \(8 x empty.*share of 0.1"):
        prepare(good + bad, tokenizer("chatml"), max_length=99)
    with pytest.raises(DataError, match=r"0 usable samples of 10 rows .*8 x empty"):
        prepare(bad, tokenizer("chatml"), max_length=99, max_dropped=1.0)
    with pytest.raises(DataError, match=r"0 usable samples of 0 rows .there are no rows"):
        prepare([], tokenizer("chatml"), max_length=99)


def test_each_row_has_its_sample_or_none_be_it_every_one(tokenizer):
    good = {"id": "g", "prompt": "1 + 1 =", "completion": " 2"}
    long = {"id": "l", "prompt": "1 + 1 = " * 40, "completion": " 2"}
    options = {"thinking": None, "source": "mine", "max_length": 20}
    tokens = tokenizer("chatml")
    both = prepare_each([long, good], tokens, **options)
    assert both[0] is None and both[1] == prepare([good], tokens, max_length=20, source="mine")[0]
    assert prepare_each([long, long | {"completion": ""}], tokens, **options) == [None, None]
    assert prepare_each([long], tokens, thinking=None, source="mine")[0].input_ids, (
        "without a limit it is whole"
    )


def test_ids_and_tasks(tokenizer):
    rows = [{"id": 7, "dataset": "gsm", **chat("Q", "A")}, {"task": "code", **chat("Q", "A")}]
    first, second = prepare(rows, tokenizer("chatml"), max_length=99, source="mine")
    assert (first.id, first.task, second.id, second.task) == ("7", "gsm", "mine:2", "code")
    assert first.row is rows[0]
    assert first.sha == second.sha


def test_sha_tells_ids_and_masks_apart():
    base = Sample([1, 2, 3], [False, True, True], "a")
    others = [Sample([1, 2, 4], base.mask, "a"), Sample([1, 2, 3], [False, False, True], "a")]
    others.append(Sample([1, 2], [False, True], "a"))
    assert len({s.sha for s in [base, *others]}) == 4
    assert Sample([1, 2, 3], [False, True, True], "b", "task", {"x": 1}).sha == base.sha


def test_render_example_with_a_character_cut_in_two(tokenizer):
    tok = tokenizer("none")
    ids = tok("世", add_special_tokens=False)["input_ids"]
    if len(ids) == 1:
        ids = tok("ж", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    shown = render_example(Sample(ids, [False] + [True] * (len(ids) - 1), "a"), tok)
    assert shown.replace("⟦", "").replace("⟧", "") == tok.decode(ids)


def test_effective_max_length(tokenizer, caplog):
    tok = tokenizer("none")
    with caplog.at_level(logging.WARNING):
        assert tok.model_max_length > 10**20
        assert effective_max_length(tok, 64, 1024) == 64
    assert "states no model_max_length; using the model config's 64 positions" in caplog.text
    assert "data.max_length 1024 exceeds the model's limit; using 64" in caplog.text
    assert effective_max_length(tok, 64, 16) == 16
    assert effective_max_length(tok, None, 1024) == 1024
    limited = SimpleNamespace(model_max_length=32)
    assert effective_max_length(limited, 64, 1024) == 32
    assert effective_max_length(limited, None, 1024) == 32
