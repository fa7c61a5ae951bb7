"""Seeking (Zhong et al., ICLR 2024): LoRA on crops of the teacher's most task-sensitive weights, then fine-tuning.

sensitivity(theta) = sum over rows of |theta * d loss(row) / d theta|. The L_S teacher layers with the largest sums teach
the student's layers in depth order. Of each of their matrices the window of the student's shape with the largest
sensitivity is taken; its rank-r part s B A is given to LoRA and subtracted from the student's own weight, so that the
student starts unchanged. All seven matrices are used; the later protocol of the literature (up, down, v and o) is
`recipe.lora_target_modules`.

Where this differs from the published code: embeddings and LM head are left alone (they share rows with the student's
by token, not by window); factors are float32 instead of half; only the product s B A is subtracted, as the code does and
one sentence of the paper does not say. A window never reaches over a matrix's border: where the teacher is narrower than
the student, that matrix starts as plain LoRA, and the log says so. Grouped-query attention needs nothing special:
k and v windows have the student's n_kv * head_dim rows.

`seeking` chooses every window by itself, as published, so channel 0 of one crop is another channel in the next.
`seeking_corrected` chooses windows that agree, so that the crops form a sub-network of the teacher: one range of
channels for the whole model, one of neurons per layer for gate, up and down, and whole heads, with their key-value
groups where both models group alike.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from semalign.config import TransferConfig
from semalign.data import Sample
from semalign.data.batches import batch_inputs
from semalign.data.drawing import attribution_rows
from semalign.errors import ConfigError
from semalign.maths.windows import best_span, best_window, low_rank
from semalign.methods import Recipe, Start
from semalign.methods.objective import sum_of_row_means
from semalign.models.capture import Point, capture
from semalign.models.decoder import Decoder, linear_names
from semalign.models.layouts import PROJECTIONS
from semalign.models.soundness import check_at_hand
from semalign.run.files import Record
from semalign.run.progress import bar

logger = logging.getLogger(__name__)

_FAITHFUL = Recipe(
    "seeking",
    output_loss="cross_entropy",
    learning_rate=3e-4,
    trained="all",
    lora_r=16,
    lora_target_modules=tuple(PROJECTIONS),
    start="seeking",
)
METHODS = (_FAITHFUL, replace(_FAITHFUL, name="seeking_corrected", start="seeking_corrected"))

# What a matrix's rows and columns stand for.
AXES = {
    "q_proj": ("query", "channel"),
    "k_proj": ("key", "channel"),
    "v_proj": ("key", "channel"),
    "o_proj": ("channel", "query"),
    "gate_proj": ("neuron", "channel"),
    "up_proj": ("neuron", "channel"),
    "down_proj": ("channel", "neuron"),
}
Corner = tuple[int, int]


@dataclass
class Seen:
    """What is kept of one teacher layer's sensitivities; they themselves are freed."""

    score: float
    windows: dict[str, Corner]
    """Each matrix's own best window."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Sensitivity of each channel, neuron, query and key row, over all matrices that have them."""


def sensitivities(teacher: Decoder, samples: Sequence[Sample]) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """For layers L..1: |theta * gradient| summed over rows, float32, by parameter name.

    One forward pass keeps the streams between the layers; then the gradient walks back, layer by layer and all rows
    at once, so that at no time more than one layer's sensitivities exist. Each row's loss is its mean negative
    log-likelihood.
    """
    streams = [_streams(teacher, sample) for sample in samples]
    gradients = [
        _top_gradient(teacher, sample, rows.pop()) for sample, rows in zip(samples, streams, strict=True)
    ]
    with bar(teacher.num_layers, "sensitivities") as progress:
        for layer in range(teacher.num_layers, 0, -1):
            module = teacher.layers[layer - 1]
            original = next(module.parameters()).dtype
            module.float().requires_grad_(True)
            named = dict(module.named_parameters())
            sums = {n: torch.zeros_like(p) for n, p in named.items()}
            for row, below in enumerate(streams):
                stream = below.pop().float().requires_grad_()
                with torch.enable_grad(), teacher.span(layer - 1, layer, norm=False):
                    output = teacher.forward(stream)
                found = torch.autograd.grad(output, [stream, *named.values()], gradients[row])
                gradients[row] = found[0]
                for (name, parameter), gradient in zip(named.items(), found[1:], strict=True):
                    sums[name] += (parameter.detach() * gradient).abs_()
            module.to(original)
            progress.update(1)
            yield layer, sums


@torch.no_grad()
def _streams(teacher: Decoder, sample: Sample) -> list[Tensor]:
    """Streams (1, T, D) after the embedding and after every layer."""
    ids, _ = batch_inputs(teacher, [sample])
    with teacher.span(0, 0, norm=False):
        embedded = teacher.forward(ids)
    points = [Point(layer, "block") for layer in range(1, teacher.num_layers + 1)]
    with capture(teacher, points) as found:
        teacher.forward(ids)
    return [embedded, *(found[p] for p in points)]


def _top_gradient(teacher: Decoder, sample: Sample, stream: Tensor) -> Tensor:
    _, states = batch_inputs(teacher, [sample])
    stream = stream.float().requires_grad_()
    with torch.enable_grad():
        loss = sum_of_row_means(teacher.final_norm(stream), states, [sample], teacher.head())
        return torch.autograd.grad(loss, stream)[0]


def start(
    teacher: Decoder,
    student: Decoder,
    samples: Sequence[Sample],
    config: TransferConfig,
    recipe: Recipe,
    *,
    agreeing: bool,
) -> tuple[Record, dict[str, Any]]:
    """LoRA factors `<student layer>.<module>.lora_A` (r, in) and `.lora_B` (out, r); and what was chosen.

    Raises:
        ConfigError: full weights are trained, or the student is quantised.
        ModelError: an architecture with fused matrices, or a teacher whose weights cannot be read as they are.
    """
    rank = config.train.lora_r
    if not rank:
        raise ConfigError("recipe.start: seeking starts LoRA modules, got full weights; set recipe.lora_r.")
    targets = _targets(student, config)
    shapes = {n: tuple(student.projections(1)[n].weight.shape) for n in targets}
    for decoder in (teacher, student):
        check_at_hand(decoder, "seeking")
    large = {n: tuple(m.weight.shape) for n, m in teacher.projections(1).items()}
    fitting = [n for n in targets if all(a <= b for a, b in zip(shapes[n], large[n], strict=True))]
    if skipped := sorted(set(targets) - set(fitting)):
        logger.warning(
            "%s: the student's are larger than the teacher's; they start as plain LoRA", ", ".join(skipped)
        )
    rows = attribution_rows(config, samples)
    seen = {
        n: _look(sums, {name: shapes[name] for name in fitting}) for n, sums in sensitivities(teacher, rows)
    }
    chosen = sorted(sorted(seen, key=lambda n: -seen[n].score)[: student.num_layers])
    choose = partial(_agreeing, teacher, student) if agreeing else _own
    windows = choose([seen[n] for n in chosen], {name: shapes[name] for name in fitting})
    tensors: Record = {}
    scale = config.train.lora_alpha / rank
    for student_layer, (layer, corners) in enumerate(zip(chosen, windows, strict=True), 1):
        for name, (top, left) in corners.items():
            height, width = shapes[name]
            window = teacher.projections(layer)[name].weight.detach()
            b, a = low_rank(window[top : top + height, left : left + width], rank, scale=scale)
            tensors |= {f"{student_layer}.{name}.lora_A": a, f"{student_layer}.{name}.lora_B": b}
    return tensors, {
        "rows": len(rows),
        "scores": [seen[n].score for n in sorted(seen)],
        "teacher_layers": chosen,
        "windows": windows,
        "skipped": skipped,
    }


def _targets(student: Decoder, config: TransferConfig) -> list[str]:
    targets = list(config.train.lora_target_modules) or linear_names(student)
    if unknown := [n for n in targets if n not in PROJECTIONS]:
        raise ConfigError(
            f"lora_target_modules: seeking crops {', '.join(PROJECTIONS)}, got {', '.join(unknown)}; leave those out."
        )
    return targets


def _look(sums: dict[str, Tensor], shapes: dict[str, Corner]) -> Seen:
    """Score, windows and marginal sums of one layer, before its sensitivities are freed."""
    found = Seen(sum(float(s.double().sum()) for s in sums.values()), {})
    for name, shape in shapes.items():
        matrix = sums[f"{PROJECTIONS[name]}.weight"]
        found.windows[name] = best_window(matrix, shape)
        for axis, kind in enumerate(AXES[name]):
            found.sums[kind] = found.sums.get(kind, 0) + matrix.sum(1 - axis, dtype=torch.float64)
    return found


def _own(seen: Sequence[Seen], shapes: dict[str, Corner]) -> list[dict[str, Corner]]:
    return [layer.windows for layer in seen]


def _agreeing(
    teacher: Decoder, student: Decoder, seen: Sequence[Seen], shapes: dict[str, Corner]
) -> list[dict[str, Corner]]:
    """Windows of every chosen layer whose rows and columns mean the same thing in all matrices."""
    sizes = {kind: shapes[name][axis] for name in shapes for axis, kind in enumerate(AXES[name])}
    is_alike = teacher.shape.head_dim == student.shape.head_dim
    stride = student.shape.head_dim if is_alike else 1
    channel = best_span(torch.stack([s.sums["channel"] for s in seen]).sum(0), sizes["channel"])
    group = teacher.shape.heads // teacher.shape.key_heads
    is_grouped = is_alike and group == student.shape.heads // student.shape.key_heads
    windows = []
    for layer in seen:
        starts = {"channel": channel}
        for kind in ("neuron", "key", "query"):
            if kind in sizes:
                starts[kind] = best_span(
                    layer.sums[kind], sizes[kind], stride=1 if kind == "neuron" else stride
                )
        if is_grouped and {"key", "query"} <= sizes.keys():
            # A key-value head comes with the query heads that read it.
            both = layer.sums["key"] + layer.sums["query"].view(-1, group, stride).sum(1).flatten()
            starts["key"] = best_span(both, sizes["key"], stride=stride)
            starts["query"] = starts["key"] * group
        windows.append({name: (starts[AXES[name][0]], starts[AXES[name][1]]) for name in shapes})
    return windows


STARTS = {
    "seeking": Start(partial(start, agreeing=False)),
    "seeking_corrected": Start(partial(start, agreeing=True)),
}
