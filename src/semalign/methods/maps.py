"""How teacher activations become targets in the student's space: one value a map.

Legend: N positions, D teacher width, E student width, V vocabulary, J slots of the cached tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from semalign.maths.bases import logit_map, semantic_map
from semalign.maths.regression import RidgeFit
from semalign.maths.topk import log_rest
from semalign.models.head import Head

Norms = tuple[Tensor, Tensor]
"""gamma of the teacher's final norm (D,) and of the student's (E,)."""
Weight = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Weights of positions (N,) from log p_T and log p_S of the untouched student (N, J), and the slots' mask (N, J)."""


@dataclass(frozen=True)
class Map:
    """A linear map from the teacher's space into the student's."""

    formula: str
    """As text, for cards and pages."""
    from_heads: Callable[[Head, Head, Norms], Tensor] | None = None
    """The matrix (E, D) from both LM heads alone, the teacher's first."""
    fitted: Callable[[RidgeFit, float], tuple[Tensor, Tensor]] | None = None
    """Matrix (E, D) and bias (E,) from the sums over all cached rows, and the ridge penalty."""
    weight: Weight | None = None
    """How its fit weights positions; it then needs the top-k signals."""
    is_raw: bool = False
    """Whether it stays in the teacher's space, as mean 0 and mean squared length 1 over all cached rows."""
    is_own: bool = False
    """Whether the target is the untouched student's own activation, so that nothing of the teacher is in it."""
    is_directional: bool = False
    """Whether it reads directions alone: it works on unit vectors."""

    @property
    def is_aligned(self) -> bool:
        """Whether it makes a target in the student's space of what the teacher says."""
        return not (self.is_raw or self.is_own)

    @property
    def is_fitted(self) -> bool:
        """Whether it needs all rows before the first target is known."""
        return self.is_raw or self.fitted is not None


def _semantic(teacher: Head, student: Head, norms: Norms) -> Tensor:
    return semantic_map(teacher.weight_VD, student.weight_VD)


def _logit(teacher: Head, student: Head, norms: Norms) -> Tensor:
    # Both final norms are folded in, for streams before them.
    return logit_map(teacher.weight_VD, student.weight_VD, teacher_norm_D=norms[0], student_norm_E=norms[1])


def _ridge(fit: RidgeFit, penalty: float) -> tuple[Tensor, Tensor]:
    return fit.solve(penalty=penalty)


def _procrustes(fit: RidgeFit, penalty: float) -> tuple[Tensor, Tensor]:
    return fit.solve_procrustes()


def _uncertainty(teacher_logp_NJ: Tensor, student_logp_NJ: Tensor, mask_NJ: Tensor) -> Tensor:
    """1 - sum_J p_T^2, the trace of the teacher's Fisher information in the logits: where it is certain, they may move without changing
    what it says. Kept above 0 so that no position is lost."""
    return (1 - (teacher_logp_NJ.exp() * mask_NJ).square().sum(1)).clamp_min(1e-3)


def _agreement(teacher_logp_NJ: Tensor, student_logp_NJ: Tensor, mask_NJ: Tensor) -> Tensor:
    """exp(-KL(p_T || p_S)) over the tokens of J and the rest as one token. Where the student does not know what the teacher says, its
    activation is no example of what the teacher's means."""
    both = [
        torch.cat((logp.float().masked_fill(~mask_NJ, -torch.inf), log_rest(logp.float(), mask_NJ)), 1)
        for logp in (teacher_logp_NJ, student_logp_NJ)
    ]
    kl_N = (both[0].exp() * (both[0] - both[1]).masked_fill(both[0].isinf(), 0.0)).sum(1)
    return (-kl_N).exp().clamp(1e-3, 1.0)


MAPS: dict[str, Map] = {
    "semantic": Map(
        "S_S S_T' h_T / |h_T|, S the normalised columns of the heads' pseudo-inverses",
        from_heads=_semantic,
        is_directional=True,
    ),
    "logit": Map("pinv(head_S) head_T h_T", from_heads=_logit),
    "ridge": Map("M h_T + b, fitted by ridge regression on the untouched pair", fitted=_ridge),
    "agreement_ridge": Map(
        "M h_T + b, fitted by ridge regression on the untouched pair, a position weighted by exp(-KL(p_T || p_S))",
        fitted=_ridge,
        weight=_agreement,
    ),
    "weighted_ridge": Map(
        "M h_T + b, fitted by ridge regression on the untouched pair, a position weighted by 1 - sum_J p_T^2",
        fitted=_ridge,
        weight=_uncertainty,
    ),
    "procrustes": Map("R h_T, R the best rotation on the untouched pair", fitted=_procrustes),
    "self": Map("the untouched student's own activation", is_own=True),
    "none": Map("(h_T - m) / s, m and s the mean and the spread over the training rows", is_raw=True),
}
"""By the names of `recipe.map`; `none` leaves the teacher's activation in its own space, and `self` is a control."""
