"""What a chat template leaves out of a row is counted; thinking is kept or dropped on purpose."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from semalign.data import encode_prompt, prepare
from semalign.data.check import Tokens, check_rows
from semalign.data.samples import unseen_counts
from semalign.data.seen import forms, is_seen, thinking_of, unseen, without_thinking
from semalign.errors import DataError

from .conftest import build
from .marked import only, supervised_text

# The last answer shows what is before </think> only where it comes in a field of its own.
FIELD = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
    "{{ m.content.split('</think>')[-1].lstrip() }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Thinking is never shown, and only users, assistants and a first system turn are.
BARE = (
    "{% for m in messages %}{% if m.role in ('user', 'assistant') or loop.first and m.role == 'system' %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1].lstrip() + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INSIDE = {"role": "assistant", "content": "<think>\nseven and one\n</think>\n\nit is eight"}
APART = {"role": "assistant", "content": "it is eight", "reasoning_content": "seven and one"}
QUESTION = {"role": "user", "content": "what is 7 + 1?"}


def with_template(template: str) -> PreTrainedTokenizerBase:
    tokenizer = copy.copy(build("chatml"))
    tokenizer.chat_template = template
    return tokenizer


def row(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"messages": list(turns)}


@pytest.mark.parametrize(
    "turn", [INSIDE, APART, {**APART, "reasoning_content": None, "thinking": "seven and one"}]
)
def test_thinking_is_told_from_the_answer_in_every_form(turn: dict[str, Any]) -> None:
    assert thinking_of(turn) == "seven and one"
    bare = without_thinking(turn)
    assert bare == {"role": "assistant", "content": "it is eight"} and without_thinking(bare) == bare
    assert all(thinking_of(form) == "seven and one" for form in forms(turn))
    assert [form["content"] for form in forms(turn)][1:] == [INSIDE["content"], "it is eight"]


def test_a_user_who_writes_of_thinking_does_not_think() -> None:
    turn = {"role": "user", "content": "what does </think> mean?"}
    assert without_thinking(turn) == turn and unseen([turn], "what does </think> mean?") == []


def test_a_text_is_seen_whatever_its_white_space_and_also_as_json() -> None:
    assert (
        is_seen(" a\n b ", "x a b y") and is_seen('say "a"\nb', r'{"x": "say \"a\"\nb"}') and is_seen("", "")
    )
    assert not is_seen("ab", "a b")


@pytest.mark.parametrize("turn", [INSIDE, APART])
def test_thinking_that_the_template_leaves_out_is_counted(
    turn: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        (sample,) = prepare([row(QUESTION, turn)], with_template(BARE), max_length=99)
    assert sample.lacks_thinking and not sample.unseen
    assert "leaves out the thinking of 1 answers; data.thinking keeps or drops it" in caplog.text


@pytest.mark.parametrize("turn", [INSIDE, APART])
@pytest.mark.parametrize("template", [BARE, FIELD])
def test_thinking_is_dropped_on_purpose(
    turn: dict[str, Any], template: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = with_template(template)
    with caplog.at_level(logging.WARNING):
        sample = only(row(QUESTION, turn), tokenizer, thinking="drop")
    assert supervised_text(sample, tokenizer) == "it is eight<|im_end|>" and not sample.lacks_thinking
    assert not caplog.text


@pytest.mark.parametrize("turn", [INSIDE, APART])
@pytest.mark.parametrize("template", [build("chatml").chat_template, FIELD])
@pytest.mark.parametrize("supervise", ["completion", "all"])
def test_thinking_is_kept_in_the_form_that_the_template_writes(
    turn: dict[str, Any], template: str, supervise: str
) -> None:
    tokenizer = with_template(template)
    sample = only(row(QUESTION, turn), tokenizer, thinking="keep", supervise=supervise)
    shown = supervised_text(sample, tokenizer)
    assert "seven and one" in shown and shown.rstrip().endswith("it is eight<|im_end|>")
    assert not sample.lacks_thinking


def test_thinking_that_cannot_be_kept_stops_with_a_sentence() -> None:
    with pytest.raises(
        DataError, match=r"^rows:1: data.thinking is keep, but the chat template writes .* neither"
    ):
        only(row(QUESTION, INSIDE), with_template(BARE), thinking="keep")
    answer = {"role": "assistant", "content": "eight"}
    assert only(row(QUESTION, answer), with_template(BARE), thinking="keep"), "there is none to keep"


def test_turns_that_the_template_leaves_out_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    late = row(
        QUESTION, APART, {"role": "system", "content": "in French"}, QUESTION, {**APART, "content": "huit"}
    )
    rows = [
        late,
        row(QUESTION, {"role": "tool", "content": "8.0"}, INSIDE),
        row(QUESTION, {**INSIDE, "content": "8"}),
    ]
    with caplog.at_level(logging.WARNING):
        samples = prepare(rows, with_template(BARE), max_length=99)
    assert [sample.unseen for sample in samples] == [(3,), (2,), ()]
    assert "rows: the chat template leaves out the text of 2 turns in 2 rows" in caplog.text
    counts = {"unseen_turns": 2, "rows_with_unseen_turns": 2, "unseen_thinking": 2}
    assert unseen_counts(samples) == counts
    found = check_rows([(f"r:{n}", r) for n, r in enumerate(rows)], tokens=Tokens(with_template(BARE), 99))
    assert {key: found["tokens"][key] for key in counts} == counts and found["tokens"]["unseen"] == [
        "r:0",
        "r:1",
    ]


def test_a_row_of_which_no_prompt_is_left_stops() -> None:
    turns = [{"role": "tool", "content": "17"}, {"role": "system", "content": "add"}]
    for supervise in ("completion", "all"):
        with pytest.raises(
            DataError, match=r"^rows:1: .* none of the turns before the answer \(tool, system\)"
        ):
            prepare([row(*turns, INSIDE)], with_template(BARE), max_length=99, supervise=supervise)
    with pytest.raises(DataError, match=r"^prompt: .* none of the turns before the answer"):
        encode_prompt(turns, with_template(BARE))


def test_an_answer_of_which_the_template_writes_nothing_is_dropped() -> None:
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    }
    template = BARE.replace("m.content.split", "(m.content or '').split")
    with pytest.raises(DataError, match="1 x answer of which the chat template writes nothing"):
        prepare([row(QUESTION, call)], with_template(template), max_length=99)
