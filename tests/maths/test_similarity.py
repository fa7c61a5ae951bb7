import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semalign.errors import DataError, ModelError
from semalign.maths.similarity import (
    cka_from_moments,
    cka_matrix,
    gap_closed,
    kl_gap_closed,
    linear_cka,
    mean_cosine,
)

from . import reference


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30)
@given(st.integers(2, 12), st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_cka_is_the_cosine_of_centred_gram_matrices(rows: int, width: int, other: int, seed: int) -> None:
    x, y = normal(rows, width, seed=seed), normal(rows, other, seed=seed + 1)
    expected = 1 - float(reference.geometry_loss(x, y))
    assert linear_cka(x, y) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("rows", [5, 50])
def test_cka_ignores_rotation_shift_and_scale(rows: int) -> None:
    x, y = normal(rows, 6), normal(rows, 4, seed=1)
    rotation = torch.linalg.qr(normal(6, 6, seed=2))[0]
    assert linear_cka(3 * x @ rotation + 5, y) == pytest.approx(linear_cka(x, y), abs=1e-9)
    assert linear_cka(x, x @ rotation) == pytest.approx(1.0, abs=1e-9)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), abs=1e-12)


def test_cka_from_moments_and_constant_input() -> None:
    x, y = normal(50, 6), normal(50, 4, seed=1)
    a, b = x - x.mean(0), y - y.mean(0)
    assert cka_from_moments(a.T @ a, a.T @ b, b.T @ b) == pytest.approx(linear_cka(x, y), abs=1e-12)
    assert linear_cka(torch.ones(5, 3), normal(5, 3)) == 0.0
    assert 0 <= linear_cka(x.bfloat16(), y.bfloat16()) <= 1


def test_mean_cosine() -> None:
    x, y = normal(5, 4), normal(5, 4, seed=1)
    expected = sum(float(reference.cosine(a, b)) for a, b in zip(x, y, strict=True)) / 5
    assert mean_cosine(x, y) == pytest.approx(expected, abs=1e-12)
    assert mean_cosine(torch.zeros(2, 3), torch.ones(2, 3)) == 0.0
    assert mean_cosine(x.bfloat16(), 2 * x.bfloat16()) == pytest.approx(1.0, abs=1e-6)


def test_gap_closed() -> None:
    # MMLU of the 7B student, SemAlign and the 13B teacher as published.
    assert gap_closed(44.20, 50.30, 52.90) == pytest.approx(6.1 / 8.7)
    assert gap_closed(0.2, 0.2, 0.4) == 0.0
    assert gap_closed(0.2, 0.5, 0.4) == pytest.approx(1.5)
    assert gap_closed(0.4, 0.3, 0.2) == pytest.approx(0.5)  # a loss: lower is better
    assert kl_gap_closed(0.284, 0.173) == pytest.approx(1 - 0.173 / 0.284)
    assert kl_gap_closed(0.0, 0.1) is kl_gap_closed(9e-5, 1e-5) is kl_gap_closed(-1e-9, 0.0) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gap_closed(0.5, 0.6, 0.5), "differs from the untouched student"),
        (lambda: gap_closed(0.5, float("nan"), 0.6), "after=nan"),
        (lambda: kl_gap_closed(float("inf"), 0.1), "before=inf"),
    ],
)
def test_senseless_gaps_are_refused(call: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()  # type: ignore[operator]


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ModelError, match="3 and 4"):
        linear_cka(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(ModelError, match="at least 2"):
        linear_cka(torch.ones(1, 2), torch.ones(1, 2))
    with pytest.raises(ModelError, match="2 columns"):
        mean_cosine(torch.ones(3, 2), torch.ones(3, 4))


def test_the_matrix_holds_the_figures_of_all_pairs() -> None:
    generator = torch.Generator().manual_seed(3)
    x = [torch.randn(20, w, generator=generator) for w in (3, 30)]
    y = [torch.randn(20, w, generator=generator) for w in (5, 7, 40)]
    y.append(torch.ones(20, 2))
    expected = torch.tensor([[linear_cka(a, b) for b in y] for a in x], dtype=torch.float64)
    torch.testing.assert_close(cka_matrix(x, y), expected)
