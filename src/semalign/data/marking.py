"""One row to marked tokens, or why it gives none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from semalign.data.chat import Thinking, Tools, conversation, left_out, render, render_ahead, render_answer
from semalign.data.kinds import CONVERSATIONS, Kind, Row, checked_kind, row_kind, supervised_ids, tools_of
from semalign.data.seen import Message, says_something, thinking_of, without_thinking
from semalign.data.tokens import mark_all, mark_answer, mark_completion
from semalign.errors import DataError

AHEAD = 64
"""Rows that are rendered together."""


class Marked(NamedTuple):
    """A row as tokens, before or after cutting; the fields are those of `Sample`."""

    input_ids: list[int]
    mask: list[bool]
    unseen: tuple[int, ...] = ()
    lacks_thinking: bool = False


class Drop(StrEnum):
    """Why a row gives no sample."""

    BLANK = "empty, null or blank completion"
    NO_ANSWER = "conversation without an assistant turn at its end (with data.completions: student or teacher a model writes one)"
    TOO_LONG = "prompt fills max_length, no answer token survives"
    NOTHING = "no supervised token"
    UNSEEN = "answer of which the chat template writes nothing"


def cut_to(marked: Marked, max_length: int) -> Marked | Drop:
    """The first tokens, the very first unsupervised, since nothing comes before it; or why none is left to train on."""
    ids, mask = marked.input_ids[:max_length], [False, *marked.mask[1:max_length]]
    if not any(mask):
        return Drop.TOO_LONG if any(marked.mask[max_length:]) else Drop.NOTHING
    return marked._replace(input_ids=ids, mask=mask)


def rendered_ahead(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, supervise: str, thinking: Thinking = None
) -> Iterator[list[str] | None]:
    """For every row what `mark_row` needs of the chat template, where it can be had for many rows at once."""
    is_usual = supervise == "completion" and thinking is None and tokenizer.chat_template
    for start in range(0, len(rows), AHEAD):
        chunk = rows[start : start + AHEAD]
        answers = {n: _to_answer(row) for n, row in enumerate(chunk)} if is_usual else {}
        chats = {n: chat for n, chat in answers.items() if chat}
        texts = dict(zip(chats, render_ahead(list(chats.values()), tokenizer), strict=True))
        yield from (texts.get(n) for n in range(len(chunk)))


def _to_answer(row: Row) -> tuple[list[Message], Tools] | None:
    """Turns and tools of a good row that an assistant turn ends."""
    try:
        kind = checked_kind(row)
    except DataError:
        return None
    if kind not in CONVERSATIONS or drop_of(row, kind, "completion"):
        return None
    return conversation(row, kind), tools_of(row)


def mark_row(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    supervise: str,
    name: str,
    thinking: Thinking = None,
    texts: list[str] | None = None,
) -> Marked | Drop:
    """Ids and mask of a whole row, before cutting; or why it is dropped.

    Raises:
        DataError: the row is of no known kind, or the template is missing or refuses it; `name` says which row.
    """
    try:
        kind = row_kind(row) if texts else checked_kind(row)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    without = drop_of(row, kind, supervise)
    if without is not None:
        return without
    if kind is Kind.IDS:
        return _mark_ids(row, tokenizer, supervise, name)
    if kind is Kind.TEXT:
        return Marked(*mark_all(row["text"], tokenizer, special=True))
    if kind is Kind.STRING_PAIR:
        ids, mask = mark_completion(row["prompt"], row["completion"], tokenizer)
        return Marked(ids, [True] * len(ids) if supervise == "all" else mask)
    messages, tools = conversation(row, kind), tools_of(row)
    if supervise == "assistant":
        return _mark_turns(messages, tools, tokenizer, name, thinking)
    is_all = supervise == "all"
    if is_all and not (thinking == "keep" and messages[-1]["role"] == "assistant"):
        turns = [without_thinking(turn) for turn in messages] if thinking == "drop" else messages
        text = render(turns, tokenizer, name, prompt=False, tools=tools)
        return Marked(*mark_all(text, tokenizer, special=False), *left_out(turns, text, name))
    found = render_answer(messages, tokenizer, name, tools=tools, thinking=thinking, texts=texts)
    if found.is_blank:
        return Drop.UNSEEN
    marked = mark_all(found.text, tokenizer, special=False) if is_all else mark_answer(found, tokenizer)
    return Marked(*marked, found.unseen, found.lacks_thinking)


def _mark_turns(
    messages: Sequence[Message],
    tools: Tools,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    thinking: Thinking,
) -> Marked | Drop:
    """Every assistant turn marked as if it were the last one; what follows the last of them is left out.

    Raises:
        DataError: the template writes a turn differently once others follow.
    """
    ends = [n for n, turn in enumerate(messages, 1) if turn["role"] == "assistant" and _speaks(turn)]
    whole = render_answer(messages[: ends[-1]], tokenizer, name, tools=tools, thinking=thinking)
    ids, mask = mark_answer(whole, tokenizer)
    for end in ends[:-1]:
        found = render_answer(messages[:end], tokenizer, name, tools=tools, thinking=thinking)
        own, supervised = mark_answer(found, tokenizer)
        if found.is_blank or not any(supervised):
            continue
        stop = len(supervised) - supervised[::-1].index(True)
        # An end that the template does not write is there for the last turn alone.
        if stop == len(own) and own[-1] == tokenizer.eos_token_id != ids[stop - 1]:
            stop -= 1
        if own[:stop] != ids[:stop]:
            raise DataError(
                f"{name}: data.supervise is assistant, but the chat template writes assistant turn {end} differently once others follow "
                "(thinking left out, for example), so a model is never asked for what stands there; set data.supervise to completion, "
                "or data.thinking to drop"
            )
        mask[:stop] = [a or b for a, b in zip(mask[:stop], supervised[:stop], strict=True)]
    if whole.is_blank and not any(mask):
        return Drop.UNSEEN
    return Marked(ids, mask, whole.unseen, whole.lacks_thinking)


def _speaks(turn: Message) -> bool:
    return bool(says_something(turn) or thinking_of(turn))


def drop_of(row: Row, kind: Kind, supervise: str) -> Drop | None:
    """Why a row has nothing to supervise, as far as that shows without a tokenizer."""
    if kind is Kind.IDS:
        return None if row["input_ids"] else Drop.BLANK
    if kind in (Kind.TEXT, Kind.STRING_PAIR):
        return Drop.BLANK if _blank(row.get("text" if kind is Kind.TEXT else "completion")) else None
    if row.get("messages" if kind is Kind.MESSAGES else "completion") in (None, []):
        return Drop.BLANK
    turns = conversation(row, kind)
    if supervise == "assistant" and any(turn["role"] == "assistant" and _speaks(turn) for turn in turns):
        return None
    if turns[-1]["role"] == "assistant":
        return None if _speaks(turns[-1]) else Drop.BLANK
    return None if supervise == "all" else Drop.NO_ANSWER


def _mark_ids(row: Row, tokenizer: PreTrainedTokenizerBase, supervise: str, name: str) -> Marked:
    """Ids and mask of a row that is tokenised already."""
    ids, size = row["input_ids"], len(tokenizer)
    wrong = next((i for i in ids if not 0 <= i < size), None)
    if wrong is not None:
        raise DataError(
            f"{name}: input_ids holds {wrong}, expected ids from 0 to {size - 1}; tokenise the "
            "rows with the student's tokenizer"
        )
    if supervise == "all":
        return Marked(list(ids), [True] * len(ids))
    return Marked(list(ids), supervised_ids(row))


def _blank(text: str | None) -> bool:
    return text is None or not text.strip()
