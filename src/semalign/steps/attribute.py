"""Step 1: which teacher layers the task depends on. One forward and one activation-only backward pass per row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from semalign.config import TransferConfig
from semalign.data import Sample, collate, length_batches
from semalign.data.batches import state_mask
from semalign.data.drawing import attribution_rows
from semalign.data.inputs import Inputs
from semalign.errors import ModelError
from semalign.maths.attribution import head_scores
from semalign.methods.objective import sum_of_row_means
from semalign.models.capture import Point, capture
from semalign.models.decoder import Decoder, let_checkpoint
from semalign.models.head import Head
from semalign.run.folder import RunFolder, fingerprint, is_done, save_result
from semalign.run.meter import measured
from semalign.run.progress import bar
from semalign.signals.request import check_teacher, reads_scores

__all__ = ["Scores", "attribute", "attribute_all", "attribute_as", "attribute_layers"]
SCHEMA = 3  # of scores.json; 3 draws its rows


@contextmanager
def _activation_gradients(decoder: Decoder, checkpointing: bool) -> Iterator[None]:
    """Inside, parameters take no gradient and the embedding's output starts the graph."""
    wanted = [p.requires_grad for p in decoder.model.parameters()]
    decoder.model.requires_grad_(False)
    handle = decoder.model.get_input_embeddings().register_forward_hook(
        lambda m, a, out: out.requires_grad_(True)
    )
    if checkpointing:
        decoder.model.activation_checkpointing_enable({"use_reentrant": False})
        let_checkpoint(decoder.model)
    try:
        yield
    finally:
        handle.remove()
        if checkpointing:
            decoder.model.activation_checkpointing_disable()
            decoder.model.eval()
        for parameter, flag in zip(decoder.model.parameters(), wanted, strict=True):
            parameter.requires_grad_(flag)


@dataclass(frozen=True)
class Scores:
    """Attribution scores."""

    layers: list[float]
    """Of layers 1..L."""
    heads: list[list[float]]
    """Of heads 1..H of each layer."""


def attribute_layers(
    teacher: Decoder,
    samples: Sequence[Sample],
    *,
    batch_size: int = 8,
    aggregate: Literal["sum", "abs"] = "abs",
    activation_checkpointing: bool = False,
) -> list[float]:
    """Attribution scores of layers 1..L: mean over rows of the aggregate of gradient x activation.

    See `attribute_all`, which gives those of single heads beside them.
    """
    return attribute_all(
        teacher,
        samples,
        batch_size=batch_size,
        aggregate=aggregate,
        activation_checkpointing=activation_checkpointing,
    ).layers


def attribute_all(
    teacher: Decoder,
    samples: Sequence[Sample],
    *,
    batch_size: int = 8,
    aggregate: Literal["sum", "abs"] = "abs",
    activation_checkpointing: bool = False,
) -> Scores:
    """Attribution scores of layers 1..L and of their heads: mean over rows of the aggregate of gradient x activation.

    The loss of a row is its mean negative log-likelihood over supervised tokens; the activation is the stream after
    the layer, or a head's values as they enter the output projection. Memory holds one batch's activations and no
    weight gradient, whatever the number of parameters. An offloaded teacher needs
    `activation_checkpointing`: without it the graph holds every layer's weights.

    Raises:
        ModelError: every score is zero, or one is not finite.
    """
    layers = range(1, teacher.num_layers + 1)
    points = [Point(layer, "block") for layer in layers]
    points += [Point(layer, "head") for layer in layers if teacher.has_heads(layer)]
    totals = {p: torch.zeros(teacher.shape.heads if p.interface == "head" else 1).double() for p in points}
    head = teacher.head()
    batches = length_batches([len(s.input_ids) for s in samples], max_tokens=None, batch_size=batch_size)
    with (
        _activation_gradients(teacher, activation_checkpointing),
        torch.enable_grad(),
        bar(len(samples), "attribute") as progress,
    ):
        for batch in batches:
            found = _batch_scores(teacher, [samples[i] for i in batch], points, head, aggregate)
            for point, scores_H in found.items():
                totals[point] += scores_H
            progress.update(len(batch))
    means = {point: (total / len(samples)).tolist() for point, total in totals.items()}
    heads = [means.get(Point(n, "head"), []) for n in layers]
    scores = Scores([means[Point(n, "block")][0] for n in layers], heads)
    every = torch.cat(list(totals.values()))
    if not torch.isfinite(every).all() or not any(scores.layers):
        raise ModelError(
            f"{teacher.name}: expected finite, non-zero attribution scores, got {scores.layers}; use dtype float32 or bfloat16."
        )
    return scores


def attribute_as(config: TransferConfig, teacher: Decoder, samples: Sequence[Sample]) -> Scores:
    """`attribute_all` with a run's options."""
    options = config.attribution
    return attribute_all(
        teacher,
        samples,
        batch_size=options.batch_size,
        aggregate=options.aggregate,
        activation_checkpointing=options.activation_checkpointing or config.teacher.offload is not None,
    )


def _batch_scores(
    teacher: Decoder,
    samples: Sequence[Sample],
    points: Sequence[Point],
    head: Head,
    aggregate: Literal["sum", "abs"],
) -> dict[Point, Tensor]:
    """Scores (H,) by point, added up over the rows of a batch; a whole layer is one head. Its tensors end with the call."""
    padded = {k: v.to(teacher.device) for k, v in collate(samples).items()}
    with capture(teacher, points) as found:
        output_BTD = teacher.forward(padded["input_ids"])
    loss = sum_of_row_means(output_BTD, state_mask(padded["mask"]), samples, head)
    activations = [found[p] for p in points]
    gradients = torch.autograd.grad(loss, activations)
    mask_BT, scores = padded["attention_mask"].bool(), {}
    for point, activation, gradient in zip(points, activations, gradients, strict=True):
        count = teacher.shape.heads if point.interface == "head" else 1
        # Layers of one teacher may lie on several devices.
        scores_BH = head_scores(
            activation, gradient, mask_BT.to(activation.device), count, aggregate=aggregate
        )
        scores[point] = scores_BH.double().sum(0).cpu()
    return scores


def attribute(config: TransferConfig, run: RunFolder, inputs: Inputs, *, is_asked_for: bool = False) -> None:
    """Write scores.json, without scores where the plan does not depend on them.

    Args:
        is_asked_for: score them in any case.
    """
    options = config.attribution
    wanted = fingerprint(
        teacher=inputs.fingerprint["teacher"],
        train=inputs.fingerprint["train"],
        rows=options.rows,
        seed=config.seed,
        aggregate=options.aggregate,
        schema=SCHEMA,
    )
    check_teacher(config, inputs.teacher)
    # Scores that are there stay, whoever wanted them.
    if is_done(run.scores, wanted, doing=None):
        return
    is_scored = inputs.teacher.has_layers and (is_asked_for or reads_scores(config))
    if not is_scored:
        wanted |= {"scored": False}
    if is_done(run.scores, wanted):
        return
    result: dict = {"aggregate": options.aggregate}
    with measured(result):
        samples: list[Sample] = []
        scores = Scores([], [])
        if is_scored:
            samples = attribution_rows(config, inputs.train)
            scores = attribute_as(config, inputs.load_teacher(), samples)
    result |= {
        "rows": len(samples),
        "layers": [{"layer": n, "score": s} for n, s in enumerate(scores.layers, start=1)],
        "heads": [
            {"layer": n, "head": h, "score": s}
            for n, row in enumerate(scores.heads, start=1)
            for h, s in enumerate(row, start=1)
        ],
    }
    save_result(run.scores, wanted, result)
