import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from semalign.maths.lowrank import low_rank_linear

from .test_losses import normal

sizes = st.tuples(
    st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(0, 99)
)


@settings(max_examples=25)
@given(sizes, st.booleans(), st.floats(0.1, 4))
def test_values_and_gradients_are_those_of_separate_products(
    size: tuple[int, int, int, int, int], has_bias: bool, scale: float
) -> None:
    tokens, wide, narrow, rank, seed = size
    weight = normal(narrow, wide, seed=seed).double()
    bias = normal(narrow, seed=seed + 1).double() if has_bias else None
    leaves = [normal(2, tokens, wide, seed=seed), normal(rank, wide), normal(narrow, rank, seed=seed)]
    x, a, b = (leaf.double().requires_grad_() for leaf in leaves)

    got = low_rank_linear(x, weight, bias, a, b, scale=scale, dtype=torch.float64)

    wanted = torch.nn.functional.linear(x, weight, bias) + scale * (x @ a.T) @ b.T
    torch.testing.assert_close(got, wanted)
    upstream = normal(*got.shape, seed=seed + 2).double()
    for mine, theirs in zip(
        torch.autograd.grad(got, (x, a, b), upstream),
        torch.autograd.grad(wanted, (x, a, b), upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_half_precision_products_leave_float32_gradients() -> None:
    x, a, b = (normal(*s).requires_grad_() for s in ((3, 8), (2, 8), (4, 2)))
    out = low_rank_linear(x, normal(4, 8).bfloat16(), None, a, b, scale=2.0, dtype=torch.bfloat16)

    out.float().sum().backward()

    assert out.dtype == torch.bfloat16
    for leaf in (x, a, b):
        assert leaf.grad is not None and leaf.grad.dtype == torch.float32


@pytest.mark.parametrize("needed", [n for n in itertools.product([True, False], repeat=3) if any(n)])
def test_inputs_that_need_no_gradient_cost_no_product(needed: tuple[bool, bool, bool]) -> None:
    tokens, wide, narrow, rank = 3, 8, 4, 2
    shapes = ((tokens, wide), (rank, wide), (narrow, rank))

    def backward(needed: tuple[bool, ...]) -> tuple[int, list[torch.Tensor | None]]:
        leaves = [normal(*s, seed=n).requires_grad_(needed[n]) for n, s in enumerate(shapes)]
        x, a, b = leaves
        out = low_rank_linear(x, normal(narrow, wide), None, a, b, scale=1.0, dtype=torch.float32)
        with FlopCounterMode(display=False) as counter:
            out.sum().backward()
        return counter.get_total_flops(), [leaf.grad for leaf in leaves]

    (cost, gradients), (whole, every) = backward(needed), backward((True, True, True))

    # The large product of each gradient; two operations for each number that is added up.
    products = (tokens * narrow * wide, rank * tokens * wide, narrow * tokens * rank)
    assert whole - cost >= 2 * sum(p for p, is_needed in zip(products, needed, strict=True) if not is_needed)
    for gradient, expected, is_needed in zip(gradients, every, needed, strict=True):
        assert torch.equal(gradient, expected) if is_needed else gradient is None  # type: ignore[arg-type]
