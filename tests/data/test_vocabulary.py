"""Vocabularies proven shared, or the first difference named."""

from __future__ import annotations

import copy
import json

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from semalign.data import Sample, SharedVocabulary, check_shared, shared_vocabulary
from semalign.errors import DataError, ModelError


def altered(tokenizer, change):
    """A copy of the tokenizer whose JSON description went through `change`."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    change(state)
    copied = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="</s>")
    copied.chat_template = tokenizer.chat_template
    return copied


def test_padded_heads_are_fine(tokenizer):
    tok = tokenizer("chatml")
    size = len(tok)
    assert shared_vocabulary(tok, tok, size + 60, size + 4) == SharedVocabulary(size, 60, 4)
    assert shared_vocabulary(tok, tok, size - 1, size) == SharedVocabulary(size - 1, 0, 1)


def test_special_roles_may_sit_on_different_ids(tokenizer):
    teacher, student = tokenizer("chatml", eos="<|im_end|>"), tokenizer("chatml", eos="</s>")
    assert teacher.eos_token_id != student.eos_token_id
    assert shared_vocabulary(teacher, student, 500, 500).size == len(student)


def test_extra_tokens_at_the_end_stay_outside(tokenizer):
    teacher, student = copy.deepcopy(tokenizer("chatml")), tokenizer("chatml")
    teacher.add_tokens(["<tool>"])
    assert shared_vocabulary(teacher, student, 512, 500) == SharedVocabulary(
        len(student), 512 - len(student), 500 - len(student)
    )


def test_placeholders_of_gguf_files_are_no_tokens(tokenizer):
    tok = tokenizer("chatml")
    size = len(tok)
    teacher, student = copy.deepcopy(tok), copy.deepcopy(tok)
    teacher.add_tokens([f"[PAD{i}]" for i in range(size, size + 8)])
    student.add_tokens([f"[PAD{i}]" for i in range(size, size + 4)])
    assert shared_vocabulary(teacher, student, size + 8, size + 4) == SharedVocabulary(size, 8, 4)
    student.add_tokens(["<tool>"])
    assert shared_vocabulary(student, student, size + 5, size + 5).size == size + 5, "only those at the end"


def test_swapped_ids_are_named(tokenizer):
    tok = tokenizer("none")

    def swap(state):
        vocabulary = state["model"]["vocab"]
        vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]

    first = min(tok.convert_tokens_to_ids(["A", "B"]))
    with pytest.raises(
        ModelError, match=f"id {first} is 'A' for the teacher and 'B' for the student, expected the same"
    ):
        shared_vocabulary(tok, altered(tok, swap), 500, 500)


def test_same_tokens_with_other_merges_are_caught_by_texts(tokenizer):
    tok = tokenizer("none")

    def no_merges(state):
        state["model"]["merges"] = []

    other = altered(tok, no_merges)
    assert other.get_vocab() == tok.get_vocab()
    with pytest.raises(
        ModelError,
        match=r"token 1 of the text \"The quick .*\" is id \d+ 'The?' for the teacher and id \d+ 'T' ",
    ):
        shared_vocabulary(tok, other, 500, 500)


def test_samples_outside_the_shared_ids_are_named(tokenizer):
    tok = tokenizer("none")
    shared = SharedVocabulary(len(tok) - 1, 0, 0)
    check_shared([Sample([0, len(tok) - 2], [False, True], "good")], shared, tok)
    with pytest.raises(
        DataError, match=f"sample bad: token .* has id {len(tok) - 1}, expected ids below {len(tok) - 1}"
    ):
        check_shared([Sample([0, len(tok) - 1], [False, True], "bad")], shared, tok)
