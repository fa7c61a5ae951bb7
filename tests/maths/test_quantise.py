"""Eight-bit rows stay within the bounds that the formulas promise, for any shape and any spread of channels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semalign.errors import ModelError
from semalign.maths.quantise import EightBit, dequantise_rows, quantise_rows, relative_error

kinds = st.sampled_from(["int8", "fp8"])
# The spread goes up to streams with a channel a thousand times as large as the others.
cases = st.tuples(
    st.integers(1, 6), st.integers(1, 40), st.floats(-6, 6), st.floats(0, 7), st.integers(0, 999)
)


def rows(count: int, width: int, size: float, spread: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    channels = torch.exp(spread * torch.randn(width, generator=generator).clamp(-2, 2))
    return 10**size * torch.randn(count, width, generator=generator) * channels


@settings(max_examples=200)
@given(cases, kinds)
def test_every_channel_is_within_its_bound(case: tuple[int, int, float, float, int], kind: EightBit) -> None:
    x = rows(*case)
    codes, scale = quantise_rows(x, kind)
    assert codes.element_size() == 1 and codes.shape == x.shape and scale.shape == x.shape[:1]
    error = (x - dequantise_rows(codes, scale)).abs()
    largest = x.abs().amax(1, keepdim=True)
    bound = largest / 254 if kind == "int8" else torch.maximum(x.abs() / 16, largest / 448 / 1024)
    assert (error <= bound * 1.001).all()
    whole = relative_error(x, dequantise_rows(codes, scale))
    assert (
        whole
        <= 1.001 * (case[1] ** 0.5 / 254 if kind == "int8" else (1 / 256 + case[1] / 448**2 / 1024**2) ** 0.5)
    ).all()


@settings(max_examples=50)
@given(cases, kinds)
def test_codes_of_what_was_restored_are_the_same(
    case: tuple[int, int, float, float, int], kind: EightBit
) -> None:
    codes, scale = quantise_rows(rows(*case), kind)
    again, _ = quantise_rows(dequantise_rows(codes, scale), kind)
    assert torch.equal(again.float(), codes.float())


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_zeros_stay_zeros_and_half_precision_is_taken(kind: EightBit) -> None:
    x = torch.cat([torch.zeros(1, 5), torch.randn(2, 5)]).bfloat16()
    codes, scale = quantise_rows(x, kind)
    assert torch.equal(dequantise_rows(codes, scale)[0], torch.zeros(5))
    assert relative_error(x, dequantise_rows(codes, scale))[0] == 0


def test_int8_loses_small_channels_beside_a_very_large_one_and_fp8_keeps_them() -> None:
    x = torch.ones(1, 64)
    x[0, 0] = 2000.0
    lost, kept = (dequantise_rows(*quantise_rows(x, kind))[0, 1:] for kind in ("int8", "fp8"))
    assert (lost == 0).all() and (kept - 1).abs().max() <= 1 / 16


def test_only_matrices_of_floats_are_taken() -> None:
    with pytest.raises(ModelError, match="flatten batch and token axes"):
        quantise_rows(torch.zeros(2, 3, 4), "int8")
