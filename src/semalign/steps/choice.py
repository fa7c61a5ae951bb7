"""Which of the answers that a model has written are trained on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch

from semalign.config import TransferConfig
from semalign.data.batches import batch_inputs
from semalign.data.chat import answered
from semalign.data.kinds import Row
from semalign.data.samples import prepare_each
from semalign.evaluation.tasks import check_answers
from semalign.methods.objective import sum_of_row_means
from semalign.models.decoder import Decoder
from semalign.steps.prompts import Chat

REASONS = ("unended", "blank", "control", "repeated", "wrong", "less_likely")
"""Why answers are dropped; see `unusable` for the first three."""


def unusable(text: str | None, controls: Collection[str]) -> str | None:
    """Why nobody can be trained on an answer: it did not end, says nothing, or has control tokens in it, as calls of tools and the channels
    of some models do, which as the words of an answer would be others."""
    if text is None:
        return "unended"
    if not text.strip():
        return "blank"
    return "control" if any(token in text for token in controls) else None


def choose(
    config: TransferConfig,
    rows: Sequence[Row],
    prompts: Sequence[Chat],
    texts: Sequence[Sequence[str | None]],
    open_teacher: Callable[[], Decoder],
    controls: Collection[str] = (),
) -> tuple[list[Chat], dict[str, int]]:
    """Conversations with the answers that `data.keep` leaves, and how many were dropped for which of the `REASONS`.

    Args:
        rows: those that the first prompts are of, with their checks.
        texts: the answers to each prompt, None for one that did not end.
        controls: control tokens of the model that wrote them.
    """
    dropped = dict.fromkeys(REASONS, 0)
    left: list[list[str]] = []
    for several in texts:
        reasons = [unusable(text, controls) for text in several]
        usable = [text for text, why in zip(several, reasons, strict=True) if text is not None and not why]
        different = list(dict.fromkeys(usable))
        for why in filter(None, reasons):
            dropped[why] += 1
        dropped["repeated"] += len(usable) - len(different)
        left.append(different)
    if config.data.keep != "ended":
        right = _right(config, rows, left)
        dropped["wrong"] = sum(map(len, left)) - sum(map(len, right))
        left = right
    if config.data.keep == "best":
        best = _likeliest(config, prompts, left, open_teacher)
        dropped["less_likely"] = sum(map(len, left)) - sum(map(len, best))
        left = best
    chosen = [
        answered(prompt, text) for prompt, several in zip(prompts, left, strict=True) for text in several
    ]
    return chosen, dropped


def _right(config: TransferConfig, rows: Sequence[Row], texts: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of the answers to each row's prompt those that pass its check."""
    asked = [(row, text) for row, several in zip(rows, texts, strict=True) for text in several]
    verdicts = iter(
        check_answers(
            [row for row, _ in asked],
            [text for _, text in asked],
            allow_code_execution=config.evaluation.allow_code_execution,
        )
    )
    return [[text for text in several if next(verdicts).correct] for several in texts]


def _likeliest(
    config: TransferConfig,
    prompts: Sequence[Chat],
    texts: Sequence[Sequence[str]],
    open_teacher: Callable[[], Decoder],
) -> list[list[str]]:
    """Of the answers to each prompt the one with the highest mean log-probability a token."""
    found = []
    for prompt, several in zip(prompts, texts, strict=True):
        if len(several) > 1:
            losses = [_mean_loss(open_teacher(), answered(prompt, text), config) for text in several]
            several = [several[losses.index(min(losses))]]
        found.append(list(several))
    return found


@torch.inference_mode()
def _mean_loss(teacher: Decoder, chat: Chat, config: TransferConfig) -> float:
    assert teacher.tokenizer is not None
    [sample] = prepare_each(
        [chat], teacher.tokenizer, thinking=None, source="an answer", max_length=config.data.max_length
    )
    # A prompt may fill max_length; training drops such a row, and here it stops nothing.
    if sample is None:
        return float("inf")
    tokens, states = batch_inputs(teacher, [sample])
    with teacher.span(0, teacher.num_layers, norm=True):
        output = teacher.forward(tokens)
    return float(sum_of_row_means(output, states, [sample], teacher.head()))
