"""What the teacher is shown before a row and the student is not: solved rows, or the row's own answer.

Shown rows are earlier turns of the conversation, between a system turn and the row's own, so that no words are put into the prompt.
A teacher that has them in sight says better what comes next, and a student that is trained on this learns to do without
(context distillation, arXiv 2209.15189).
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from semalign.config import DataConfig, ModelConfig
from semalign.data.chat import conversation, lacks_answer
from semalign.data.kinds import CONVERSATIONS, Row, row_kind
from semalign.data.overlap import prompt_of
from semalign.data.samples import Sample, prepare_each
from semalign.data.seen import Message
from semalign.errors import DataError


def known_view(model: ModelConfig) -> dict[str, Any]:
    """What a model sees beside the rows, for fingerprints; named only where it is something, so that what is older stays valid."""
    return {"sees": [model.sees, model.shots]} if model.sees != "nothing" else {}


@dataclass(frozen=True)
class Shown:
    """Which rows a model is shown before which; a student none."""

    model: ModelConfig
    solved: Sequence[Row]
    """The given rows; those with an answer can be shown."""
    seed: int

    def __post_init__(self) -> None:
        if self.model.sees != "nothing" and not self._answers:
            raise DataError(
                f"teacher.sees: expected given rows of messages with answers, which {self.model.sees} are made of, got none; give "
                "some, or set teacher.sees: nothing."
            )

    @cached_property
    def _answers(self) -> dict[str, list[Message]]:
        """Question and answer of each given prompt, without a system turn."""
        chats = [row for row in self.solved if row_kind(row) in CONVERSATIONS and not lacks_answer(row)]
        turns = {prompt_of(row): conversation(row, row_kind(row)) for row in reversed(chats)}
        return {prompt: _spoken(said) for prompt, said in turns.items() if said}

    def before(self, row: Row, name: str | None = None) -> Row:
        """A row of messages with what the teacher is shown before it. The same prompt is always shown the same.

        Args:
            name: what the row is called in messages; None: its prompt.

        Raises:
            DataError: the row is no conversation, or its own answer is not known.
        """
        if self.model.sees == "nothing":
            return row
        prompt = prompt_of(row)
        name = name or f"prompt {prompt!r:.60}"
        if (kind := row_kind(row)) not in CONVERSATIONS:
            raise DataError(
                f"{name}: teacher.sees needs rows with messages, got {kind}; turn prompts into a message of role user."
            )
        turns = conversation(row, kind)
        if self.model.sees == "answer":
            if prompt not in self._answers:
                raise DataError(
                    f"{name}: teacher.sees is answer, but no given row answers this prompt; set data.variants: 0 and give every row an "
                    "answer, or set teacher.sees: shots."
                )
            shown = [self._answers[prompt]]
        else:
            shown = [self._answers[p] for p in self._others(prompt)]
        system = [turn for turn in turns if turn["role"] == "system"]
        messages = [*system, *(turn for said in shown for turn in said), *_spoken(turns)]
        return {k: v for k, v in row.items() if k not in ("prompt", "completion")} | {"messages": messages}

    def _others(self, prompt: str) -> list[str]:
        """The prompts of the rows that are shown before one: drawn among all but itself."""
        at, count = bisect_left(self._prompts, prompt), len(self._prompts)
        is_among = prompt in self._answers
        drawn = random.Random(f"shots {self.seed} {prompt}")
        numbers = drawn.sample(range(count - is_among), min(self.model.shots, count - is_among))
        return [self._prompts[n + (is_among and n >= at)] for n in numbers]

    @cached_property
    def _prompts(self) -> list[str]:
        return sorted(self._answers)

    def views(
        self,
        samples: Sequence[Sample],
        tokenizer: PreTrainedTokenizerBase,
        data: DataConfig,
        positions: int | None,
    ) -> list[Sample]:
        """Samples that know how the teacher reads them: the same supervised tokens after what it is shown.

        Args:
            positions: how many tokens the teacher can read.

        Raises:
            DataError: a row is no conversation, too long with what is shown, or the chat template renders its answer otherwise then.
        """
        if self.model.sees == "nothing":
            return list(samples)
        rows = [self.before(sample.row, f"row {sample.id}") for sample in samples]
        source = "rows as the teacher sees them"
        wholes = prepare_each(rows, tokenizer, thinking=data.thinking, source=source)
        return [
            replace(sample, view=_view(sample, whole, self.model.sees, positions))
            for sample, whole in zip(samples, wholes, strict=True)
        ]


def _spoken(turns: Sequence[Message]) -> list[Message]:
    return [turn for turn in turns if turn["role"] != "system"]


def _view(sample: Sample, whole: Sample | None, sees: str, positions: int | None) -> Sample:
    """What the teacher reads of a row, cut where the row is."""
    start = sample.mask.index(True)
    answer = sample.input_ids[start:]
    at = whole.mask.index(True) if whole else 0
    if whole is None or whole.input_ids[at : at + len(answer)] != answer:
        raise DataError(
            f"row {sample.id}: the chat template renders its answer otherwise once teacher.sees: {sees} puts turns before it, so "
            "both models would read different tokens; set teacher.sees: nothing."
        )
    length = at + len(answer)
    if positions is not None and length > positions:
        raise DataError(
            f"row {sample.id}: expected at most the teacher's {positions} tokens, got {length} with what teacher.sees puts before it; "
            "lower teacher.shots or data.max_length."
        )
    return replace(
        whole, input_ids=whole.input_ids[:length], mask=[*[False] * at, *sample.mask[start:]], row={}
    )
