"""Step 1: which teacher layers the task depends on. One forward and one activation-only backward pass per row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from semalign.capture import Point, capture
from semalign.config import TransferConfig
from semalign.data import Sample, collate, length_batches
from semalign.errors import ModelError
from semalign.folder import RunFolder, fingerprint, is_done, measured, save_result
from semalign.loading import load
from semalign.maths.attribution import layer_scores
from semalign.models import Decoder, share_vocabulary
from semalign.progress import bar
from semalign.signals import state_mask, sum_of_row_means
from semalign.steps.inputs import Inputs

__all__ = ["attribute", "attribute_layers"]


@contextmanager
def _activation_gradients(decoder: Decoder, checkpointing: bool) -> Iterator[None]:
    """Inside, parameters take no gradient and the embedding's output starts the graph."""
    wanted = [p.requires_grad for p in decoder.model.parameters()]
    decoder.model.requires_grad_(False)
    handle = decoder.model.get_input_embeddings().register_forward_hook(
        lambda m, a, out: out.requires_grad_(True)
    )
    if checkpointing:
        decoder.model.gradient_checkpointing_enable({"use_reentrant": False})
        decoder.model.train()
        for module in decoder.model.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
    try:
        yield
    finally:
        handle.remove()
        if checkpointing:
            decoder.model.gradient_checkpointing_disable()
            decoder.model.eval()
        for parameter, flag in zip(decoder.model.parameters(), wanted, strict=True):
            parameter.requires_grad_(flag)


def attribute_layers(
    teacher: Decoder,
    samples: Sequence[Sample],
    *,
    batch_size: int = 8,
    aggregate: Literal["sum", "abs"] = "abs",
    activation_checkpointing: bool = False,
) -> list[float]:
    """Attribution scores of layers 1..L: mean over rows of the aggregate of gradient x activation.

    The loss of a row is its mean negative log-likelihood over supervised tokens; the activation is the stream after
    the layer. Memory holds one batch's activations and no weight gradient, whatever the number of parameters.

    Raises:
        ModelError: every score is zero, or one is not finite.
    """
    points = [Point(layer, "block") for layer in range(1, teacher.num_layers + 1)]
    totals = torch.zeros(teacher.num_layers, dtype=torch.float64)
    head = teacher.head()
    batches = length_batches([len(s.input_ids) for s in samples], max_tokens=None, batch_size=batch_size)
    with (
        _activation_gradients(teacher, activation_checkpointing),
        torch.enable_grad(),
        bar(len(samples), "attribute") as progress,
    ):
        for batch in batches:
            chosen = [samples[i] for i in batch]
            padded = {k: v.to(teacher.device) for k, v in collate(chosen).items()}
            with capture(teacher, points) as found:
                output_BTD = teacher.forward(padded["input_ids"], padded["attention_mask"])
            loss = sum_of_row_means(output_BTD, state_mask(padded["mask"]), chosen, head)
            activations = [found[p] for p in points]
            gradients = torch.autograd.grad(loss, activations)
            for n, (activation, gradient) in enumerate(zip(activations, gradients, strict=True)):
                mask = padded["attention_mask"].bool()
                totals[n] += (
                    layer_scores(activation, gradient, mask, aggregate=aggregate).double().sum().cpu()
                )
            progress.update(len(batch))
    scores = (totals / len(samples)).tolist()
    if not torch.isfinite(totals).all() or not totals.any():
        raise ModelError(
            f"{teacher.name}: expected finite, non-zero attribution scores, got {scores}; use dtype float32 or bfloat16."
        )
    return scores


def attribute(config: TransferConfig, run: RunFolder, inputs: Inputs) -> None:
    """Write scores.json."""
    options = config.attribution
    wanted = fingerprint(
        teacher=inputs.fingerprint["teacher"],
        train=inputs.fingerprint["train"],
        rows=options.rows,
        aggregate=options.aggregate,
    )
    if is_done(run.scores, wanted):
        return
    result: dict = {"aggregate": options.aggregate}
    with measured(result):
        samples = inputs.train[: options.rows]
        teacher = load(config.teacher)
        share_vocabulary(inputs.vocabulary, teacher)
        scores = attribute_layers(
            teacher,
            samples,
            batch_size=options.batch_size,
            aggregate=options.aggregate,
            activation_checkpointing=options.activation_checkpointing,
        )
    result |= {
        "rows": len(samples),
        "layers": [{"layer": n, "score": s} for n, s in enumerate(scores, start=1)],
    }
    save_result(run.scores, wanted, result)
