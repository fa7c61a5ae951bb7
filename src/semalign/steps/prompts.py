"""New prompts beside the given ones; what the right answer is, the teacher has to be asked.

By words: words that occur in the same contexts are exchanged (see `semalign.data.variants`).
By the teacher: the conversation of three rows, drawn anew for every 16 prompts, goes on with the user's next turn, in the teacher's
words (after Magpie, arXiv 2406.08464, where nothing goes before it). No instruction is needed: the chat template says whose turn
it is, and the rows say what about.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from semalign.config import DataConfig, TransferConfig
from semalign.data import variants
from semalign.data.chat import encode_next_turn
from semalign.data.kinds import Row
from semalign.data.overlap import Prompts
from semalign.data.tokens import special_tokens
from semalign.embedded.keys import is_apart
from semalign.embedded.splits import Split
from semalign.errors import DataError
from semalign.evaluation.decoding import continuations
from semalign.models.decoder import Decoder
from semalign.run.journal import Journal
from semalign.run.progress import bar

Chat = Row
"""A row of `messages`, and of `tools` where the model may call some."""
ROWS_SHOWN = 3
PROMPTS_A_CONTEXT = 16
PATIENCE = 2
"""Prompts that may be drawn for each one wanted."""


def by_words(prompts: Sequence[Chat], config: TransferConfig, measured_on: Sequence[Row]) -> Iterator[Chat]:
    """Prompts whose last turn is a variant of a given one; none is a prompt that students are measured on."""
    texts = [prompt["messages"][-1].get("content") or "" for prompt in prompts]
    is_new = _novelty(config.data, measured_on)

    def chat(number: int, text: str) -> Chat:
        *before, last = prompts[number]["messages"]
        return {**prompts[number], "messages": [*before, {**last, "content": text}]}

    count = config.data.variants * len(texts)
    found = variants(texts, count, seed=config.seed, accept=lambda number, text: is_new(chat(number, text)))
    for number, text in found:
        yield chat(number, text)


def by_teacher(
    rows: Sequence[Chat],
    given: int,
    config: TransferConfig,
    known: Sequence[Row],
    open_teacher: Callable[[], Decoder],
    part: Path,
    wanted: Mapping[str, Any],
) -> list[Chat]:
    """Up to `data.variants` prompts for each of the `given` ones, in the teacher's words; no two are alike, none is known.

    Args:
        rows: conversations with answers, to go on from.
        known: given prompts, and those that students are measured on.
        part: file that keeps what the teacher wrote before a stop.
        wanted: what that file has to have been written for.

    Raises:
        DataError: no row has an answer.
    """
    if not rows:
        raise DataError(
            "data.variants_by: the teacher goes on from rows with answers, but none has one; set data.completions: teacher."
        )
    is_new, count = _novelty(config.data, known), config.data.variants * given
    found: list[Chat] = []
    journal = Journal(part, wanted, list[str])
    most = -(-PATIENCE * count // PROMPTS_A_CONTEXT)
    at_once = max(1, config.evaluation.batch_size // PROMPTS_A_CONTEXT)
    shown = [
        random.Random(f"{config.seed} {number}").sample(rows, min(ROWS_SHOWN, len(rows)))
        for number in range(most)
    ]
    with bar(count, "teacher's prompts") as progress:
        for number in range(most):
            if number == len(journal.values):
                missing = -(-(count - len(found)) // PROMPTS_A_CONTEXT)
                contexts = shown[number : number + min(at_once, missing)]
                journal.add(_next_turns(open_teacher(), contexts, config, number))
            head = _head(shown[number])
            users = [{"role": "user", "content": text} for text in journal.values[number]]
            chats = [{**head, "messages": [*head["messages"], user]} for user in users]
            new = [chat for chat in chats if is_new(chat)][: count - len(found)]
            found += new
            progress.update(len(new))
            if len(found) == count:
                break
    return found


def _head(shown: Sequence[Chat]) -> Chat:
    """What a context and its new prompts begin with: a system turn and tools, where there are some."""
    return {**shown[0], "messages": [turn for turn in shown[0]["messages"] if turn["role"] == "system"]}


def _next_turns(
    teacher: Decoder, contexts: Sequence[Sequence[Chat]], config: TransferConfig, number: int
) -> list[list[str]]:
    """What the user says next after the rows of each context, in the teacher's words; texts that end and say something."""
    assert teacher.tokenizer is not None
    found = continuations(
        teacher.model,
        teacher.tokenizer,
        [_context_ids(teacher, shown, config) for shown in contexts],
        PROMPTS_A_CONTEXT,
        max_new_tokens=config.data.max_new_tokens,
        seed=config.seed + number,
    )
    controls = special_tokens(teacher.tokenizer)
    turns = [[_turn(text, has_ended, controls) for text, has_ended in texts] for texts in found]
    return [[text for text in texts if text] for texts in turns]


def _turn(text: str, has_ended: bool, controls: Collection[str]) -> str:
    """The user's turn in a continuation: up to where the template would go on, be it with a token that ends no answer; "" where it did not end."""
    ends = [at for token in controls if (at := text.find(token)) >= 0]
    return text[: min(ends)].strip() if ends else text.strip() if has_ended else ""


def _context_ids(teacher: Decoder, shown: Sequence[Chat], config: TransferConfig) -> list[int]:
    """Tokens up to the user's next turn, of as many of the rows as the teacher has positions for."""
    assert teacher.tokenizer is not None
    turns = [[turn for turn in chat["messages"] if turn["role"] != "system"] for chat in shown]
    limit, head = teacher.shape.positions, _head(shown)
    while True:
        ids = encode_next_turn(
            [*head["messages"], *(turn for chat in turns for turn in chat)],
            teacher.tokenizer,
            head.get("tools"),
        )
        if limit is None or len(turns) == 1 or len(ids) + config.data.max_new_tokens <= limit:
            return ids
        turns.pop()


def _novelty(data: DataConfig, known_rows: Sequence[Row]) -> Callable[[Chat], bool]:
    """Whether a prompt is neither known nor told before, nor states a problem kept for validation or test."""
    known = Prompts(enumerate(known_rows))
    is_kept_apart = _kept_apart(data)

    def is_new(chat: Chat) -> bool:
        if known.find(chat) is not None or is_kept_apart(chat["messages"][-1]["content"]):
            return False
        known.add(-1, chat)
        return True

    return is_new


def _kept_apart(data: DataConfig) -> Callable[[str], bool]:
    """Whether a prompt states a problem of the embedded world that is kept for validation or test, or none that can be told."""
    names = [
        name.removeprefix("embedded:").split("/")[0] for name in data.weights if name.startswith("embedded:")
    ]
    apart: frozenset[Split] = frozenset({"validation", "test"} - set(names))  # type: ignore[arg-type]
    return lambda text: bool(names) and is_apart(text, apart)
