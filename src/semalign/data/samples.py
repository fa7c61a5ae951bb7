"""Rows to samples: token ids with a mask of the supervised ones, and a count of the rows dropped."""

from __future__ import annotations

import hashlib
import logging
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from semalign.config import Supervise
from semalign.data.chat import Thinking, common_prefix
from semalign.data.kinds import ACCEPTED, Row
from semalign.data.marking import Drop, cut_to, mark_row, rendered_ahead
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
    view: Sample | None = field(default=None, repr=False)
    """The row as the teacher reads it, where it is shown more than the student: other tokens before the same supervised ones."""

    @property
    def for_teacher(self) -> Sample:
        """What the teacher reads."""
        return self.view or self

    @property
    def supervised(self) -> int:
        """How many tokens are supervised."""
        return sum(self.mask)

    @property
    def sha(self) -> str:
        """SHA-256 of ids and mask, the teacher's too where they are others: equal for samples that train alike, whatever their id."""
        packed = struct.pack(f"<{len(self.input_ids)}q", *self.input_ids) + bytes(self.mask)
        return hashlib.sha256(packed + (self.view.sha.encode() if self.view else b"")).hexdigest()


def prepare(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    supervise: Supervise = "completion",
    thinking: Thinking = None,
    max_dropped: float = 0.1,
    source: str = "rows",
) -> list[Sample]:
    """Tokenises rows and marks the supervised tokens.

    Conversations (messages, or prompt + completion as message lists) are rendered with the chat template; the
    last assistant turn, calls of tools included, up to its end-of-turn token is supervised, and with supervise "assistant" every
    other one too. Strings of prompt + completion are joined as they are, without template, and end with eos. Text has no prompt, so
    all of it but the first token is supervised, as with supervise "all". Rows longer than max_length keep their prompt and lose the
    end of their completion.

    Args:
        thinking: what becomes of the thinking in given answers; None: what the template does, and what it leaves out is counted.
        max_dropped: largest share of rows that may be dropped.
        source: name of the rows in messages and in ids of rows without one.

    Raises:
        DataError: a row is of no known kind, the template is missing or refuses a role, too many rows were
            dropped, or none is left.
    """
    found, cut = _each(rows, tokenizer, max_length, supervise, thinking, source)
    _report(Counter(one for one in found if isinstance(one, Drop)), cut, len(rows), max_dropped, source)
    return [one for one in found if isinstance(one, Sample)]


def prepare_each(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    thinking: Thinking,
    source: str,
    max_length: int = NO_LIMIT,
) -> list[Sample | None]:
    """As `prepare` with None in the place of a row that has to be dropped, be it every one."""
    found, _ = _each(rows, tokenizer, max_length, "completion", thinking, source)
    return [one if isinstance(one, Sample) else None for one in found]


def _each(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    supervise: Supervise,
    thinking: Thinking,
    source: str,
) -> tuple[list[Sample | Drop], int]:
    """Of every row its sample or why it has none; and how many were cut."""
    found: list[Sample | Drop] = []
    cut = 0
    ahead = rendered_ahead(rows, tokenizer, supervise, thinking)
    for number, (row, texts) in enumerate(zip(rows, ahead, strict=True), start=1):
        own = row.get("id")
        name = f"{source}:{number}" + ("" if own is None else f" (id {own})")
        marked = mark_row(row, tokenizer, supervise, name, thinking, texts)
        if isinstance(marked, Drop):
            found.append(marked)
            continue
        kept = cut_to(marked, max_length)
        if isinstance(kept, Drop):
            found.append(kept)
            continue
        cut += len(kept.input_ids) < len(marked.input_ids)
        task = row.get("task", row.get("dataset"))
        found.append(
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
    for line in lines_of(unseen_counts([one for one in found if isinstance(one, Sample)])):
        log.warning("%s: %s", source, line)
    return found, cut


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
            "need data.completions: student or teacher"
        )
    if dropped > max_dropped * total:
        raise DataError(
            f"{source}: {dropped} of {total} rows had to be dropped ({reasons}), more than the share of "
            f"{max_dropped:g} that is allowed; mend the rows, raise data.max_dropped, or data.max_length "
            "where the models have more positions"
        )
    if dropped:
        log.warning("%s: dropped %d of %d rows (%s)", source, dropped, total, reasons)
    if cut:
        log.warning("%s: cut %d of %d rows at max_length", source, cut, total)


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
