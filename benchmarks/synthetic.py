"""Random models of the 0.5B's width, for costs that depend on shapes alone."""

from collections.abc import Callable
from typing import Any

import torch
from common import DEVICE
from transformers import Qwen2Config, Qwen2ForCausalLM

from semalign.data import Sample
from semalign.data.batches import CANDIDATES, candidates_of
from semalign.methods import methods
from semalign.methods.loss import REST
from semalign.models.decoder import Decoder
from semalign.signals.passes import teacher_signals
from semalign.signals.request import Request
from semalign.training.suffix import SuffixModel

WIDTH, INNER = 896, 4864


def random_decoder(layers: int, vocabulary: int, width: int = WIDTH) -> Decoder:
    """An untrained Qwen2 decoder."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=2,
    )
    model: Any = Qwen2ForCausalLM(config)
    decoder = Decoder(model.to(DEVICE), None)
    decoder.model.requires_grad_(False)
    return decoder


def suffix_step(
    rows: int,
    length: int,
    *,
    layers: int = 6,
    vocabulary: int = 32_000,
    top_k: int = 32,
    dtype: torch.dtype = torch.float32,
) -> tuple[Callable[[], None], int]:
    """A training step (forward, backward, AdamW) of a suffix on cached signals, half of the positions supervised.

    Also returns the operations of its matrix products: 6 per weight and token, and 12 T width per token and layer for
    the two products of attention.
    """
    decoder = random_decoder(layers, vocabulary)
    for layer in decoder.layers:
        layer.requires_grad_(True)
    suffix = SuffixModel(decoder, 0, methods()["aligned"], [], torch.arange(min(vocabulary, CANDIDATES)))
    optimiser = torch.optim.AdamW([p for p in suffix.parameters() if p.requires_grad], lr=1e-4, fused=True)
    positions = rows * (length // 2)
    with torch.device(DEVICE):
        states = torch.zeros(rows, length, dtype=torch.bool)
        states[:, : length // 2] = True
        logp = torch.randn(positions, 2 * top_k).log_softmax(1)
        batch = {
            "states": states,
            "labels": torch.randint(vocabulary, (positions,)),
            "prefix": torch.randn(rows, length, WIDTH),
            "ids": torch.randint(vocabulary, (positions, 2 * top_k)),
            "valid": torch.ones(positions, 2 * top_k, dtype=torch.bool),
            "teacher_logp": logp,
            "student_logp": logp,
            REST: torch.zeros(positions, 3),
        }

    def step() -> None:
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = suffix(**batch)["loss_output"]
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    weights = sum(p.numel() for layer in decoder.layers for p in layer.parameters() if p.dim() == 2)
    tokens = rows * length
    return step, 6 * weights * tokens + 12 * length * WIDTH * layers * tokens


def teacher_pass(rows: int, length: int, *, layers: int = 6, vocabulary: int = 32_000) -> Callable[[], None]:
    """The teacher's part of caching: a forward pass that keeps its output states."""
    teacher = random_decoder(layers, vocabulary)
    samples = [
        Sample([3] * length, [False] * (length // 2) + [True] * (length - length // 2), str(n))
        for n in range(rows)
    ]
    request = Request(pairs=(), teacher_output=True)

    def run() -> None:
        teacher_signals(teacher, samples, request, [], teacher.head(), candidates_of(samples))

    return run
