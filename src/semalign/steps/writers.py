"""Who writes the answers to prompts: one model, or the student with its teacher's corrections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from semalign.config import SamplingConfig, TransferConfig
from semalign.data import encode_prompt, shared_vocabulary
from semalign.evaluation.asked import asked_answers
from semalign.evaluation.decoding import GREEDY, answers
from semalign.evaluation.speculative import corrected_answers
from semalign.models.decoder import Decoder
from semalign.run.journal import Journal
from semalign.run.progress import bar
from semalign.steps.prompts import Chat

SEED_STEP = 1_000_003  # further apart than a run has prompts


@dataclass(frozen=True)
class Asking:
    """How answers are asked for, and what is kept of them."""

    config: TransferConfig
    samples: int = 1
    sampling: SamplingConfig = GREEDY

    def __call__(
        self,
        open_writer: Callable[[], Writer],
        prompts: Sequence[Chat],
        part: Path,
        wanted: Mapping[str, Any],
    ) -> list[list[str | None]]:
        """The answers to each prompt, None for one that did not end; kept in `part` batch by batch."""
        journal = Journal(part, wanted, list[str | None])
        size = max(1, self.config.evaluation.batch_size // self.samples)
        # A batch of which a part was written draws other answers to the rest.
        journal.keep_multiple(size, len(prompts))
        if len(journal.values) >= len(prompts):
            return journal.values[: len(prompts)]
        write = open_writer()
        with bar(len(prompts), "answers") as progress:
            progress.update(len(journal.values))
            for start in range(len(journal.values), len(prompts), size):
                batch = prompts[start : start + size]
                # A seed of the batch and not of the run, so that a run that was stopped draws the same.
                found = write(self, batch, self.config.seed * SEED_STEP + start)
                texts = [text if has_ended else None for text, has_ended in found]
                journal.add(texts[n : n + self.samples] for n in range(0, len(texts), self.samples))
                progress.update(len(batch))
        return journal.values


Writer = Callable[[Asking, Sequence[Chat], int], list[tuple[str, bool]]]
"""Prompts and a seed to answers, and whether each came to its end."""


def alone(model: Decoder, before: Callable[[Chat], Chat] = lambda prompt: prompt) -> Writer:
    """A model alone writes; `before` puts what it is shown before a prompt."""

    def write(asking: Asking, prompts: Sequence[Chat], seed: int) -> list[tuple[str, bool]]:
        assert model.tokenizer is not None
        options = asking.config.evaluation
        return answers(
            model.model,
            model.tokenizer,
            [before(prompt) for prompt in prompts],
            asking.config.data.max_new_tokens,
            options.batch_size,
            engine=options.engine,
            server=options.server,
            samples=asking.samples,
            sampling=asking.sampling,
            seed=seed,
        )

    return write


def served(
    tokenizer: PreTrainedTokenizerBase, before: Callable[[Chat], Chat] = lambda prompt: prompt
) -> Writer:
    """A teacher that a server holds writes."""

    def write(asking: Asking, prompts: Sequence[Chat], seed: int) -> list[tuple[str, bool]]:
        return asked_answers(
            asking.config.teacher,
            tokenizer,
            [before(prompt) for prompt in prompts],
            asking.config.data.max_new_tokens,
            samples=asking.samples,
            sampling=asking.sampling,
            seed=seed,
        )

    return write


def together(student: Decoder, teacher: Decoder, before: Callable[[Chat], Chat]) -> Writer:
    """The student writes and the teacher corrects."""
    assert student.tokenizer is not None and teacher.tokenizer is not None
    tokenizer = student.tokenizer
    shared = shared_vocabulary(
        teacher.tokenizer, tokenizer, teacher.shape.vocabulary, student.shape.vocabulary
    )

    def write(asking: Asking, prompts: Sequence[Chat], seed: int) -> list[tuple[str, bool]]:
        return corrected_answers(
            student,
            teacher,
            [(encode_prompt(p, tokenizer), encode_prompt(before(p), tokenizer)) for p in prompts],
            tokenizer,
            vocabulary=shared.size,
            accepted=asking.config.data.accepted,
            max_new_tokens=asking.config.data.max_new_tokens,
            batch_size=asking.config.evaluation.batch_size,
            samples=asking.samples,
            sampling=asking.sampling,
            seed=seed,
        )

    return write
