import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_inputs_that_need_no_gradient_get_none() -> None:
    a, b = normal(2, 8).requires_grad_(), normal(4, 2).requires_grad_()
    out = low_rank_linear(normal(3, 8), normal(4, 8), None, a, b, scale=1.0, dtype=torch.float32)

    out.sum().backward()

    assert a.grad is not None and b.grad is not None
    with pytest.raises(RuntimeError):
        torch.autograd.grad(out.sum(), normal(3, 8).requires_grad_())
