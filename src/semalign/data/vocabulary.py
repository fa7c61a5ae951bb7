"""Proof that teacher and student mean the same token by the same id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from transformers import PreTrainedTokenizerBase

from semalign.data.samples import Sample
from semalign.errors import DataError, ModelError

PROBES = (
    "The quick brown fox jumps over the lazy dog, didn't it?",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz",
    "0 7 42 1984 3.14159 1,000,000 2**31-1 0xFF 12/25/2024",
    "def area(radius: float) -> float:\n    return math.pi * radius ** 2  # πr²\n",
    'SELECT name FROM "people" WHERE age >= 18 && x != y || {a: [1, 2]};',
    "Größe, déjà vu, año, žluťoučký kůň, İstanbul",
    "Привет, мир! Καλημέρα κόσμε. שלום עולם مرحبا بالعالم",
    "你好,世界。こんにちは世界。안녕하세요 세계 नमस्ते दुनिया สวัสดีชาวโลก",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 ∑∫√≠∞ → ⇒",
    " leading and trailing  \t tabs\r\nlines\n\n\n   end ",
)


_END = object()
"""Stands for the end of the shorter of two sequences; equal to nothing else."""


@dataclass(frozen=True)
class SharedVocabulary:
    """The leading ids that both models share, and the rows of each head beyond them."""

    size: int
    """Ids 0 .. size - 1 mean the same token in both; slice both heads to [:size]."""
    teacher_extra: int
    """Rows of the teacher's head beyond the shared ids: padding, or tokens the student lacks."""
    student_extra: int
    """Rows of the student's head beyond the shared ids."""


def shared_vocabulary(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, teacher_rows: int, student_rows: int
) -> SharedVocabulary:
    """Compares the tokenizers id by id, then by what they make of texts in several scripts.

    size = min(tokens of either tokenizer, rows of either head). Heads padded to different lengths are fine,
    and so are special roles (bos, eos, pad) on different ids, as long as every id stands for the same token
    in both.

    Args:
        teacher_rows: rows of the teacher's LM head.
        student_rows: rows of the student's LM head.

    Raises:
        ModelError: an id below size stands for different tokens, or a text is tokenised differently; the
            message names the first id that differs and both tokens.
    """
    tokens = _tokens_by_id(teacher), _tokens_by_id(student)
    size = min(*map(len, tokens), teacher_rows, student_rows)
    index = _first_difference(tokens[0][:size], tokens[1][:size])
    if index is not None:
        raise _different(f"id {index}", *(f"{known[index]!r}" for known in tokens))
    for probe in PROBES:
        ids = [tokenizer(probe, add_special_tokens=False)["input_ids"] for tokenizer in (teacher, student)]
        at = _first_difference(*ids)
        if at is not None:
            raise _different(
                f"token {at + 1} of the text {probe!r}",
                *(_token_at(row, at, known) for row, known in zip(ids, tokens, strict=True)),
            )
    return SharedVocabulary(size, teacher_rows - size, student_rows - size)


MOST_TOKENS = 1 << 24


def _first_difference(first: Sequence[object], second: Sequence[object]) -> int | None:
    """First position at which two sequences differ, that of the shorter one's end included; None if equal."""
    pairs = enumerate(zip_longest(first, second, fillvalue=_END))
    return next((i for i, (a, b) in pairs if a != b), None)


def _token_at(ids: Sequence[int], at: int, known: Sequence[str | None]) -> str:
    return f"id {ids[at]} {known[ids[at]]!r}" if at < len(ids) else "no token"


def _different(what: str, teacher: str, student: str) -> ModelError:
    return ModelError(
        f"teacher and student do not share a vocabulary: {what} is {teacher} for the teacher and {student} "
        "for the student, expected the same; choose two models with the same tokenizer, or set teacher.tokenizer: own"
    )


def _tokens_by_id(tokenizer: PreTrainedTokenizerBase) -> list[str | None]:
    """tokens[i] is the token with id i; None where a vocabulary has a hole.

    GGUF files fill the vocabulary up to the rows of the head with placeholders named [PAD<id>]; those at the
    end are no tokens and are left out.
    """
    vocabulary = tokenizer.get_vocab()
    most = max(vocabulary.values(), default=-1) + 1
    if most > MOST_TOKENS:
        raise ModelError(
            f"a tokenizer has the id {most - 1}, expected ids below {MOST_TOKENS}; mend its files."
        )
    tokens: list[str | None] = [None] * most
    for token, index in vocabulary.items():
        tokens[index] = token
    while tokens and tokens[-1] == f"[PAD{len(tokens) - 1}]":
        tokens.pop()
    return tokens


def _named(tokenizer: PreTrainedTokenizerBase, index: int) -> str:
    return f"token {tokenizer.convert_ids_to_tokens(index)!r}" if index < len(tokenizer) else "a token"


def check_shared(
    samples: Sequence[Sample], shared: SharedVocabulary, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raises DataError when a sample holds an id that the two models do not share."""
    for sample in samples:
        largest = max(sample.input_ids)
        if largest >= shared.size:
            raise DataError(
                f"sample {sample.id}: {_named(tokenizer, largest)} has id {largest}, "
                f"expected ids below {shared.size}, which teacher and student share; remove the token from "
                "the rows or the template"
            )
