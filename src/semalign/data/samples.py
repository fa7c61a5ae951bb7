"""Rows to samples: token ids with a mask of the supervised ones, and a count of the rows dropped."""

from __future__ import annotations

import hashlib
import logging
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from semalign.data.chat import Thinking, common_prefix, conversation, left_out, render, render_answer
from semalign.data.kinds import ACCEPTED, Kind, Row, checked_kind, supervised_ids, tools_of
from semalign.data.seen import says_something, thinking_of, without_thinking
from semalign.data.tokens import mark_all, mark_answer, mark_completion
from semalign.errors import DataError

log = logging.getLogger(__name__)

NO_LIMIT = 10**9
"""A tokenizer whose model_max_length exceeds this states no limit (transformers writes 1e30 then)."""


@dataclass(frozen=True)
class Sample:
    """One row as tokens."""

    input_ids: list[int]
    """Token ids, prompt and answer."""
    mask: list[bool]
    """mask[t]: token t is supervised, so position t - 1 has to predict it; mask[0] is False."""
    id: str
    """The row's own id, or source:number."""
    task: str | None = None
    """The row's task (or dataset) where it names one."""
    row: Row = field(default_factory=dict, repr=False)
    """The original row."""
    unseen: tuple[int, ...] = ()
    """Numbers of the row's turns whose text or calls the chat template leaves out."""
    lacks_thinking: bool = False
    """Whether the template leaves out the thinking of the row's answer."""

    @property
    def supervised(self) -> int:
        """How many tokens are supervised."""
        return sum(self.mask)

    @property
    def sha(self) -> str:
        """SHA-256 of ids and mask: equal for samples that train alike, whatever their id."""
        packed = struct.pack(f"<{len(self.input_ids)}q", *self.input_ids)
        return hashlib.sha256(packed + bytes(self.mask)).hexdigest()


class Marked(NamedTuple):
    """A row as tokens, before or after cutting; the fields are those of `Sample`."""

    input_ids: list[int]
    mask: list[bool]
    unseen: tuple[int, ...] = ()
    lacks_thinking: bool = False


class Drop(StrEnum):
    """Why a row gives no sample."""

    BLANK = "empty, null or blank completion"
    NO_ANSWER = "conversation without an assistant turn at its end (with data.completions: teacher the teacher writes one)"
    TOO_LONG = "prompt fills max_length, no answer token survives"
    NOTHING = "no supervised token"
    UNSEEN = "answer of which the chat template writes nothing"


def prepare(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    supervise: Literal["completion", "all"] = "completion",
    thinking: Thinking = None,
    max_dropped: float = 0.1,
    source: str = "rows",
) -> list[Sample]:
    """Tokenises rows and marks the supervised tokens.

    Conversations (messages, or prompt + completion as message lists) are rendered with the chat template; the
    last assistant turn, calls of tools included, up to its end-of-turn token is supervised. Strings of prompt + completion are joined
    as they are, without template, and end with eos. Text has no prompt, so all of it but the first token is
    supervised, as with supervise "all". Rows longer than max_length keep their prompt and lose the end of
    their completion.

    Args:
        thinking: what becomes of the thinking in given answers; None: what the template does, and what it leaves out is counted.
        max_dropped: largest share of rows that may be dropped.
        source: name of the rows in messages and in ids of rows without one.

    Raises:
        DataError: a row is of no known kind, the template is missing or refuses a role, too many rows were
            dropped, or none is left.
    """
    samples: list[Sample] = []
    drops: Counter[Drop] = Counter()
    cut = 0
    for number, row in enumerate(rows, start=1):
        own = row.get("id")
        name = f"{source}:{number}" + ("" if own is None else f" (id {own})")
        marked = mark_row(row, tokenizer, supervise, name, thinking)
        if isinstance(marked, Drop):
            drops[marked] += 1
            continue
        kept = cut_to(marked, max_length)
        if isinstance(kept, Drop):
            drops[kept] += 1
            continue
        cut += len(kept.input_ids) < len(marked.input_ids)
        task = row.get("task", row.get("dataset"))
        samples.append(
            Sample(
                kept.input_ids,
                kept.mask,
                f"{source}:{number}" if own is None else str(own),
                task and str(task),
                row,
                kept.unseen,
                kept.lacks_thinking,
            )
        )
    for line in lines_of(unseen_counts(samples)):
        log.warning("%s: %s", source, line)
    _report(drops, cut, len(rows), max_dropped, source)
    return samples


def unseen_counts(samples: Sequence[Sample]) -> dict[str, int]:
    """What the chat template leaves out of the rows: turns, the rows that have some, and the thinking of answers."""
    turns = [len(sample.unseen) for sample in samples]
    return {
        "unseen_turns": sum(turns),
        "rows_with_unseen_turns": sum(map(bool, turns)),
        "unseen_thinking": sum(sample.lacks_thinking for sample in samples),
    }


def lines_of(counts: Mapping[str, Any]) -> list[str]:
    """The counts of `unseen_counts` as sentences; none where nothing is left out, or nothing is known."""
    turns, rows, thinking = (
        counts.get(key, 0) for key in ("unseen_turns", "rows_with_unseen_turns", "unseen_thinking")
    )
    lines = [f"the chat template leaves out the text of {turns} turns in {rows} rows"] if turns else []
    if thinking:
        lines.append(
            f"the chat template leaves out the thinking of {thinking} answers; data.thinking keeps or drops it"
        )
    return lines


def _report(drops: Counter[Drop], cut: int, total: int, max_dropped: float, source: str) -> None:
    """Logs what was dropped and cut; raises where that is too much."""
    dropped = drops.total()
    reasons = "; ".join(f"{count} x {reason}" for reason, count in drops.most_common())
    if dropped == total:
        raise DataError(
            f"{source}: 0 usable samples of {total} rows ({reasons or 'there are no rows'}); expected rows "
            f"with {ACCEPTED} whose answers are not empty and begin within data.max_length; prompts alone "
            "need data.completions: teacher"
        )
    if dropped > max_dropped * total:
        raise DataError(
            f"{source}: {dropped} of {total} rows had to be dropped ({reasons}), more than the share of "
            f"{max_dropped:g} that is allowed; mend the rows, or raise data.max_length or data.max_dropped"
        )
    if dropped:
        log.warning("%s: dropped %d of %d rows (%s)", source, dropped, total, reasons)
    if cut:
        log.warning("%s: cut %d of %d rows at max_length", source, cut, total)


def cut_to(marked: Marked, max_length: int) -> Marked | Drop:
    """The first tokens, the very first unsupervised, since nothing comes before it; or why none is left to train on."""
    ids, mask = marked.input_ids[:max_length], [False, *marked.mask[1:max_length]]
    if not any(mask):
        return Drop.TOO_LONG if any(marked.mask[max_length:]) else Drop.NOTHING
    return marked._replace(input_ids=ids, mask=mask)


def mark_row(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    supervise: str,
    name: str,
    thinking: Thinking = None,
) -> Marked | Drop:
    """Ids and mask of a whole row, before cutting; or why it is dropped.

    Raises:
        DataError: the row is of no known kind, or the template is missing or refuses it; `name` says which row.
    """
    try:
        kind = checked_kind(row)
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
        return Marked(ids, mask if supervise == "completion" else [True] * len(ids))
    messages, tools = conversation(row, kind), tools_of(row)
    is_all = supervise == "all"
    if is_all and not (thinking == "keep" and messages[-1]["role"] == "assistant"):
        turns = [without_thinking(turn) for turn in messages] if thinking == "drop" else messages
        text = render(turns, tokenizer, name, prompt=False, tools=tools)
        return Marked(*mark_all(text, tokenizer, special=False), *left_out(turns, text, name))
    found = render_answer(messages, tokenizer, name, tools=tools, thinking=thinking)
    if found.is_blank:
        return Drop.UNSEEN
    marked = mark_all(found.text, tokenizer, special=False) if is_all else mark_answer(found, tokenizer)
    return Marked(*marked, found.unseen, found.lacks_thinking)


def drop_of(row: Row, kind: Kind, supervise: str) -> Drop | None:
    """Why a row has nothing to supervise, as far as that shows without a tokenizer."""
    if kind is Kind.IDS:
        return None if row["input_ids"] else Drop.BLANK
    if kind in (Kind.TEXT, Kind.STRING_PAIR):
        return Drop.BLANK if _blank(row.get("text" if kind is Kind.TEXT else "completion")) else None
    if row.get("messages" if kind is Kind.MESSAGES else "completion") in (None, []):
        return Drop.BLANK
    last = conversation(row, kind)[-1]
    if last["role"] == "assistant":
        return None if says_something(last) or thinking_of(last) else Drop.BLANK
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


def render_example(
    sample: Sample, tokenizer: PreTrainedTokenizerBase, *, marks: tuple[str, str] = ("⟦", "⟧")
) -> str:
    """The sample as text, its supervised parts between the two marks.

    Positions are found by decoding the tokens before them, so that tokens that share a character, or drop a
    leading space when decoded alone, still give the exact text.
    """

    def decoded(ids: list[int]) -> str:
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    ids, mask = sample.input_ids, sample.mask
    whole, pieces, at = decoded(ids), [], 0
    for t, (before, now) in enumerate(zip([False, *mask], [*mask, False], strict=True)):
        if before != now:
            place = common_prefix(decoded(ids[:t]), whole)
            pieces += [whole[at:place], marks[now is False]]
            at = place
    return "".join([*pieces, whole[at:]])


def effective_max_length(tokenizer: PreTrainedTokenizerBase, positions: int | None, max_length: int) -> int:
    """The smallest of max_length, the tokenizer's limit and the model's number of positions, in tokens.

    A tokenizer may state no limit (its model_max_length is then a huge sentinel); only the model's config
    counts in that case, and a warning says so.
    """
    stated = tokenizer.model_max_length
    if stated > NO_LIMIT:
        limit = (
            f"the model config's {positions} positions" if positions else "no limit, for the config has none"
        )
        log.warning("the tokenizer states no model_max_length; using %s", limit)
    limits = [int(limit) for limit in (stated, positions) if limit is not None and 0 < limit <= NO_LIMIT]
    effective = min([max_length, *limits])
    if effective < max_length:
        log.warning("data.max_length %d exceeds the model's limit; using %d", max_length, effective)
    return effective
