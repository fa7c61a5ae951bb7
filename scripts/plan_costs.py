"""The arithmetic of scripts/plan.py: what a transfer between models of published sizes takes, on hardware described by `Machine`.

Only shapes are read: both models are built on the meta device from their sizes. Cache bytes come from the estimator of
`semalign check`; memory and time from counting numbers and operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from semalign.config import (
    CacheConfig,
    DataConfig,
    ModelConfig,
    PairingConfig,
    RecipeConfig,
    ServerConfig,
    TrainConfig,
    TransferConfig,
)
from semalign.estimate.cost import Sizes, record_sizes
from semalign.signals.passes import LOGIT_CHUNK
from semalign.signals.plan import Plan
from semalign.signals.request import request_of
from semalign.steps.pair import pair_layers

GB = 1e9
# Weight, gradient, two moments and the bucket that processes exchange in float32; a copy in bfloat16 to multiply with.
TRAINED_BYTES = 4 + 4 + 8 + 4 + 2


@dataclass(frozen=True)
class Machine:
    """A node, with rates that programs reach, not peak rates."""

    devices: int = 8
    device_bytes: float = 80 * GB
    bf16_flops: float = 400e12
    """Multiplications and additions a second and device, in bfloat16."""
    host_bytes: float = 2000 * GB
    host_to_device: float = 20 * GB
    """Bytes a second and device, from host memory (or the page cache) to the device."""
    disk: float = 5 * GB
    """Bytes a second of the node's disk."""
    host_float64_flops: float = 2e12
    """Of all the node's CPU cores together."""


@dataclass(frozen=True)
class Work:
    """The rows, and how they are taken."""

    rows: int = 20_000
    tokens_a_row: int = 512
    supervised_a_row: int = 200
    heldout_rows: int = 500
    epochs: float = 3.0
    cache_batch: int = 64
    train_batch: int = 8
    """Rows per device and step."""


@dataclass(frozen=True)
class Shape:
    """Counts of a model."""

    name: str
    width: int
    inner: int
    layers: int
    vocabulary: int
    layer_parameters: int
    parameters: int
    active_parameters: int
    """Of a layer, those that one token passes: of a mixture's experts a few."""

    @property
    def outer_parameters(self) -> int:
        """Embedding, final norm and head."""
        return self.parameters - self.layers * self.layer_parameters

    def forward_flops(self, tokens: int, layers: int, length: int) -> float:
        """Operations of layers in one forward pass: 2 an active parameter and token, and attention's 4 D a token and position."""
        return tokens * layers * (2 * self.active_parameters + 4 * self.width * length)


@dataclass(frozen=True)
class Pair:
    """Two models and their published sizes."""

    title: str
    folder: str
    teacher: tuple[str, dict[str, Any]]
    student: tuple[str, dict[str, Any]]


def sizes(
    width: int, inner: int, layers: int, heads: int, groups: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    """Fields of a configuration, a Llama's unless told."""
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocabulary,
        **more,
    }


PAIRS = (
    Pair(
        "Llama-2-70B to Llama-2-7B",
        "llama-2-70b-to-7b",
        ("meta-llama/Llama-2-70b-chat-hf", sizes(8192, 28672, 80, 64, 8, 32000)),
        ("meta-llama/Llama-2-7b-chat-hf", sizes(4096, 11008, 32, 32, 32, 32000)),
    ),
    Pair(
        "Llama-3.1-405B to Llama-3.1-8B",
        "llama-3.1-405b-to-8b",
        ("meta-llama/Llama-3.1-405B-Instruct", sizes(16384, 53248, 126, 128, 8, 128256)),
        ("meta-llama/Llama-3.1-8B-Instruct", sizes(4096, 14336, 32, 32, 8, 128256)),
    ),
)


EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1536}
SERVED = Pair(
    "Qwen3-235B-A22B on a server to Qwen3-8B",
    "qwen3-235b-to-8b",
    (
        "Qwen/Qwen3-235B-A22B",
        sizes(4096, 12288, 94, 64, 4, 151936, model_type="qwen3_moe", head_dim=128, **EXPERTS),
    ),
    ("Qwen/Qwen3-8B", sizes(4096, 12288, 36, 32, 8, 151936, model_type="qwen3", head_dim=128)),
)


def shape_of(name: str, fields: dict[str, Any]) -> Shape:
    """Parameters counted on the meta device: no weight is allocated."""
    config = AutoConfig.for_model(tie_word_embeddings=False, **fields)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    layer = model.model.layers[0]
    in_layer = sum(p.numel() for p in layer.parameters())
    idle = 0.0
    if experts := fields.get("num_experts"):
        in_experts = sum(p.numel() for name, p in layer.named_parameters() if ".experts." in name)
        idle = in_experts * (1 - fields["num_experts_per_tok"] / experts)
    return Shape(
        name,
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.vocab_size,
        in_layer,
        sum(p.numel() for p in model.parameters()),
        round(in_layer - idle),
    )


def layer_numbers(shape: Shape) -> int:
    """Numbers a token that one recomputed layer keeps for its backward pass: 9 of the stream's width, 4 of the MLP's."""
    return 9 * shape.width + 4 * shape.inner


class Case:
    """A pair on a machine: its shapes, the run's config by a recipe (None: the default), and what follows by arithmetic.

    Args:
        url: of the server that holds the teacher; else its layers come to the devices one by one.
    """

    def __init__(
        self, pair: Pair, work: Work, machine: Machine, recipe: str | None = None, url: str | None = None
    ) -> None:
        self.pair, self.work, self.machine = pair, work, machine
        self.teacher, self.student = shape_of(*pair.teacher), shape_of(*pair.student)
        self.config = TransferConfig(
            teacher=ModelConfig(self.teacher.name, server=ServerConfig(url))
            if url
            else ModelConfig(self.teacher.name, offload="disk"),
            student=ModelConfig(self.student.name),
            data=DataConfig("rows.jsonl", max_length=work.tokens_a_row, heldout_rows=work.heldout_rows),
            output_dir=pair.folder,
            recipe=RecipeConfig() if recipe is None else RecipeConfig(recipe),
            cache=CacheConfig(prefix_dtype="fp8", batch_size=work.cache_batch),
            train=TrainConfig(
                num_train_epochs=work.epochs,
                per_device_train_batch_size=work.train_batch,
                lora_r=0,
                bf16=True,
                activation_checkpointing=True,
            ),
        )
        pairs = pair_layers([], self.teacher.layers, self.student.layers, PairingConfig())
        self.plan = Plan(tuple(pairs), tuple(p.student for p in pairs))
        self.request, self.wanted = request_of(self.config, self.plan)
        self.sizes: Sizes = record_sizes(self.request, self.wanted, self.teacher.width, self.student.width)
        self.tokens, self.positions = work.rows * work.tokens_a_row, work.rows * work.supervised_a_row
        self.held_tokens = work.heldout_rows * work.tokens_a_row
        self.held_positions = work.heldout_rows * work.supervised_a_row
        self.trained = len(self.plan.trained_layers)

    # bytes

    def cache_bytes(self) -> float:
        """What stays."""
        s = self.sizes
        return self.tokens * s.token + self.positions * s.position + self.held_positions * s.heldout

    def raw_bytes(self) -> float:
        """What lies beside it until the maps are fitted."""
        return self.positions * self.sizes.raw + self.held_positions * self.sizes.raw_heldout

    def activations(self, shape: Shape, tokens: int) -> float:
        """One layer's at work without gradient, and the captured streams, in bfloat16; a chunk of logits twice."""
        at_work = tokens * (4 * shape.width + 3 * shape.inner) * 2
        captured = (len(self.plan.pairs) + 1) * tokens * shape.width * 2
        return at_work + captured + 2 * LOGIT_CHUNK * shape.vocabulary * 4

    def device_student(self) -> float:
        """The whole student in bfloat16."""
        return 2 * self.student.parameters + self.activations(self.student, self.batch_tokens())

    def device_teacher(self) -> float:
        """Embedding, head and one layer; the student's head."""
        t, s = self.teacher, self.student
        weights = 2 * (t.outer_parameters + t.layer_parameters + s.vocabulary * s.width)
        return weights + self.activations(t, self.batch_tokens())

    def device_train(self, trained: int | None = None) -> float:
        """The student, its trained layers with optimiser, streams that are kept, one layer recomputed in float32."""
        s, layers = self.student, self.trained if trained is None else trained
        own = layers * s.layer_parameters
        tokens = self.work.train_batch * self.work.tokens_a_row
        kept = tokens * (layers * s.width + layer_numbers(s)) * 4
        gathered = self.work.train_batch * self.work.supervised_a_row * 2 * self.request.top_k * s.width * 4
        return 2 * (s.parameters - own) + TRAINED_BYTES * own + kept + gathered

    def host_fit(self) -> float:
        """Running sums of every map, in float64, in each process."""
        t, s = self.teacher.width, self.student.width
        return self.machine.devices * self.maps() * (t * t + t * s) * 8

    def maps(self) -> int:
        """How many maps are fitted: one a pair, where raw states are kept for it."""
        return len(self.plan.pairs) if self.sizes.raw else 0

    def batch_tokens(self) -> int:
        """Tokens of a batch in caching."""
        return self.work.cache_batch * self.work.tokens_a_row

    # seconds

    def link(self) -> float:
        """Bytes a second at which weights reach a device: from the page cache, or all devices from one disk."""
        is_cached = 2 * self.teacher.parameters <= self.machine.host_bytes
        return self.machine.host_to_device if is_cached else self.machine.disk / self.machine.devices

    def seconds_first_read(self) -> float:
        """The checkpoint from the disk, once."""
        return 2 * self.teacher.parameters / self.machine.disk

    def seconds_student(self) -> float:
        """One forward pass over the training rows."""
        s = self.student
        return s.forward_flops(self.tokens, s.layers, self.work.tokens_a_row) / self.all_flops()

    def seconds_teacher(self) -> float:
        """One forward pass over all rows; every batch brings all layers to its device."""
        t, tokens = self.teacher, self.tokens + self.held_tokens
        batches = tokens / self.batch_tokens() / self.machine.devices
        moved = batches * 2 * t.layers * t.layer_parameters / self.link()
        return t.forward_flops(tokens, t.layers, self.work.tokens_a_row) / self.all_flops() + moved

    def seconds_maps(self) -> float:
        """Sums over all positions and a Cholesky factor a pair, in float64 on the CPU; the raw states written and read."""
        t, s = self.teacher.width, self.student.width
        flops = self.maps() * (2 * self.positions * (t * t + t * s) + t**3 / 3 + 2 * t * t * s)
        moved = 2 * self.raw_bytes() + self.cache_bytes()
        return flops / self.machine.host_float64_flops + moved / self.machine.disk

    def seconds_train(self) -> float:
        """Forward, recomputed, and twice a forward pass backward, through the trained layers."""
        tokens = int(self.work.epochs * self.tokens)
        return 4 * self.student.forward_flops(tokens, self.trained, self.work.tokens_a_row) / self.all_flops()

    def all_flops(self) -> float:
        """Of all devices."""
        return self.machine.devices * self.machine.bf16_flops
