"""Which tokens of a text are marked, verified by decoding them, for several families of template and tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from semalign.data import render_example
from semalign.data.tokens import (
    control_ids,
    encode,
    mark_all,
    mark_completion,
    tokens_within,
    with_eos,
)

from .marked import BEFORE, END, answers, chat, only, supervised_text, texts

Build = Callable[..., PreTrainedTokenizerFast]


@pytest.mark.parametrize("style", ["chatml", "llama2", "gemma", "reasoning"])
@settings(max_examples=60)
@given(data=st.data())
def test_supervised_tokens_are_the_answer_and_its_end(tokenizer, style, data):
    tok = tokenizer(style)
    earlier = data.draw(st.lists(st.tuples(texts, texts), max_size=2))
    question, answer = data.draw(texts), data.draw(answers)
    sample = only(chat(*[t for pair in earlier for t in pair], question, answer), tok)
    shown = answer.strip() if style == "gemma" else answer
    assert supervised_text(sample, tok) == BEFORE[style] + shown + END[style]
    assert sample.mask[0] is False


@pytest.mark.parametrize("style", ["chatml", "llama2", "gemma", "reasoning"])
@settings(max_examples=40)
@given(question=texts, answer=texts.filter(str.strip))
def test_an_answer_that_starts_with_space_never_loses_a_token(tokenizer, style, question, answer):
    tok = tokenizer(style)
    shown = answer.strip() if style == "gemma" else answer
    sample = only(chat(question, answer), tok)
    supervised, expected = supervised_text(sample, tok), BEFORE[style] + shown + END[style]
    assert supervised.endswith(expected)
    # Prompt text is supervised only where it shares a token with the answer.
    extra = supervised.removesuffix(expected)
    assert tok.decode(sample.input_ids[sample.mask.index(True)]).startswith(extra)


def test_a_token_across_the_boundary_is_supervised(tokenizer):
    tok = tokenizer("chatml")
    assert len(tok("\n\n", add_special_tokens=False)["input_ids"]) == 1, (
        "the corpus teaches a double line feed"
    )
    sample = only(chat("Question?", "\n\nfoo"), tok)
    assert supervised_text(sample, tok) == "\n\n\nfoo<|im_end|>", "the header's line feed is in that token"


def test_tail_after_the_end_of_turn_is_kept_but_not_supervised(tokenizer):
    tok = tokenizer("chatml")
    sample = only(chat("Q", "A", system="Be brief."), tok)
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    assert tok.decode(sample.input_ids) == text + "A<|im_end|>\n"
    assert render_example(sample, tok) == text + "⟦A<|im_end|>⟧\n"
    assert render_example(sample, tok, marks=("\x1b[1m", "\x1b[0m")) == text + "\x1b[1mA<|im_end|>\x1b[0m\n"


def test_template_without_end_of_turn_gets_eos(tokenizer):
    tok = tokenizer("open")
    assert supervised_text(only(chat("Q", "yes", "R", "no"), tok), tok) == "no</s>"
    tok = tokenizer("open", eos=None)
    assert supervised_text(only(chat("Q", "yes"), tok), tok) == "yes"
    tok = tokenizer("plain_end")
    assert supervised_text(only(chat("Q", "answer"), tok), tok) == " answer [END]", (
        "the token ' answer' spans the boundary"
    )


def test_string_pairs_are_joined_and_end_with_eos(tokenizer):
    for tok in (tokenizer("none"), tokenizer("chatml"), tokenizer("none", bos=True)):
        sample = only({"prompt": "The answer is:", "completion": " B.\n"}, tok)
        assert supervised_text(sample, tok) == " B.\n</s>"
        start = "<s>" if tok("x")["input_ids"][0] == tok.bos_token_id else ""
        assert tok.decode(sample.input_ids) == start + "The answer is: B.\n</s>"


@pytest.mark.parametrize("adds", ["$A", "<s> $A", "$A </s>", "<s> $A </s>"])
@pytest.mark.parametrize("after", ["", "\n"])
def test_a_row_that_was_rendered_already_gets_no_second_bos_or_eos(tokenizer, adds, after):
    tok = copy.deepcopy(tokenizer("none"))
    special = [(token, tok.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(adds, special_tokens=special)
    text = f"<s><|user|>Is it B?<|assistant|> B</s>{after}"
    prompt, answer = text.split(" B</s>")[0], f" B</s>{after}"
    for row in ({"text": text}, {"prompt": prompt, "completion": answer}):
        sample = only(row, tok)
        assert tok.decode(sample.input_ids) == text
        assert supervised_text(sample, tok) == (answer if "prompt" in row else text.removeprefix("<s>"))
    turns = only({"text": f"<s>A</s><s>B</s>{after}"}, tok)
    assert tok.decode(turns.input_ids) == f"<s>A</s><s>B</s>{after}", "those inside stay"


def test_tokenizer_that_adds_eos_itself(tokenizer):
    tok = copy.deepcopy(tokenizer("none"))
    eos = ("</s>", tok.eos_token_id)
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[eos])
    sample = only({"prompt": "The answer is:", "completion": " B"}, tok)
    assert render_example(sample, tok) == "The answer is:⟦ B</s>⟧", "one eos, and no prompt token supervised"


def test_white_space_that_is_a_token_of_its_own_ends_no_turn(tokenizer):
    tok = copy.deepcopy(tokenizer("open"))
    tok.add_tokens(["\n"])
    assert supervised_text(only(chat("Q", "no"), tok), tok) == "no</s>"


def test_string_pair_whose_completion_shares_a_token_with_the_prompt(tokenizer):
    tok = tokenizer("none")
    sample = only({"prompt": "So the ans", "completion": "wer is 42"}, tok)
    assert supervised_text(sample, tok).endswith("wer is 42</s>")
    assert "So the" not in supervised_text(sample, tok)


@pytest.mark.parametrize("answer", ["So the answer is 42", "世界 ok", " spaced", "\nnew"])
def test_tokens_that_hold_several_words(sentencepiece, answer):
    text = "<s> [INST] How many? [/INST]"
    assert (
        render_example(only(chat("How many?", answer), sentencepiece), sentencepiece)
        == f"{text}⟦ {answer} </s>⟧"
    )


def test_string_pairs_in_tokens_that_hold_several_words(sentencepiece):
    shown = [
        render_example(only({"prompt": prompt, "completion": completion}, sentencepiece), sentencepiece)
        for prompt, completion in (("So the ans", "wer is 42"), ("So the answer:", " 世"), ("", "answer"))
    ]
    assert shown == ["<s> So the ⟦answer is 42</s>⟧", "<s> So the answer⟦: 世</s>⟧", "<s>⟦ answer</s>⟧"]


def test_tokenizer_without_offsets(tokenizer):
    tok = ByT5Tokenizer()
    tok.chat_template = tokenizer("chatml").chat_template
    assert not tok.is_fast
    shown = render_example(only(chat("Wie groß?", "So groß"), tok), tok)
    # This tokenizer has no token for the end of a turn, so its text is spelled out.
    assert shown.endswith("<|im_start|>assistant\n⟦So groß<|im_end|>⟧")
    assert render_example(only({"prompt": "ab", "completion": "cd"}, tok), tok) == "ab⟦cd</s>⟧"


# Without the first letter of a special token, so that every character of a token stands for one byte of text.
plain = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="<\0"), max_size=30)


@settings(max_examples=80)
@given(data=st.data())
def test_tokens_within_a_part_are_those_whose_bytes_end_in_it(tokenizer: Build, data: st.DataObject) -> None:
    tok, text = tokenizer("none"), data.draw(plain)
    stop = data.draw(st.integers(0, len(text)))
    full = encode(text, tok, special=False)
    limit, used, count = len(text[:stop].encode()), 0, 0
    for token in tok.convert_ids_to_tokens(full.ids):
        used += len(token)
        count += used <= limit
    assert tokens_within(text, stop, full, tok, special=False) == count


def test_without_offsets_the_tokens_that_both_texts_begin_with_count(tokenizer: Build) -> None:
    class Slow:
        """Two letters a token from the left; no offsets."""

        is_fast = False

        def __call__(self, text: str, **options: object) -> dict[str, list[str]]:
            return {"input_ids": [text[i : i + 2] for i in range(0, len(text), 2)]}

    full = encode("abcdef", Slow(), special=False)  # type: ignore[arg-type]
    assert full.ends is None
    for stop, count in ((0, 0), (2, 1), (3, 1), (5, 2), (6, 3)):
        assert tokens_within("abcdef", stop, full, Slow(), special=False) == count  # type: ignore[arg-type]


def test_a_long_text_is_not_cut_at_the_tokenizer_s_limit(tokenizer: Build) -> None:
    tok = copy.deepcopy(tokenizer("none"))
    tok.model_max_length = 3
    text = "The answer is: B. " * 9
    full = encode(text, tok, special=False)
    assert tok.decode(full.ids) == text
    assert full.ends is not None and full.ends == sorted(full.ends) and full.ends[-1] == len(text)


def test_control_ids_are_the_special_and_added_tokens_that_are_not_white_space(tokenizer: Build) -> None:
    tok = copy.deepcopy(tokenizer("chatml"))
    tok.add_tokens(["<tool>", "\n\n\n"])
    names = {"<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"}
    assert control_ids(tok) == set(tok.convert_tokens_to_ids([*names, "<|user|>", "<|assistant|>", "<tool>"]))


def test_eos_is_put_once_at_the_end_where_there_is_one(tokenizer: Build) -> None:
    tok, none = tokenizer("none"), tokenizer("none", eos=None)
    eos = tok.eos_token_id
    assert with_eos([9, 10], "a", tok) == with_eos([9, 10, eos], "a</s>", tok) == [9, 10, eos]
    assert with_eos([eos, 9], "</s>a", tok) == [eos, 9, eos] and with_eos([], "", tok) == [eos]
    assert with_eos([eos, 9], "</s>\n ", tok) == [eos, 9], "only white space follows the eos"
    assert with_eos([9, 10], "a", none) == [9, 10]


def test_of_a_pair_without_a_prompt_all_but_the_start_token_is_marked(tokenizer: Build) -> None:
    tok = tokenizer("none", bos=True)
    ids, mask = mark_completion("", "So the answer", tok)
    assert tok.decode(ids) == "<s>So the answer</s>" and mask == [False] + [True] * (len(ids) - 1)
    ids, mask = mark_completion("", "So the answer", tokenizer("none"))
    assert all(mask) and len(ids) == len(mask)


def test_a_whole_text_is_marked_with_or_without_the_tokens_around_it(tokenizer: Build) -> None:
    tok = tokenizer("none", bos=True)
    for special, shown in ((True, "<s>So the answer</s>"), (False, "So the answer")):
        ids, mask = mark_all("So the answer", tok, special=special)
        assert tok.decode(ids) == shown and mask == [True] * len(ids)
