"""What of layers, their pairs and their cache is refused."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from semalign.config import (
    AttributionConfig,
    CacheConfig,
    PairingConfig,
)
from semalign.errors import ConfigError

from .refused import assert_refused


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AttributionConfig(rows=0), "attribution.rows: expected a positive count, got 0"),
        (lambda: AttributionConfig(batch_size=0), "attribution.batch_size: expected a positive count, got 0"),
        (lambda: PairingConfig(num_layers=0), "pairing.num_layers: expected a positive count, got 0"),
        (lambda: PairingConfig(cost=0.9), "pairing.cost: expected at least 1, got 0.9"),
        (lambda: PairingConfig(num_layers=1, cost=2.0), "pairing.cost: expected num_layers or cost, got 'both'"),
        (lambda: PairingConfig(layers=(1,), num_layers=1), "pairing.layers: expected layers, num_layers or cost"),
        (lambda: PairingConfig(layers=(1,), cost=2.0), "pairing.layers: expected layers, num_layers or cost"),
        (lambda: PairingConfig(layers=(2, 2)), "pairing.layers: expected different layers, counted from 1, got [2, 2]"),
        (lambda: PairingConfig(layers=(0,)), "pairing.layers: expected different layers, counted from 1, got [0]"),
        (lambda: PairingConfig(rows=0), "pairing.rows: expected a positive count, got 0"),
        (lambda: PairingConfig(heads=-1), "pairing.heads: expected a count of heads, got -1"),
        (lambda: PairingConfig(interpolate=True, match="nearest"), "pairing.interpolate: expected false unless match is depth"),
        (lambda: CacheConfig(top_k=0), "cache.top_k: expected a positive count, got 0"),
        (lambda: CacheConfig(batch_size=0), "cache.batch_size: expected a positive count, got 0"),
        (lambda: CacheConfig(shard_rows=0), "cache.shard_rows: expected a positive count, got 0"),
        (lambda: CacheConfig(ridge_penalty=-1.0), "cache.ridge_penalty: expected a penalty of 0 or more, or null, got -1.0"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named_with_what_was_expected(
    make: Callable[[], object], said: str
) -> None:
    assert_refused(make, said)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: CacheConfig(max_bytes=-1), "cache.max_bytes"),
    ],
)
def test_counts_are_checked_before_anything_runs(make: Callable[[], object], field: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(field)):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: PairingConfig(cost=1.0),
        lambda: PairingConfig(layers=(3, 1), interpolate=True, heads=2),
        lambda: CacheConfig(top_k=1, batch_size=1, shard_rows=1, ridge_penalty=0.0),
    ],
)
def test_what_lies_just_inside_a_bound_is_taken(make: Callable[[], object]) -> None:
    make()


def test_blending_goes_with_depth_alone() -> None:
    with pytest.raises(ConfigError, match="expected false unless match is depth"):
        PairingConfig(match="cka", interpolate=True)
