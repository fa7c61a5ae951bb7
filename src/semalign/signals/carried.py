"""A teacher's distribution, told in its own tokens, carried to the tokens of a student with another tokenizer.

Both write the same answer. At a place where both begin a token the teacher's candidates are texts that may come next, and each one's
probability goes to the student's token that begins to write it: the token of exactly this text, else the first of the student's own
split of it. Where the student begins a token within one of the teacher's, the candidates that agree with what is written of it so far
are renormalised. The row's own token, where it is longer than the teacher's, gets the product of the teacher's probabilities of all
tokens in it, and the shorter one nothing. What has no token in the student's vocabulary, or is outside what the teacher tells, is left
to the rest, so that the carried probabilities sum to at most 1.

Legend: N supervised tokens of a row, K candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from semalign.data import Sample
from semalign.data.lexicon import Lexicon
from semalign.data.rereading import Writing, without_surplus, writing
from semalign.signals.served import Told

LEAST = 1e-30  # a probability's logarithm has to be finite
END = None
"""Among candidates: the answer ends."""
Candidates = list[tuple[bytes | None, float]]


@dataclass
class Carried:
    """How much could be carried, over all tokens so far."""

    tokens: int = 0
    """Supervised tokens of the student."""
    exact: int = 0
    """Those that are one token of the teacher's too."""
    mass: float = 0.0
    """Sum of the carried probabilities, at most 1 a token."""

    def as_json(self) -> dict[str, float]:
        """Shares."""
        return {
            "exact_tokens": self.exact / max(1, self.tokens),
            "carried_mass": self.mass / max(1, self.tokens),
        }


@dataclass
class Carrier:
    """From one vocabulary to the other."""

    theirs: Lexicon
    """The teacher's tokens."""
    ours: Lexicon
    """The student's."""
    top_k: int
    """K of the student."""
    counted: Carried = field(default_factory=Carried)

    def carry(self, told: Told, sample: Sample) -> Told:
        """What the teacher says at each supervised token of the student's, from what it says at its own.

        Args:
            told: of sample.for_teacher.
        """
        ours, theirs = writing(sample, self.ours), writing(sample.for_teacher, self.theirs)
        assert ours is not None and theirs is not None
        row = _Row(self, told, ours, theirs)
        own = [i for i, m in zip(sample.input_ids, sample.mask, strict=True) if m]
        ids_NK = torch.zeros(len(own), self.top_k, dtype=torch.long)
        logp_NK = torch.full((len(own), self.top_k), -torch.inf)
        labels_N = torch.empty(len(own))
        for n, label in enumerate(own):
            mass = row.at(n, label)
            labels_N[n] = math.log(max(mass.get(label, 0.0), LEAST))
            best = sorted(mass.items(), key=lambda entry: (-entry[1], entry[0]))[: self.top_k]
            for slot, (index, p) in enumerate((i, p) for i, p in best if p > LEAST):
                ids_NK[n, slot], logp_NK[n, slot] = index, math.log(p)
            self.counted.tokens += 1
            self.counted.exact += row.is_exact(n)
            self.counted.mass += sum(mass.values())
        return Told(ids_NK, logp_NK, labels_N)


class _Row:
    """One row's tokens on both sides, by the bytes of the text that they share."""

    def __init__(self, carrier: Carrier, told: Told, ours: Writing, theirs: Writing) -> None:
        self.carrier, self.ours, self.theirs = carrier, ours, theirs
        self.surplus = without_surplus(ours, theirs)
        self.our_spans = _spans(ours.texts, self.surplus[0])
        self.their_spans = _spans(theirs.texts, self.surplus[1])
        # Of a row that was cut the teacher's last token may go on.
        self.text = theirs.whole[self.surplus[1] :]
        self.labels: list[float] = told.label_logp_N.exp().tolist()
        self.told = list(zip(told.ids_NK.tolist(), told.logp_NK.exp().tolist(), strict=True))
        self._at = 0

    def is_exact(self, n: int) -> bool:
        """Whether a token of ours writes what one of theirs writes."""
        if n >= len(self.our_spans):
            return n == len(self.our_spans) and bool(self.theirs.ends)
        return self.our_spans[n] in self.their_spans

    def at(self, n: int, label: int) -> dict[int, float]:
        """Probabilities of tokens of ours as the n-th one of the row, which is `label`; n grows from call to call."""
        if n >= len(self.our_spans):
            return self._at_end(n, label)
        begin, end = self.our_spans[n]
        if begin == end:
            return {label: 1.0}  # a space that the teacher does not write
        while self.their_spans[self._at][1] <= begin:
            self._at += 1
        at = self._at
        start, stop = self.their_spans[at]
        candidates = self._left(at, self.text[start:begin])
        own = self.text[begin:stop]
        mass: dict[int, float] = {}
        p_own = 0.0
        for text, p in candidates:
            if text == own and p_own == 0.0:
                p_own = p
                continue
            index = self._first(text, begin)
            if index is not None:
                mass[index] = mass.get(index, 0.0) + p
        if end > stop:
            p_own *= self._rest_of(at + 1, end)
        mass[label] = mass.get(label, 0.0) + p_own
        return mass

    def _first(self, text: bytes | None, begin: int) -> int | None:
        if text is END:
            return self.ours.ends[0] if self.ours.ends else None
        # The first token of all is written with the student's own leading space.
        return self.carrier.ours.first(b" " * (self.surplus[0] if begin == 0 else 0) + text)

    def _at_end(self, n: int, label: int) -> dict[int, float]:
        if n > len(self.our_spans) or not self.theirs.ends:
            return {label: 1.0}  # what the template always writes after the end
        mass: dict[int, float] = {}
        for text, p in self._candidates(len(self.their_spans)):
            index = label if text is END else self.carrier.ours.first(text)
            if index is not None:
                mass[index] = mass.get(index, 0.0) + p
        return mass

    def _candidates(self, at: int) -> Candidates:
        """Texts that the teacher may write as its token number `at`, with their probabilities; its own is among them."""
        own = END
        lead = b""
        if at < len(self.their_spans):
            own = self.text[slice(*self.their_spans[at])]
            lead = b" " * (len(self.theirs.texts[at]) - len(own))
        found: Candidates = []
        for index, p in zip(*self.told[at], strict=True):
            text = self.carrier.theirs.text_of(index)
            is_end = index in self.theirs.ends[:1]
            if p > 0 and (is_end or text is not None):
                found.append((END if text is None else text.removeprefix(lead), p))
        if all(text != own for text, _ in found):
            found.append((own, self.labels[at]))
        return found

    def _left(self, at: int, written: bytes) -> Candidates:
        """What is left to write of the teacher's candidates once some of it is written; at its beginning all of them."""
        candidates = self._candidates(at)
        if not written:
            return candidates
        agreeing = [(text, p) for text, p in candidates if text is not END and text.startswith(written)]
        total = sum(p for _, p in agreeing)
        left = [(text[len(written) :], p / max(total, LEAST)) for text, p in agreeing if text is not END]
        # What may follow a candidate that is written to its end is not known.
        return [(text, p) for text, p in left if text]

    def _rest_of(self, at: int, end: int) -> float:
        """Probability that the teacher goes on with the row's text up to a place, from its token number `at` on."""
        p = 1.0
        while at < len(self.their_spans) and self.their_spans[at][0] < end:
            start, stop = self.their_spans[at]
            if stop <= end:
                p *= self.labels[at]
            else:
                needed = self.text[start:end]
                p *= sum(q for text, q in self._candidates(at) if text is not END and text.startswith(needed))
            at += 1
        return p


def _spans(texts: Sequence[bytes], surplus: int) -> list[tuple[int, int]]:
    """Where each token begins and ends in the shared text, which lacks the first `surplus` bytes."""
    spans, at = [], -surplus
    for text in texts:
        spans.append((max(0, at), max(0, at + len(text))))
        at += len(text)
    return spans
