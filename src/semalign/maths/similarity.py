"""How alike two sets of activations are, and how much of a gap was closed.

Legend: N tokens, D and E widths.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from semalign.errors import DataError, ModelError
from semalign.maths._tensors import check_matrix, check_rows, unit, working_dtype


@torch.no_grad()
def linear_cka(x_ND: Tensor, y_NE: Tensor) -> float:
    """Linear CKA in [0, 1]: |X'Y|_F^2 / (|X'X|_F |Y'Y|_F) with centred columns (Kornblith et al. 2019).

    Unchanged by rotations, shifts and a common scale of either side. Computed from D x E covariances when
    there are more rows than columns, else from the N x N Gram matrices; the same number, in float64.
    Zero if either side is constant.
    """
    check_matrix("x", x_ND)
    check_matrix("y", y_NE)
    check_rows("x", "y", len(x_ND), len(y_NE))
    if len(x_ND) < 2:
        raise ModelError(
            f"CKA compares variation over rows and needs at least 2, got {len(x_ND)}; add tokens."
        )
    x_ND, y_NE = x_ND.double(), y_NE.double()
    x_ND, y_NE = x_ND - x_ND.mean(0), y_NE - y_NE.mean(0)
    if len(x_ND) > max(x_ND.shape[1], y_NE.shape[1]):
        return cka_from_moments(x_ND.T @ x_ND, x_ND.T @ y_NE, y_NE.T @ y_NE)
    x_NN, y_NN = x_ND @ x_ND.T, y_NE @ y_NE.T
    return _ratio(float((x_NN * y_NN).sum()), float(x_NN.norm() * y_NN.norm()))


@torch.no_grad()
def cka_from_moments(xx_DD: Tensor, xy_DE: Tensor, yy_EE: Tensor) -> float:
    """Linear CKA from centred (co)variances X'X, X'Y, Y'Y, which can be summed over a stream of rows."""
    cross = float(xy_DE.double().square().sum())
    return _ratio(cross, float(xx_DD.double().norm() * yy_EE.double().norm()))


@torch.no_grad()
def unit_gram(x_ND: Tensor) -> Tensor:
    """X X' of centred columns, scaled to Frobenius norm 1 (N, N), float64; zero if x is constant.

    The sum of the products of two such matrices is the linear CKA of their rows, so that the figures of many
    against many cost one matrix product.
    """
    check_matrix("x", x_ND)
    x_ND = x_ND.double() - x_ND.double().mean(0)
    gram_NN = x_ND @ x_ND.T
    norm = gram_NN.norm()
    return gram_NN / torch.where(norm > 0, norm, 1.0)


@torch.no_grad()
def cka_matrix(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """Linear CKA of every x (N, D) with every y (N, E): (len(x), len(y)), float64."""
    flat = [torch.stack([unit_gram(z_NW).flatten() for z_NW in side]) for side in (x, y)]
    return flat[0] @ flat[1].T


@torch.no_grad()
def mean_cosine(x_ND: Tensor, y_ND: Tensor) -> float:
    """Mean over rows of cos(x, y); a zero row counts as cosine 0."""
    check_matrix("x", x_ND)
    check_matrix("y", y_ND, x_ND.shape[1])
    check_rows("x", "y", len(x_ND), len(y_ND))
    dtype = working_dtype(x_ND, y_ND)
    return float((unit(x_ND.to(dtype)) * unit(y_ND.to(dtype))).sum(-1).mean())


def gap_closed(before: float, after: float, teacher: float) -> float:
    """Share of the teacher-student gap that was closed: (after - before) / (teacher - before).

    1 means level with the teacher; more than 1 is better than the teacher; below 0 is a loss.
    """
    _check_finite(before=before, after=after, teacher=teacher)
    if teacher == before:
        raise DataError(
            f"The share of a gap needs a teacher that differs from the untouched student, got {teacher} "
            "for both; report the plain difference instead."
        )
    return (after - before) / (teacher - before)


LEAST_KL = 1e-4
"""Divergence, in nats a token, below which there is none to remove: half-precision signals round to as much."""


def kl_gap_closed(before: float, after: float) -> float | None:
    """Share of the divergence from the teacher that was removed: 1 - after / before; None where `before` is below LEAST_KL."""
    _check_finite(before=before, after=after)
    return 1.0 - after / before if before >= LEAST_KL else None


def _ratio(cross: float, scale: float) -> float:
    return cross / scale if scale > 0 else 0.0


def _check_finite(**figures: float) -> None:
    for name, figure in figures.items():
        if not math.isfinite(figure):
            raise DataError(f"A gap needs finite figures, got {name}={figure}; evaluate that model again.")
