"""Text to token ids with the supervised ones marked: exactly what the model must emit, from offsets."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from semalign.data.chat import Rendering, render_answer
from semalign.errors import DataError

Marks = tuple[list[int], list[bool]]


@dataclass(frozen=True)
class Encoding:
    """Token ids of a text and, where the tokenizer tells, the character at which every token ends."""

    ids: list[int]
    ends: list[int] | None


def encode(text: str, tokenizer: PreTrainedTokenizerBase, *, special: bool) -> Encoding:
    """Tokens of a text, never truncated.

    `special` adds what the tokenizer puts around it, but no bos before a text that begins with it and no eos after one that ends
    with it: such a text was rendered already.
    """
    fast = tokenizer.is_fast
    out = tokenizer(
        text, add_special_tokens=special, return_offsets_mapping=fast, truncation=False, verbose=False
    )
    ids, ends = list(out["input_ids"]), [end for _, end in out["offset_mapping"]] if fast else None
    kept = _without_repeated(ids, text, tokenizer) if special else slice(None)
    return Encoding(ids[kept], ends and ends[kept])


def _without_repeated(ids: list[int], text: str, tokenizer: PreTrainedTokenizerBase) -> slice:
    """Which of the ids stay when a bos or eos that the text has of its own is not added again."""
    has_bos = bool(tokenizer.bos_token) and text.lstrip().startswith(str(tokenizer.bos_token))
    if not (has_bos or _ends(text, tokenizer)):
        return slice(None)
    plain = list(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])
    before = next((n for n in range(len(ids)) if ids[n : n + len(plain)] == plain), 0)
    start = int(has_bos and before > 0 and ids[0] == tokenizer.bos_token_id)
    is_ended = _ends(text, tokenizer) and before + len(plain) < len(ids) and ids[-1] == tokenizer.eos_token_id
    return slice(start, len(ids) - is_ended)


def _ends(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text ends with eos, but for white space."""
    return bool(tokenizer.eos_token) and text.rstrip().endswith(str(tokenizer.eos_token))


def tokens_within(
    text: str, stop: int, full: Encoding, tokenizer: PreTrainedTokenizerBase, *, special: bool
) -> int:
    """How many leading tokens lie wholly in text[:stop].

    Usually the tokens of text[:stop] are how the whole begins. Where they are not, a token spans the boundary
    (or an end token was added after the prefix): then every token that ends at or before it counts, so that a
    token with any character after the boundary does not. Without offsets, the tokens both have in common
    count.
    """
    prefix = encode(text[:stop], tokenizer, special=special).ids
    if full.ids[: len(prefix)] == prefix:
        return len(prefix)
    if full.ends is not None:
        return next((i for i, end in enumerate(full.ends) if end > stop), len(full.ids))
    return next((i for i, (a, b) in enumerate(zip(prefix, full.ids, strict=False)) if a != b), len(prefix))


def control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of special and added tokens, without those that stand for mere white space."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    return frozenset(added | set(tokenizer.all_special_ids))


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """The texts of the tokens that decoding to plain text leaves out; of added words such as <think>, unlike `control_ids`, none."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return frozenset(added | set(tokenizer.all_special_tokens))


def mark_answer(rendering: Rendering, tokenizer: PreTrainedTokenizerBase) -> Marks:
    """Ids of a rendered conversation; marked are the answer and the token(s) that end the assistant's turn.

    Template text after the end of the turn stays unmarked. A template that writes nothing after an answer, or
    only white space, leaves the model no way to stop: there the tokenizer's eos is appended and marked. A
    template that ends turns by plain text has that text marked.
    """
    text = rendering.text
    full = encode(text, tokenizer, special=False)
    start = tokens_within(text, rendering.answer, full, tokenizer, special=False)
    after = tokens_within(text, rendering.tail, full, tokenizer, special=False)
    control = control_ids(tokenizer)
    end = next((i for i in range(after, len(full.ids)) if full.ids[i] in control), None)
    if end is None:
        return _mark_plain_end(rendering, tokenizer)
    while end < len(full.ids) and full.ids[end] in control:
        end += 1
    return full.ids, [start <= i < end for i in range(len(full.ids))]


def _mark_plain_end(rendering: Rendering, tokenizer: PreTrainedTokenizerBase) -> Marks:
    """As `mark_answer`, for a template without a control token after the answer."""
    tail = rendering.text[rendering.tail :].rstrip()
    text = rendering.text[: rendering.tail] + tail
    full = encode(text, tokenizer, special=False)
    start = tokens_within(text, rendering.answer, full, tokenizer, special=False)
    ids = full.ids if tail else with_eos(full.ids, text, tokenizer)
    return ids, [i >= start for i in range(len(ids))]


def end_of_answer(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The control token that `mark_answer` marks last, as a student learns to end its answers; None where the template writes none.

    A base model's tokenizer may have a chat template and an end token that this does not write.
    """
    probe = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
    try:
        ids, marks = mark_answer(render_answer(probe, tokenizer, "an answer"), tokenizer)
    except DataError:
        return None
    last = next((i for i, is_marked in zip(reversed(ids), reversed(marks), strict=True) if is_marked), None)
    return last if last in control_ids(tokenizer) else None


def mark_completion(prompt: str, completion: str, tokenizer: PreTrainedTokenizerBase) -> Marks:
    """Ids of prompt + completion + eos; marked is every token with a character of the completion, and eos."""
    text = prompt + completion
    full = encode(text, tokenizer, special=True)
    start = tokens_within(text, len(prompt), full, tokenizer, special=True)
    ids = with_eos(full.ids, text, tokenizer)
    return ids, [i >= start for i in range(len(ids))]


def mark_all(text: str, tokenizer: PreTrainedTokenizerBase, *, special: bool) -> Marks:
    """Ids of a text, all marked; `special` adds bos and eos, which a rendered conversation has already."""
    ids = encode(text, tokenizer, special=special).ids
    ids = with_eos(ids, text, tokenizer) if special else ids
    return ids, [True] * len(ids)


def with_eos(ids: list[int], text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a text, ending with eos if the tokenizer has one; where only white space follows an eos, none is added."""
    eos = tokenizer.eos_token_id
    return ids if eos is None or ids[-1:] == [eos] or _ends(text, tokenizer) else [*ids, eos]
