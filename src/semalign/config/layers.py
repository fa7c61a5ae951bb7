"""Which layers are paired, and what is stored of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from semalign.config.values import expect

Match = Literal["depth", "cka", "ridge_error", "nearest"]


@dataclass(frozen=True)
class AttributionConfig:
    """Which teacher layers matter for the rows, measured by one backward pass over a few of them."""

    rows: int = 64
    """How many training rows the scores are computed on."""
    batch_size: int = 8
    """Rows per backward pass."""
    aggregate: Literal["abs", "sum"] = "abs"
    """How gradient × activation is summed over tokens and channels: abs sums absolute values, sum keeps the signs."""
    activation_checkpointing: bool = False
    """Recompute layers in the backward pass to save memory."""

    def __post_init__(self) -> None:
        expect(self.rows > 0, "attribution.rows", "a positive count", self.rows)
        expect(self.batch_size > 0, "attribution.batch_size", "a positive count", self.batch_size)


@dataclass(frozen=True)
class PairingConfig:
    """Which student layers are trained, and towards which teacher layers."""

    selection: Literal["attribution", "last", "all"] = "last"
    """Which student layers are trained: those that match the teacher layers with the highest attribution scores (attribution), the
    deepest ones (last), or every layer (all)."""
    num_layers: int | None = None
    """How many student layers are trained. When this and cost are null, it is a quarter of them, rounded up."""
    layers: tuple[int, ...] = ()
    """Train exactly these student layers, counted from 1, instead of choosing by selection, num_layers and cost."""
    cost: float | None = None
    """A budget instead of num_layers: training may cost this many times as much as training the last layer alone."""
    interpolate: bool = False
    """Blend the two teacher layers around the exact relative depth instead of rounding down to one."""
    match: Match = "depth"
    """How a student layer gets its teacher layer. depth takes the layer at the same relative depth. cka and ridge_error find the
    best assignment that keeps the order of the layers, by their CKA or by the error of a ridge map. nearest takes the teacher
    layer with the highest CKA, wherever it is."""
    rows: int = 16
    """How many training rows layers and heads are compared on; with match depth and no heads, no rows are read."""
    heads: int = 0
    """For interface head: how many attention heads a pair has. The teacher's heads with the highest scores are each paired with the
    most similar head of the student."""

    def __post_init__(self) -> None:
        expect(
            self.num_layers is None or self.num_layers > 0,
            "pairing.num_layers",
            "a positive count",
            self.num_layers,
        )
        expect(self.cost is None or self.cost >= 1, "pairing.cost", "at least 1", self.cost)
        expect(self.num_layers is None or self.cost is None, "pairing.cost", "num_layers or cost", "both")
        expect(
            self.selection != "all" or (self.num_layers is None and self.cost is None),
            "pairing.selection",
            "attribution or last with num_layers or cost",
            "all",
        )
        expect(
            not self.layers or (self.num_layers is None and self.cost is None),
            "pairing.layers",
            "layers, num_layers or cost",
            "several",
        )
        expect(
            len(set(self.layers)) == len(self.layers) and all(n > 0 for n in self.layers),
            "pairing.layers",
            "different layers, counted from 1",
            list(self.layers),
        )
        expect(self.rows > 0, "pairing.rows", "a positive count", self.rows)
        expect(self.heads >= 0, "pairing.heads", "a count of heads", self.heads)
        expect(
            not self.interpolate or self.match == "depth",
            "pairing.interpolate",
            "false unless match is depth, since other matches have no depth between two layers",
            self.match,
        )


@dataclass(frozen=True)
class CacheConfig:
    """What is stored of the teacher's and the student's pass over the rows."""

    folder: str | None = None
    """Where the cache is: in targets/ of the run folder (null), in a local folder that only this run uses, or at an fsspec URL such
    as s3://bucket/run."""
    top_k: int = 32
    """How many of the most likely tokens are kept of each model at every position; the union of both is stored."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Data type of stored activations."""
    prefix_dtype: Literal["int8", "fp8"] | None = None
    """Data type of the stored hidden states that enter the lowest trained layer: eight bits with one scale a token, or as dtype
    (null). The manifest records their error."""
    batch_size: int = 16
    """Rows per forward pass."""
    shard_rows: int = 64
    """Rows in a shard; an interrupted cache step continues with the next shard."""
    max_bytes: int | None = None
    """Stop before a shard is written that would make the cache larger than this many bytes; null sets no limit."""
    ridge_penalty: float | None = None
    """Penalty of the ridge regression, relative to the mean squared activation. With null, each map takes the one of 0.001, 0.01, 0.1 and
    1 with which each half of the rows is best told by a map that was fitted on the other half."""

    def __post_init__(self) -> None:
        expect(self.top_k > 0, "cache.top_k", "a positive count", self.top_k)
        expect(self.batch_size > 0, "cache.batch_size", "a positive count", self.batch_size)
        expect(self.shard_rows > 0, "cache.shard_rows", "a positive count", self.shard_rows)
        expect(
            self.max_bytes is None or self.max_bytes > 0,
            "cache.max_bytes",
            "a positive size or null",
            self.max_bytes,
        )
        expect(
            self.ridge_penalty is None or self.ridge_penalty >= 0,
            "cache.ridge_penalty",
            "a penalty of 0 or more, or null",
            self.ridge_penalty,
        )
