"""Rows as a teacher with another tokenizer and chat template reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tiny import tiny_tokenizer
from tokenizers_apart import byte_level, with_sign
from transformers import PreTrainedTokenizerFast

from semalign.config import DataConfig
from semalign.data.lexicon import Lexicon
from semalign.data.rereading import reread, without_surplus, writing
from semalign.data.samples import Sample, prepare
from semalign.errors import DataError

OURS = tiny_tokenizer()
ANSWERS = ["two and three is five", " the sky\nis blue ", "🙂 é 你好", "green"]


def rows(answers: list[str]) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"ask {n}"}, {"role": "assistant", "content": text}]}
        for n, text in enumerate(answers)
    ]


def again(
    samples: list[Sample], theirs: PreTrainedTokenizerFast, positions: int | None = None, **options: Any
) -> list[Sample]:
    data = DataConfig("rows.jsonl", **options)
    lexicons = Lexicon(OURS), Lexicon(theirs)
    return reread(samples, lexicons, data, positions=positions, source="rows")


@pytest.mark.parametrize("theirs", [byte_level(), with_sign()], ids=["bytes", "sign"])
def test_both_write_the_same_answer_in_their_own_tokens_and_templates(
    theirs: PreTrainedTokenizerFast,
) -> None:
    samples = prepare(rows(ANSWERS), OURS, max_length=100)
    for sample, answer in zip(again(samples, theirs), ANSWERS, strict=True):
        ours, read = writing(sample, Lexicon(OURS)), writing(sample.for_teacher, Lexicon(theirs))
        assert ours is not None and read is not None
        surplus = without_surplus(ours, read)
        assert ours.whole[surplus[0] :] == read.whole[surplus[1] :] == answer.encode()
        assert [OURS.decode(ours.ends), theirs.decode(read.ends)] == ["<|end|>", "<eot>"]
        prompt = theirs.decode(sample.for_teacher.input_ids[: sample.for_teacher.mask.index(True)])
        assert prompt.startswith("<bos>") and "ask" in prompt and sample.sha != replace(sample, view=None).sha


def test_a_row_that_is_cut_is_cut_for_the_teacher_at_the_token_that_holds_its_last_byte() -> None:
    theirs = byte_level()
    whole = prepare(rows(["what is seven and eleven"]), OURS, max_length=100)[0]
    for length in range(whole.mask.index(True) + 1, len(whole.input_ids)):
        cut = prepare(rows(["what is seven and eleven"]), OURS, max_length=length)
        [sample] = again(cut, theirs)
        ours, read = writing(sample, Lexicon(OURS)), writing(sample.for_teacher, Lexicon(theirs))
        assert ours is not None and read is not None
        if ours.ends:
            continue
        assert read.whole.startswith(ours.whole) and not b"".join(read.texts[:-1]).startswith(ours.whole)
        assert not read.ends


def test_rows_that_the_two_write_differently_are_dropped_up_to_a_share(
    caplog: pytest.LogCaptureFixture,
) -> None:
    theirs = byte_level()
    # Its template writes no more than the first ten letters.
    theirs.chat_template = str(theirs.chat_template).replace("{{ m.content }}", "{{ m.content[:10] }}")
    samples = prepare(rows(["green", "blue", "two and three is five"]), OURS, max_length=100)
    kept = again(samples, theirs, max_dropped=0.5)
    assert [s.id for s in kept] == [s.id for s in samples[:2]]
    assert "dropped 1 of 3 rows (1 x the two chat templates write the answer differently)" in caplog.text
    with pytest.raises(DataError, match=r"1 of 3 rows had to be dropped for teacher\.tokenizer: own"):
        again(samples, theirs)
    theirs.chat_template = str(theirs.chat_template).replace("m.content[:10]", "m.content | trim")
    spaced = prepare(rows(["green", "blue \n"]), OURS, max_length=100)
    with pytest.raises(DataError, match=r"1 of 2 rows .*\(1 x one of the chat templates strips the spaces"):
        again(spaced, theirs)
    with pytest.raises(DataError, match=r"3 x longer than the teacher's 5 tokens"):
        again(samples, byte_level(), positions=5)


def test_a_control_token_within_the_answer_is_no_plain_text() -> None:
    samples = prepare(rows(["two <|user|> three"]), OURS, max_length=100)
    with pytest.raises(DataError, match="no plain text for both tokenizers"):
        again(samples, byte_level())
