"""Rows as a teacher with a tokenizer and a chat template of its own reads them: other tokens that write the same answer.

An answer is its text and the control tokens that end it. Both tokenizers write the same bytes of it, in tokens that may begin and end
at other places.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from semalign.config import DataConfig
from semalign.data.lexicon import Lexicon
from semalign.data.samples import Sample, prepare_each
from semalign.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Writing:
    """The supervised tokens of a sample: those that write its answer, and the control tokens after them."""

    texts: list[bytes]
    """What each token of the text writes."""
    ends: list[int]
    """Ids of the control tokens."""

    @property
    def whole(self) -> bytes:
        """The text."""
        return b"".join(self.texts)


def writing(sample: Sample, lexicon: Lexicon) -> Writing | None:
    """The supervised tokens as bytes; None where they are not one stretch, or a control token stands within the text."""
    start = sample.mask.index(True)
    stop = len(sample.mask) - sample.mask[::-1].index(True)
    if not all(sample.mask[start:stop]):
        return None
    ids = sample.input_ids[start:stop]
    texts = [lexicon.text_of(index) for index in ids]
    count = next((n for n, text in enumerate(texts) if text is None), len(ids))
    if any(text is not None for text in texts[count:]):
        return None
    return Writing([text for text in texts if text is not None], ids[count:])


def without_surplus(ours: Writing, theirs: Writing) -> tuple[int, int]:
    """Spaces at the beginning that one side writes and the other does not: SentencePiece puts one before the first word."""
    leading = [len(w.whole) - len(w.whole.lstrip(b" ")) for w in (ours, theirs)]
    return leading[0] - min(leading), leading[1] - min(leading)


def reread(
    samples: Sequence[Sample],
    lexicons: tuple[Lexicon, Lexicon],
    data: DataConfig,
    *,
    positions: int | None,
    source: str,
) -> list[Sample]:
    """Samples that know how the teacher reads them; those whose answer it would write otherwise are dropped.

    Args:
        lexicons: the student's and the teacher's.
        positions: how many tokens the teacher can read.
        source: name of the rows in messages.

    Raises:
        DataError: more rows than data.max_dropped allows are dropped.
    """
    rows, theirs = [sample.row for sample in samples], lexicons[1].tokenizer
    wholes = prepare_each(rows, theirs, thinking=data.thinking, source=f"{source} for the teacher")
    kept: list[Sample] = []
    drops: Counter[str] = Counter()
    for sample, whole in zip(samples, wholes, strict=True):
        found = _reread(sample, whole, lexicons, positions)
        if isinstance(found, str):
            drops[found] += 1
        else:
            kept.append(replace(sample, view=found))
    if drops:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in drops.most_common())
        if not kept or drops.total() > data.max_dropped * len(samples):
            raise DataError(
                f"{source}: {drops.total()} of {len(samples)} rows had to be dropped for teacher.tokenizer: own ({reasons}), more than the share of "
                f"{data.max_dropped:g} that is allowed; mend the rows, raise data.max_dropped, or take a teacher with the student's tokenizer."
            )
        log.warning("%s: dropped %d of %d rows (%s)", source, drops.total(), len(samples), reasons)
    return kept


def _reread(
    sample: Sample, whole: Sample | None, lexicons: tuple[Lexicon, Lexicon], positions: int | None
) -> Sample | str:
    """What the teacher reads of a row, cut where the row is; or why there is nothing."""
    ours = writing(sample, lexicons[0])
    theirs = None if whole is None else writing(whole, lexicons[1])
    if whole is None or ours is None or theirs is None:
        return "the answer is no plain text for both tokenizers"
    surplus = without_surplus(ours, theirs)
    mine, other = ours.whole[surplus[0] :], theirs.whole[surplus[1] :]
    is_cut = not ours.ends
    if not other.startswith(mine) or (not is_cut and other != mine):
        if other.strip().startswith(mine.strip()):
            return "one of the chat templates strips the spaces around an answer; strip them in the rows"
        return "the two chat templates write the answer differently"
    if not mine:
        return "the answer has no text"
    start, stop = whole.mask.index(True), len(whole.input_ids)
    if is_cut:
        # Up to the token that holds the last byte.
        at, count = -surplus[1], 0
        while at < len(mine):
            at += len(theirs.texts[count])
            count += 1
        stop = start + count
    if positions is not None and stop > positions:
        return f"longer than the teacher's {positions} tokens"
    return replace(whole, input_ids=whole.input_ids[:stop], mask=whole.mask[:stop], row={})
