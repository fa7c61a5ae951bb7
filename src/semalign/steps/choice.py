"""Which of the answers that a model has written are trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def choose(
    config: TransferConfig,
    rows: Sequence[Row],
    prompts: Sequence[Chat],
    texts: Sequence[Sequence[str | None]],
    open_teacher: Callable[[], Decoder],
) -> tuple[list[Chat], dict[str, int]]:
    """Conversations with the answers that `data.keep` leaves, and how many were dropped: unended, repeated, wrong, less_likely.

    Args:
        rows: those that the first prompts are of, with their checks.
        texts: the answers to each prompt, None for one that did not end.
    """
    dropped = dict.fromkeys(("unended", "repeated", "wrong", "less_likely"), 0)
    left: list[list[str]] = []
    for several in texts:
        ended = [text for text in several if text]
        different = list(dict.fromkeys(ended))
        dropped["unended"] += len(several) - len(ended)
        dropped["repeated"] += len(ended) - len(different)
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
