"""Masks verified by decoding, for every kind of row and several families of template."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import ByT5Tokenizer

from semalign.data import Sample, effective_max_length, encode_prompt, prepare, render_example
from semalign.errors import DataError

END = {"chatml": "<|im_end|>", "llama2": " </s>", "gemma": "<end_of_turn>", "reasoning": "</s>"}
BEFORE = {"chatml": "", "llama2": " ", "gemma": "", "reasoning": ""}


def chat(*contents, system=None):
    """A row of alternating user and assistant turns."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + turns}


def supervised_text(sample, tokenizer):
    """What the supervised tokens decode to."""
    ids = [i for i, m in zip(sample.input_ids, sample.mask, strict=True) if m]
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def only(row, tokenizer, **options):
    (sample,) = prepare([row], tokenizer, **{"max_length": 4096, **options})
    return sample


texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=40)
answers = texts.filter(lambda text: text.strip() and not text[0].isspace())


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


def test_template_without_end_of_turn_gets_eos(tokenizer):
    tok = tokenizer("open")
    assert supervised_text(only(chat("Q", "yes", "R", "no"), tok), tok) == "no</s>"
    tok = tokenizer("open", eos=None)
    assert supervised_text(only(chat("Q", "yes"), tok), tok) == "yes"
    tok = tokenizer("plain_end")
    assert supervised_text(only(chat("Q", "answer"), tok), tok) == " answer [END]", (
        "the token ' answer' spans the boundary"
    )


def test_template_that_hides_the_answer_stops(tokenizer):
    with pytest.raises(DataError, match=r"rows:1: the chat template renders .* cannot be told apart"):
        prepare([chat("Q", "A")], tokenizer("hides_answer"), max_length=99)


def test_crlf_and_other_scripts_survive(tokenizer):
    tok = tokenizer("chatml")
    for answer in ("def f(x):\r\n  return x\r\n", "你好,世界 👩‍👩‍👧‍👦", "שלום עולם", "na\u0308ive\u2028line"):
        sample = only(chat("Q\r\nR", answer), tok)
        assert supervised_text(sample, tok) == answer + "<|im_end|>"
        assert "Q\r\nR" in render_example(sample, tok)


def test_string_pairs_are_joined_and_end_with_eos(tokenizer):
    for tok in (tokenizer("none"), tokenizer("chatml"), tokenizer("none", bos=True)):
        sample = only({"prompt": "The answer is:", "completion": " B.\n"}, tok)
        assert supervised_text(sample, tok) == " B.\n</s>"
        start = "<s>" if tok("x")["input_ids"][0] == tok.bos_token_id else ""
        assert tok.decode(sample.input_ids) == start + "The answer is: B.\n</s>"


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
