"""Rows of conversations, what their samples supervise, and what the templates of the tokenizers show of them."""

from __future__ import annotations

from hypothesis import strategies as st

from semalign.data import prepare

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
