"""Linear maps from teacher to student activations, fitted on a stream of paired rows.

Legend: N tokens, D teacher width, E student width. X is N x D (teacher), Y is N x E (student).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from semalign.errors import ModelError
from semalign.maths._tensors import check_matrix, check_rows


def ridge_scores(x_ND: Tensor, y: Sequence[Tensor], *, penalty: float = 1e-2) -> list[float]:
    """1 - error of a ridge map from x to each y (N, E), fitted on the first two thirds of the rows.

    error = |y - M x - b|^2 / |y - mean y|^2 over the last third, so 1 is a perfect map and 0 as good as the mean. One
    Gram matrix of x serves all y.
    """
    check_matrix("x", x_ND)
    cut = len(x_ND) * 2 // 3
    if not 0 < cut < len(x_ND) - 1:
        raise ModelError(f"A map is fitted on two thirds of the rows, got {len(x_ND)} rows; add tokens.")
    x_ND, together = x_ND.float(), torch.cat([one.float() for one in y], dim=1)
    fit = RidgeFit(x_ND.shape[1], together.shape[1])
    fit.add(x_ND[:cut], together[:cut])
    map_ED, bias_E = fit.solve(penalty=penalty)
    missed = (together[cut:] - x_ND[cut:] @ map_ED.T - bias_E).double().square().sum(0)
    spread = (together[cut:] - together[cut:].mean(0)).double().square().sum(0)
    sizes = [one.shape[1] for one in y]
    shares = zip(missed.split(sizes), spread.split(sizes), strict=True)
    return [1.0 - float(m.sum() / s.sum().clamp_min(1e-300)) for m, s in shares]


PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
USUAL_PENALTY = 1e-2
"""Where nothing can choose one."""


def best_penalty(first: RidgeFit, second: RidgeFit) -> float:
    """The penalty of PENALTIES whose map of each half of the rows leaves the least unexplained on the other half.

    Where a half has no rows, it is USUAL_PENALTY.
    """
    if min(first.rows, second.rows) < 2:
        return USUAL_PENALTY
    halves = ((first, second), (second, first))
    missed = {p: sum(other.unexplained(*one.solve(penalty=p)) for one, other in halves) for p in PENALTIES}
    return min(PENALTIES, key=lambda p: missed[p])


class Spread:
    """Running sums for the mean m (D,) and the spread s of rows x: s^2 = mean |x - m|^2, in float64."""

    def __init__(self, width: int) -> None:
        self._sums = torch.zeros(width + 2, dtype=torch.float64)

    def add(self, rows_ND: Tensor) -> None:
        """Add rows."""
        rows_ND = rows_ND.detach().double().cpu()
        more = rows_ND.new_tensor([len(rows_ND), float(rows_ND.square().sum())])
        self._sums += torch.cat([rows_ND.sum(0), more])

    def reduce(self, total: Callable[[Tensor], Tensor]) -> None:
        """See `RidgeFit.reduce`."""
        self._sums = total(self._sums)

    def solve(self) -> tuple[Tensor, Tensor]:
        """1 / s (1,) and -m / s (D,) in float32, so that x / s - m / s has mean 0 and mean squared length 1; s is 1 where all rows agree."""
        sum_D, count, squares = self._sums[:-2], self._sums[-2], self._sums[-1]
        mean_D = sum_D / count
        variance = squares / count - mean_D.square().sum()
        scale = 1.0 / torch.where(variance > 0, variance, 1.0).sqrt()
        return scale[None].float(), (-mean_D * scale).float()


class RidgeFit:
    """Running sums for a linear fit y = M x + b; only D x D and D x E numbers are kept, in float64.

    Call `add` for every batch, then `solve` (any number of times, with different penalties).
    With `center=False` the map goes through the origin and the bias is zero.
    """

    def __init__(
        self,
        teacher_width: int,
        student_width: int,
        *,
        center: bool = True,
        device: str | torch.device = "cpu",
    ) -> None:
        self.rows = 0.0
        self.center = center
        self._teacher_D = torch.zeros(teacher_width, dtype=torch.float64, device=device)
        self._student_E = torch.zeros(student_width, dtype=torch.float64, device=device)
        self._gram_DD = torch.zeros(teacher_width, teacher_width, dtype=torch.float64, device=device)
        self._cross_DE = torch.zeros(teacher_width, student_width, dtype=torch.float64, device=device)
        self._squares_E = torch.zeros(student_width, dtype=torch.float64, device=device)

    def add(self, teacher_ND: Tensor, student_NE: Tensor, weights_N: Tensor | None = None) -> None:
        """Add paired rows: row n of both is the same token, and counts weights_N[n] times (once without weights).

        Raises ModelError if a value is not finite.
        """
        check_matrix("Teacher activations", teacher_ND, self._teacher_D.numel())
        check_matrix("Student activations", student_NE, self._student_E.numel())
        check_rows("Teacher activations", "student activations", len(teacher_ND), len(student_NE))
        teacher_ND = teacher_ND.detach().to(self._gram_DD)
        student_NE = student_NE.detach().to(self._gram_DD)
        for name, rows_NW in (("Teacher", teacher_ND), ("Student", student_NE)):
            if not rows_NW.isfinite().all():
                raise ModelError(
                    f"{name} activations must be finite, got NaN or infinity; "
                    "run that model in bfloat16 or float32."
                )
        if weights_N is None:
            weights_N = torch.ones(len(teacher_ND))
        check_rows("Teacher activations", "weights", len(teacher_ND), len(weights_N))
        weights_N = weights_N.detach().to(self._gram_DD)
        weighted_DN = (weights_N[:, None] * teacher_ND).T
        self.rows += float(weights_N.sum())
        self._teacher_D += weighted_DN.sum(1)
        self._student_E += weights_N @ student_NE
        self._squares_E += weights_N @ student_NE.square()
        self._gram_DD.addmm_(weighted_DN, teacher_ND)
        self._cross_DE.addmm_(weighted_DN, student_NE)

    def reduce(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace every running sum by `total` of it: the sum over processes that each added rows of their own."""
        self.rows = float(total(torch.tensor(self.rows, dtype=torch.float64)))
        for tensor in self._sums():
            tensor.copy_(total(tensor.cpu()))

    def _sums(self) -> tuple[Tensor, ...]:
        return self._teacher_D, self._student_E, self._gram_DD, self._cross_DE, self._squares_E

    def absorb(self, other: RidgeFit) -> None:
        """Take the rows of another fit in."""
        self.rows += other.rows
        for own, more in zip(self._sums(), other._sums(), strict=True):
            own += more

    def unexplained(self, map_ED: Tensor, bias_E: Tensor) -> float:
        """|y - M x - b|^2 / |y - mean y|^2 of a map on these rows, from the sums alone; 0 is perfect, 1 as good as the mean."""
        map_ED, bias_E = map_ED.to(self._gram_DD), bias_E.to(self._gram_DD)
        mapped = ((map_ED @ self._gram_DD) * map_ED).sum() - 2 * (map_ED.T * self._cross_DE).sum()
        shifts = self.rows * bias_E.square().sum() + 2 * bias_E @ (map_ED @ self._teacher_D - self._student_E)
        squares = self._squares_E.sum()
        spread = squares - self._student_E.square().sum() / self.rows
        return float((squares + mapped + shifts) / spread) if spread > 0 else 0.0

    def solve(self, *, penalty: float = 1e-3) -> tuple[Tensor, Tensor]:
        """Ridge map and bias: M' = (X'X + penalty * mean(diag X'X) I)^-1 X'Y, b = mean y - M mean x.

        X and Y are centred unless `center=False`. `penalty=0` gives the least-squares map of smallest
        norm, also with fewer rows than D. Returns (map_ED, bias_E) in float32.
        """
        if penalty < 0:
            raise ModelError(f"The ridge penalty must not be negative, got {penalty}; 1e-3 is the default.")
        teacher_D, student_E, gram_DD, cross_DE = self._moments()
        if penalty > 0:
            shift = penalty * gram_DD.diagonal().mean()
            # All-zero activations leave nothing to scale the penalty by; any shift then gives M = 0.
            gram_DD.diagonal().add_(shift if shift > 0 else 1.0)
            map_DE = torch.cholesky_solve(cross_DE, torch.linalg.cholesky(gram_DD))
        else:
            map_DE = torch.linalg.pinv(gram_DD, hermitian=True) @ cross_DE
        return map_DE.T.float().contiguous(), (student_E - teacher_D @ map_DE).float()

    def solve_procrustes(self) -> tuple[Tensor, Tensor]:
        """Scaled orthogonal map: M = s Q with Q Q' = I (E x D, D >= E), and b = mean y - M mean x.

        Q = U V' from the SVD of Y'X maximises the covariance of Q x with y; s is the least-squares scale
        for that Q. For D = E this is the optimal orthogonal map (Schoenemann 1966); for D > E the
        least-squares Q has no closed form and this one is the usual choice.
        """
        teacher_D, student_E, gram_DD, cross_DE = self._moments()
        if cross_DE.shape[0] < cross_DE.shape[1]:
            raise ModelError(
                f"An orthogonal map needs a teacher at least as wide as the student, got widths "
                f"{cross_DE.shape[0]} and {cross_DE.shape[1]}; use solve() instead."
            )
        left_EE, _, right_ED = torch.linalg.svd(cross_DE.T, full_matrices=False)
        rotation_ED = left_EE @ right_ED
        spread = ((rotation_ED @ gram_DD) * rotation_ED).sum()
        scale = (rotation_ED * cross_DE.T).sum() / spread if spread > 0 else spread.new_zeros(())
        map_ED = scale * rotation_ED
        return map_ED.float(), (student_E - map_ED @ teacher_D).float()

    def _moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means of both sides (zero if not centring), and X'X and X'Y of the (centred) rows."""
        if self.rows == 0:
            raise ModelError("A fit needs at least one row of activations, got none; call add() first.")
        teacher_D = self._teacher_D / self.rows * self.center
        student_E = self._student_E / self.rows * self.center
        gram_DD = self._gram_DD - self.rows * torch.outer(teacher_D, teacher_D)
        cross_DE = self._cross_DE - self.rows * torch.outer(teacher_D, student_E)
        return teacher_D, student_E, gram_DD, cross_DE
