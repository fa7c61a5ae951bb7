"""Where in a rendered conversation the answer lies, what a template refuses, and rows that lack an answer."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from semalign.data import encode_prompt, prepare, templates_agree
from semalign.data.chat import (
    answered,
    asked,
    common_prefix,
    conversation,
    encode_next_turn,
    lacks_answer,
    render,
    render_answer,
)
from semalign.data.kinds import Kind
from semalign.errors import DataError

from .marked import BEFORE, END, answers, chat, only, supervised_text, texts

Build = Callable[..., PreTrainedTokenizerFast]


def test_prompt_of_a_sample_is_what_evaluation_encodes(tokenizer):
    for style in ("chatml", "llama2", "gemma"):
        tok, row = tokenizer(style), chat("Where?", "Here.")
        sample = only(row, tok)
        assert sample.input_ids[: sample.mask.index(True)] == encode_prompt(row["messages"][:1], tok)


def test_answer_that_contains_control_tokens_and_the_question_again(tokenizer):
    tok = tokenizer("chatml")
    sample = only(chat("Say <|im_end|> twice", "<|im_end|> Say <|im_end|> twice <|im_end|>"), tok)
    assert supervised_text(sample, tok) == "<|im_end|> Say <|im_end|> twice <|im_end|><|im_end|>"


def test_reasoning_block_opened_by_the_template(tokenizer):
    tok = tokenizer("empty_reasoning")
    assert supervised_text(only(chat("Q", "A."), tok), tok) == "<think>\n\n</think>\n\nA.<|im_end|>"
    tok = tokenizer("reasoning")
    # An answer that begins as the generation prompt goes on is not taken for the prompt ...
    assert supervised_text(only(chat("Q", "<tall>"), tok), tok) == "<tall></s>"
    # ... unless it really is how the model is prompted.
    assert supervised_text(only(chat("Q", "<think>\nhm</think>4"), tok), tok) == "hm</think>4</s>"


def test_template_that_hides_the_answer_stops(tokenizer):
    with pytest.raises(DataError, match=r"rows:1: the chat template renders .* cannot be told apart"):
        prepare([chat("Q", "A")], tokenizer("hides_answer"), max_length=99)


def test_missing_or_refusing_template_names_role_and_sample(tokenizer):
    with pytest.raises(DataError, match=r"^mine:1 .id a7.: expected a tokenizer with a chat template"):
        prepare([{"id": "a7", **chat("Q", "A")}], tokenizer("none"), max_length=99, source="mine")
    rows = [chat("Q", "A"), chat("Q", "A", system="Be brief.")]
    with pytest.raises(DataError, match=r"rows:2: the chat template refuses the 'system' turn \(System role"):
        prepare(rows, tokenizer("gemma"), max_length=99)
    tool = {
        "messages": [*chat("Q")["messages"], {"role": "tool", "content": "1"}, *chat("Q", "A")["messages"]]
    }
    with pytest.raises(DataError, match="refuses the 'tool' turn"):
        prepare([tool], tokenizer("llama2"), max_length=99)


def test_templates_agree(tokenizer):
    rows = [{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}]
    system = [{"messages": [{"role": "system", "content": "S"}, *rows[0]["messages"]]}]
    assert templates_agree(tokenizer("gemma"), tokenizer("gemma"), rows)
    assert not templates_agree(tokenizer("gemma"), tokenizer("chatml"), rows)
    assert not templates_agree(tokenizer("gemma"), tokenizer("gemma"), system), "a refusal is no agreement"
    assert not templates_agree(tokenizer("chatml"), tokenizer("none"), rows)
    assert templates_agree(tokenizer("chatml"), tokenizer("none"), [{"prompt": "a", "completion": "b"}])


@pytest.mark.parametrize("style", ["chatml", "llama2", "gemma", "reasoning"])
@settings(max_examples=40)
@given(question=texts, answer=answers)
def test_the_answer_lies_between_the_two_places_that_a_rendering_names(
    tokenizer: Build, style: str, question: str, answer: str
) -> None:
    found = render_answer(chat(question, answer)["messages"], tokenizer(style), "x")
    shown = answer.strip() if style == "gemma" else answer
    between = found.text[found.answer : found.tail]
    assert between in (shown, BEFORE[style] + shown)
    assert found.text[found.tail :].rstrip("\n") == END[style]
    assert found.text == render(chat(question, answer)["messages"], tokenizer(style), "x", prompt=False)


def test_a_conversation_may_begin_with_the_answer(tokenizer: Build) -> None:
    found = render_answer([{"role": "assistant", "content": "Hello."}], tokenizer("chatml"), "x")
    assert found.text[found.answer : found.tail] == "Hello."
    assert found.text[: found.answer] == "<|im_start|>assistant\n"


def test_the_generation_prompt_is_added_when_asked_for(tokenizer: Build) -> None:
    turns, tok = chat("Q", "A", "R")["messages"], tokenizer("chatml")
    without = render(turns, tok, "x", prompt=False)
    assert render(turns, tok, "x", prompt=True) == without + "<|im_start|>assistant\n"


def test_the_role_that_is_refused_is_the_first_with_which_the_template_fails(tokenizer: Build) -> None:
    turns = [
        *chat("Q", "A")["messages"],
        {"role": "tool", "content": "1"},
        {"role": "critic", "content": "2"},
    ]
    with pytest.raises(DataError, match=r"^mine: the chat template refuses the 'tool' turn \(Only user"):
        render(turns, tokenizer("llama2"), "mine", prompt=False)
    picky = copy.copy(tokenizer("chatml"))
    picky.chat_template = "{% if add_generation_prompt %}{{ raise_exception('no more') }}{% endif %}"
    with pytest.raises(DataError, match=r"refuses the 'user' turn \(no more, line 1\)"):
        render(chat("Q", "A", "R")["messages"], picky, "mine", prompt=True)


def test_a_turn_without_a_text_is_refused_by_a_template_that_adds_it_up(tokenizer: Build) -> None:
    with pytest.raises(DataError, match="refuses the 'user' turn"):
        render([{"role": "user", "content": None}], tokenizer("chatml"), "mine", prompt=False)


@given(st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_the_common_beginning_of_two_strings(first: str, second: str) -> None:
    assert common_prefix(first, second) == max(
        n for n in range(7) if first[:n] == second[:n] and n <= min(len(first), len(second))
    )


@pytest.mark.parametrize("style", ["chatml", "llama2", "gemma", "reasoning", "open"])
def test_the_next_turn_begins_where_the_user_s_text_does(tokenizer: Build, style: str) -> None:
    tok, turns = tokenizer(style), chat("Q", "A")["messages"]
    shown = tok.decode(encode_next_turn(turns, tok))
    whole = render([*turns, {"role": "user", "content": "next"}], tok, "x", prompt=False)
    assert re.fullmatch(re.escape(shown) + r"next(\W.*)?", whole, re.DOTALL)


def test_what_was_asked_is_the_conversation_without_the_answer_that_ends_it() -> None:
    turns = chat("Q", "A", "R", "B")["messages"]
    assert asked(turns) == turns[:3] and asked(turns[:3]) == turns[:3] and asked([]) == []
    assert len(turns) == 4, "the given list stays as it is"


def test_both_forms_of_a_conversation_give_its_messages() -> None:
    turns = chat("Q", "A", "R", "B")["messages"]
    assert conversation({"messages": turns}, Kind.MESSAGES) == turns
    assert conversation({"prompt": turns[:3], "completion": turns[3:]}, Kind.CHAT_PAIR) == turns
    assert conversation({"prompt": turns[:3], "completion": None}, Kind.CHAT_PAIR) == turns[:3]
    assert conversation({"prompt": turns[:3]}, Kind.CHAT_PAIR) == turns[:3]
    assert conversation({"messages": None}, Kind.MESSAGES) == []


def test_only_a_conversation_that_no_assistant_turn_ends_lacks_an_answer() -> None:
    turns = chat("Q", "A", "R")["messages"]
    for row in ({"messages": turns}, {"prompt": turns}, {"prompt": turns, "completion": None}):
        assert lacks_answer(row)
        assert not lacks_answer(answered(row, "B"))
    for row in (
        {"messages": turns[:2]},
        {"messages": []},
        {"messages": None},
        {"text": "Q"},
        {"input_ids": [1]},
    ):
        assert not lacks_answer(row)
    assert not lacks_answer({"prompt": "Q", "completion": None}), "strings are no conversation"


@pytest.mark.parametrize("own", ["A", None])
def test_an_answer_takes_the_place_of_the_own_one_or_of_none(own: str | None) -> None:
    turns = chat("Q", *([own] if own else []))["messages"]
    expected = {"id": 7, "task": "t", **chat("Q", "new")}
    assert answered({"id": 7, "messages": turns, "task": "t"}, "new") == expected
    pair = {"id": 7, "prompt": turns[:1], "completion": turns[1:], "task": "t"}
    assert answered(pair, "new") == expected and pair["completion"] == turns[1:]
