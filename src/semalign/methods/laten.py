"""LaTen (Tan et al., ACL 2025): the teacher's most telling neurons, mapped to deltas on the student's; no training after.

Locate. A neuron's score is what its contribution alone adds to the log-probability of the last answer token t through
the logit lens: log p(t | r + c) - log p(t | r). For a neuron of the MLP r is the stream before the MLP and c its
activation times its column of down_proj; for an input channel of o_proj r is the stream before attention and c that
channel times its column. A layer's score is the same gain with the whole output of its MLP, or of its attention, as c.
Scores are summed over rows. The L_S teacher layers with the largest scores go with the student's layers in depth order,
and of each the top tenth of neurons is kept (by the student's sizes).
Align. Four MLPs W2 relu(W1 x) without bias (D -> D -> E), one for up, down, v and o, map the kept rows (up, v) or columns
(down, o) of the teacher to deltas on those of the student's neurons of the same rank. They are trained with the student
frozen on cross-entropy + 1000 * sum over the four of mean(delta^2), AdamW (0.9, 0.95), weight decay 0.05, one cycle,
16 rows a step; then the deltas are added once. With grouped queries, channel c of o_proj comes from row
(head(c) // group) * head_dim + c % head_dim of v_proj, on both sides; deltas that meet on a row add up.
`train.max_steps` sets the number of steps, `recipe.learning_rate` the rate.

`laten` is as published: W1 and W2 start at 1e-5, 8 steps (2 to 8 in the paper), the lens divides by the size
of the last layer's stream whatever it is applied to, and the cycle moves the first beta too. The authors' README takes a
rate of 3e-5, which is the default here, and their script one of 3e-4. Two factors of 1e-5 make
deltas that half precision cannot hold: there the run stops and says that no weight changed (the published code saves
such a student). One difference: neurons are located once, over the rows of all steps, instead of anew in every step.
`laten_corrected` starts W1 at its usual scale, and so moves; it takes 64 steps at 1e-3, a lens with the final norm
itself, and constant betas. All of it is in one file, as every method is, though it is longer than others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from semalign.config import TransferConfig
from semalign.data import Sample
from semalign.data.batches import batch_inputs
from semalign.data.tokens import control_ids
from semalign.errors import ModelError
from semalign.methods import Recipe, Start
from semalign.methods.objective import sum_of_row_means
from semalign.models.capture import Point, capture
from semalign.models.decoder import Decoder
from semalign.models.head import Head
from semalign.models.soundness import check_at_hand
from semalign.run.files import Record
from semalign.run.progress import bar

METHODS = (
    Recipe("laten", output_loss="cross_entropy", learning_rate=3e-5, trained="none", start="laten"),
    Recipe(
        "laten_corrected",
        output_loss="cross_entropy",
        learning_rate=1e-3,
        trained="none",
        start="laten_corrected",
    ),
)
# Module -> the neurons it belongs to, and whether they are its rows.
MODULES = {
    "up_proj": ("mlp", True),
    "down_proj": ("mlp", False),
    "v_proj": ("attn", True),
    "o_proj": ("attn", False),
}
WRITERS = {"mlp": "down_proj", "attn": "o_proj"}  # whose input channels are the neurons
SHARE = 0.1
ROWS_A_STEP = 16
LOCATED_ROWS = 8
CHUNK = 256  # contributions whose full logits are live at once


@dataclass(frozen=True)
class Located:
    """What single neurons and whole sublayers add to the log-probability of the answer, per kind of sublayer."""

    neurons: dict[str, Tensor]  # (L, F) of the MLP, (L, H * head_dim) of attention
    layers: dict[str, Tensor]  # (L,)


@dataclass(frozen=True)
class Variant:
    """Where the published method and the corrected one part."""

    steps: int
    frozen_scale: bool
    small_first: bool
    cycle_momentum: bool


FAITHFUL = Variant(steps=8, frozen_scale=True, small_first=True, cycle_momentum=True)
CORRECTED = Variant(steps=64, frozen_scale=False, small_first=False, cycle_momentum=False)


def answer_token(decoder: Decoder, sample: Sample) -> int:
    """Index of the last supervised token that is no control token and not only punctuation or space."""
    assert decoder.tokenizer is not None
    control = control_ids(decoder.tokenizer)
    supervised = [i for i, m in enumerate(sample.mask) if m and i > 0]
    for index in reversed(supervised):
        token = sample.input_ids[index]
        if token not in control and any(c.isalnum() for c in decoder.tokenizer.decode([token])):
            return index
    return supervised[-1]


def _lens_logp(decoder: Decoder, head: Head, rows_ND: Tensor, token: int, scale: Tensor | None) -> Tensor:
    """log p(token) (N,) of streams through final norm and head; with `scale`, gamma * x / scale in the norm's place."""
    normed_ND = decoder.final_norm(rows_ND) if scale is None else rows_ND * decoder.norm_weight() / scale
    return head.logits(normed_ND).log_softmax(1)[:, token]


@contextmanager
def _inputs(modules: Mapping[Any, nn.Module]) -> Iterator[dict[Any, Tensor]]:
    found: dict[Any, Tensor] = {}

    def hook(key: Any) -> Any:
        return lambda module, args: found.__setitem__(key, args[0])

    handles = [m.register_forward_pre_hook(hook(key)) for key, m in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def locate(decoder: Decoder, samples: Sequence[Sample], *, frozen_scale: bool) -> Located:
    """Scores of all MLP neurons and o_proj input channels, and of all layers, summed over the samples.

    Raises:
        ModelError: fused matrices, or a norm between a sublayer's output and the stream.
    """
    if decoder.layout.is_post_normed or decoder.shape.residual_scale != 1.0:
        raise ModelError(
            f"{decoder.name}: laten adds single neurons to the stream, which this architecture normalises or scales before; "
            "use another method."
        )
    layers = range(1, decoder.num_layers + 1)
    # One neuron moves a logit by less than half precision resolves.
    head = Head(decoder.head().weight_VD.float(), decoder.head().options)
    writers = {(k, n): decoder.projections(n)[name] for n in layers for k, name in WRITERS.items()}
    points = [Point(n, i) for n in layers for i in ("block", "attn")]
    totals = {k: [torch.zeros(1)] * decoder.num_layers for k in WRITERS}
    wholes = {k: torch.zeros(decoder.num_layers) for k in WRITERS}
    with bar(len(samples), "neurons") as progress:
        for sample in samples:
            ids, _ = batch_inputs(decoder, [sample])
            index = answer_token(decoder, sample)
            at, token = index - 1, sample.input_ids[index]
            with decoder.span(0, 0, norm=False):
                stream_D = decoder.forward(ids)[0, at].float()
            with capture(decoder, points) as found, _inputs(writers) as channels:
                decoder.forward(ids)
            last_D = found[points[-2]][0, at].float()
            scale = last_D.square().mean().sqrt() if frozen_scale else None
            for n in layers:
                after_D = found[Point(n, "block")][0, at].float()
                between_D = stream_D + found[Point(n, "attn")][0, at]
                spans = {"attn": (stream_D, between_D), "mlp": (between_D, after_D)}
                for kind in WRITERS:
                    weight_DK = writers[kind, n].weight
                    parts_KD = (channels[kind, n][0, at].float() * weight_DK).T
                    before_D, whole_D = spans[kind]
                    base, whole = _lens_logp(decoder, head, torch.stack((before_D, whole_D)), token, scale)
                    gains = [
                        _lens_logp(decoder, head, before_D + part, token, scale) - base
                        for part in parts_KD.split(CHUNK)
                    ]
                    totals[kind][n - 1] = totals[kind][n - 1] + torch.cat(gains).cpu()
                    wholes[kind][n - 1] += float(whole - base)
                stream_D = after_D
            progress.update(1)
    return Located({kind: torch.stack(rows) for kind, rows in totals.items()}, wholes)


def ids_of(decoder: Decoder, module: str, neurons_K: Tensor) -> Tensor:
    """Rows or columns of a module that belong to neurons; v_proj's rows are shared by a group of heads."""
    if module != "v_proj":
        return neurons_K
    size, group = decoder.shape.head_dim, decoder.shape.heads // decoder.shape.key_heads
    return neurons_K // size // group * size + neurons_K % size


def vectors(decoder: Decoder, module: str, layer: int, neurons_K: Tensor) -> Tensor:
    """The rows, or columns, of a module's weight that belong to neurons (k, D), float32."""
    weight = decoder.projections(layer)[module].weight.detach()
    ids = ids_of(decoder, module, neurons_K).to(weight.device)
    return (weight[ids] if MODULES[module][1] else weight[:, ids].T).float()


def _translators(wide: int, narrow: int, *, small_first: bool) -> nn.ModuleDict:
    made = nn.ModuleDict()
    for name in MODULES:
        first, second = nn.Linear(wide, wide, bias=False), nn.Linear(wide, narrow, bias=False)
        if small_first:
            nn.init.normal_(first.weight, std=1e-5)
        nn.init.normal_(second.weight, std=1e-5)
        made[name] = nn.Sequential(first, nn.ReLU(), second)
    return made


@contextmanager
def added(decoder: Decoder, deltas: Mapping[tuple[int, str], tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Inside, modules answer as if (ids, delta (k, E)) were added to their rows or columns; gradients reach delta."""

    def hook(ids: Tensor, delta: Tensor, is_rows: bool) -> Any:
        def apply(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            change = delta.to(output.dtype)
            if is_rows:
                return output.index_add(-1, ids, args[0] @ change.T)
            return output + args[0][..., ids] @ change

        return apply

    handles = [
        decoder.projections(layer)[name].register_forward_hook(hook(ids, delta, MODULES[name][1]))
        for (layer, name), (ids, delta) in deltas.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def select(
    located: Located, count: int, sizes: Mapping[str, int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Per kind: the layers 1..L with the largest scores, in depth order, and their best neurons, best first (n, k)."""
    layers = {k: s.topk(min(count, len(s))).indices.sort().values for k, s in located.layers.items()}
    neurons = {k: s[layers[k]].topk(sizes[k], dim=1).indices for k, s in located.neurons.items()}
    return {k: found + 1 for k, found in layers.items()}, neurons


def start(
    teacher: Decoder,
    student: Decoder,
    samples: Sequence[Sample],
    config: TransferConfig,
    recipe: Recipe,
    *,
    variant: Variant,
) -> tuple[Record, dict[str, Any]]:
    """Deltas `<layer>.<module>.delta` (k, E) with `.rows` or `.columns` (k,); and the layers and losses.

    Raises:
        ModelError: an architecture that single neurons cannot be added to, or a model whose weights cannot be read as they are.
    """
    for decoder in (teacher, student):
        check_at_hand(decoder, "laten")
    located = samples[:LOCATED_ROWS]
    theirs = locate(teacher, located, frozen_scale=variant.frozen_scale)
    own = locate(student, located, frozen_scale=variant.frozen_scale)
    sizes = {k: max(1, int(SHARE * s.shape[1])) for k, s in own.neurons.items()}
    layers, neurons = select(theirs, student.num_layers, sizes)
    _, own_neurons = select(own, student.num_layers, sizes)
    knowledge, ids = {}, {}
    for name, (kind, _) in MODULES.items():
        rows = zip(layers[kind].tolist(), neurons[kind], strict=True)
        knowledge[name] = torch.stack([vectors(teacher, name, n, chosen) for n, chosen in rows])
        knowledge[name] = knowledge[name].to(student.device)
        ids[name] = [ids_of(student, name, chosen).to(student.device) for chosen in own_neurons[kind]]
    deltas, losses = _align(student, knowledge, ids, samples, config, recipe, variant)
    tensors: Record = {}
    for name, delta in deltas.items():
        for layer, (rows_K, delta_KE) in enumerate(zip(ids[name], delta, strict=False), 1):
            tensors[f"{layer}.{name}.{'rows' if MODULES[name][1] else 'columns'}"] = rows_K.clone()
            tensors[f"{layer}.{name}.delta"] = delta_KE
    return tensors, {
        "rows": len(located),
        "teacher_layers": {k: v.tolist() for k, v in layers.items()},
        "losses": losses,
        "largest_delta": {name: float(d.abs().max()) for name, d in deltas.items()},
    }


def _align(
    student: Decoder,
    knowledge: Mapping[str, Tensor],
    ids: Mapping[str, list[Tensor]],
    samples: Sequence[Sample],
    config: TransferConfig,
    recipe: Recipe,
    variant: Variant,
) -> tuple[dict[str, Tensor], list[float]]:
    """Train the translators; their deltas (L_S, k, E) per module, and the loss of every step."""
    generator = torch.Generator().manual_seed(config.seed)
    torch.manual_seed(config.seed)
    wide = next(iter(knowledge.values())).shape[-1]
    translators = _translators(wide, student.width, small_first=variant.small_first).to(student.device)
    steps = config.train.max_steps if config.train.max_steps > 0 else variant.steps
    rate = config.train.learning_rate
    assert rate is not None  # its recipes name theirs
    optimizer = torch.optim.AdamW(translators.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        rate,
        total_steps=steps,
        pct_start=0.1,
        final_div_factor=1,
        cycle_momentum=variant.cycle_momentum,
    )
    student.model.requires_grad_(False)
    losses = []
    with bar(steps, "align") as progress, torch.enable_grad():
        for _ in range(steps):
            chosen = torch.randperm(len(samples), generator=generator)[:ROWS_A_STEP].tolist()
            deltas = {name: translators[name](x) for name, x in knowledge.items()}
            penalty = 1000 * torch.stack([d.square().mean() for d in deltas.values()]).sum()
            leaves = {name: d.detach().requires_grad_() for name, d in deltas.items()}
            loss = _cross_entropy(
                student, leaves, ids, [samples[i] for i in chosen], config.attribution.batch_size
            )
            optimizer.zero_grad()
            ends = [penalty, *deltas.values()]
            torch.autograd.backward(ends, [None, *(leaf.grad for leaf in leaves.values())])
            optimizer.step()
            cycle.step()
            losses.append(loss + float(penalty.detach()))
            progress.update(1)
    student.model.requires_grad_(True)
    with torch.no_grad():
        return {name: translators[name](x) for name, x in knowledge.items()}, losses


def _cross_entropy(
    student: Decoder,
    leaves: Mapping[str, Tensor],
    ids: Mapping[str, list[Tensor]],
    samples: Sequence[Sample],
    size: int,
) -> float:
    """Mean over rows of the mean negative log-likelihood, its gradient left on the leaves, a few rows at a time."""
    total, head = 0.0, student.head()
    deltas = {
        (layer, name): (ids[name][layer - 1], leaf[layer - 1])
        for name, leaf in leaves.items()
        for layer in range(1, len(leaf) + 1)
    }
    for begin in range(0, len(samples), size):
        batch = samples[begin : begin + size]
        tokens, states = batch_inputs(student, batch)
        with added(student, deltas):
            output_BTE = student.forward(tokens)
        loss = sum_of_row_means(output_BTE, states, batch, head) / len(samples)
        # The slices of the leaves are shared by all batches of the step.
        loss.backward(retain_graph=True)
        total += float(loss.detach())
    return total


STARTS = {
    "laten": Start(partial(start, variant=FAITHFUL), is_whole=True),
    "laten_corrected": Start(partial(start, variant=CORRECTED), is_whole=True),
}
