"""Semantic bases: from LM-head weights to directions in activation space, and the maps folded from them.

The semantic basis of token i is column i of S = pinv(W): the latent direction that means that token.
Nothing here needs an SVD of a V x D matrix: with the Gram matrix G = W'W, pinv(W) = G^+ W'. G is formed
and inverted in float64, because its condition number is the square of the head's.

Nothing here carries a gradient, except `apply_map`.

Layout: weights are stored token by row (W is V x D), bases token by column (S is D x V).
Legend: V vocabulary, D teacher width (or the only width), E student width, N tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from semalign.errors import ModelError
from semalign.maths._tensors import check_matrix, check_rows, row_blocks, unit, working_dtype

__all__ = [
    "HeadSpectrum",
    "apply_map",
    "gram",
    "logit_map",
    "semantic_map",
    "spectrum",
]

# The Gram matrix is symmetric: only the panels on and above the diagonal are multiplied.
_PANELS = 8


@dataclass(frozen=True, eq=False)
class HeadSpectrum:
    """Rank and conditioning of an LM head, read off its Gram matrix."""

    rank: int
    """Number of singular values above the cutoff."""
    condition: float
    """Largest over smallest kept singular value of the head (not of the Gram matrix); inf at rank 0."""
    eigenvalues_D: Tensor
    """Eigenvalues of the Gram matrix (squared singular values of the head), ascending, float64."""


@torch.no_grad()
def gram(weight_VD: Tensor, *, block: int = 8192) -> Tensor:
    """Gram matrix G = W'W in float64 (D x D), accumulated over row blocks of the vocabulary.

    Raises ModelError naming the first row that is not finite.
    """
    check_matrix("The head weight", weight_VD)
    width = weight_VD.shape[1]
    gram_DD = weight_VD.new_zeros((width, width), dtype=torch.float64)
    panels = list(row_blocks(width, max(256, -(-width // _PANELS))))
    for rows in row_blocks(weight_VD.shape[0], block):
        block_BD = _finite_block(weight_VD, rows)
        for panel in panels:
            gram_DD[panel, panel.start :].addmm_(block_BD[:, panel].T, block_BD[:, panel.start :])
    for panel in panels:
        square = gram_DD[panel, panel]
        # Rounding differs between the halves of a product: mirror one, so that G is exactly symmetric.
        square.copy_(square.triu() + square.triu(1).T)
        gram_DD[panel.stop :, panel] = gram_DD[panel, panel.stop :].T
    return gram_DD


@torch.no_grad()
def spectrum(gram_DD: Tensor, *, rcond: float | None = None) -> HeadSpectrum:
    """Rank, condition number and eigenvalues from a Gram matrix.

    `rcond` is the cutoff on the head's singular values relative to the largest; it is squared for the
    Gram matrix. Default and floor: sqrt(D * 2.2e-16), below which float64 cannot tell G from singular.
    """
    eigenvalues_D = torch.linalg.eigvalsh(gram_DD.double())
    kept = eigenvalues_D[_kept(eigenvalues_D, rcond)]
    condition = float((kept[-1] / kept[0]).sqrt()) if kept.numel() else float("inf")
    return HeadSpectrum(rank=kept.numel(), condition=condition, eigenvalues_D=eigenvalues_D)


@torch.no_grad()
def semantic_map(
    teacher_weight_VD: Tensor, student_weight_VE: Tensor, *, block: int = 8192, rcond: float | None = None
) -> Tensor:
    """Folded map M = S_S S_T' with unit-length bases (E x D, float32), from the two heads.

    M = sum over tokens v of s_v t_v', s_v = G_S^+ w_v / |G_S^+ w_v| and t_v likewise for the teacher, so M h / |h| puts the
    coefficients a = S_T' h / |h| of the teacher's state on the student's bases. The sum runs over row blocks of the vocabulary: live at
    one time are two Gram inverses, one block of each head's bases, and M. A token whose head row is
    zero adds nothing. The block products are float32: relative error 5e-6 at head condition 64, 6e-5 at 1000;
    pass float64 heads for more. Both heads must list the same tokens in the same rows.
    """
    check_matrix("The teacher's head", teacher_weight_VD)
    check_matrix("The student's head", student_weight_VE)
    vocabulary = teacher_weight_VD.shape[0]
    check_rows("The teacher's head", "the student's head", vocabulary, student_weight_VE.shape[0])
    dtype = working_dtype(teacher_weight_VD, student_weight_VE)
    teacher_DD = _pseudo_inverse(gram(teacher_weight_VD, block=block), rcond).to(dtype)
    student_EE = _pseudo_inverse(gram(student_weight_VE, block=block), rcond).to(dtype)
    map_ED = teacher_DD.new_zeros((student_EE.shape[0], teacher_DD.shape[0]))
    for rows in row_blocks(vocabulary, block):
        teacher_BD = unit(teacher_weight_VD[rows].to(dtype) @ teacher_DD)
        student_BE = unit(student_weight_VE[rows].to(dtype) @ student_EE)
        map_ED.addmm_(student_BE.T, teacher_BD)
    return map_ED.float()


@torch.no_grad()
def logit_map(
    teacher_weight_VD: Tensor,
    student_weight_VE: Tensor,
    *,
    teacher_norm_D: Tensor | None = None,
    student_norm_E: Tensor | None = None,
    block: int = 8192,
    rcond: float | None = None,
) -> Tensor:
    """Map that makes the student's head reproduce the teacher's logits as well as it can (E x D, float32).

    M = pinv(W_S diag(g_S)) W_T diag(g_T) = (g_S g_S' * G_S)^+ diag(g_S) W_S' W_T diag(g_T): the least-squares
    answer to "which student state has these logits". The norm weights g (the multipliers the final norm
    applies; ones if left out) fold the final norm in, for states taken before it.
    """
    check_matrix("The teacher's head", teacher_weight_VD)
    check_matrix("The student's head", student_weight_VE)
    vocabulary = teacher_weight_VD.shape[0]
    check_rows("The teacher's head", "the student's head", vocabulary, student_weight_VE.shape[0])
    teacher_norm_D = _norm_weight("teacher_norm_D", teacher_norm_D, teacher_weight_VD)
    student_norm_E = _norm_weight("student_norm_E", student_norm_E, student_weight_VE)
    gram_EE = gram(student_weight_VE, block=block) * student_norm_E[:, None] * student_norm_E
    cross_ED = gram_EE.new_zeros((gram_EE.shape[0], teacher_weight_VD.shape[1]))
    for rows in row_blocks(vocabulary, block):
        cross_ED.addmm_(student_weight_VE[rows].double().T, _finite_block(teacher_weight_VD, rows))
    cross_ED *= student_norm_E[:, None] * teacher_norm_D
    return (_pseudo_inverse(gram_EE, rcond) @ cross_ED).float()


def apply_map(hidden_ND: Tensor, map_ED: Tensor, bias_E: Tensor | None = None, *, normalize: bool) -> Tensor:
    """Carry teacher states to student space: M h / |h| + b if `normalize`, else M h + b (N x E)."""
    check_matrix("Hidden states", hidden_ND, map_ED.shape[1])
    dtype = working_dtype(hidden_ND, map_ED)
    hidden_ND = hidden_ND.to(dtype)
    mapped_NE = (unit(hidden_ND) if normalize else hidden_ND) @ map_ED.to(dtype).T
    return mapped_NE if bias_E is None else mapped_NE + bias_E.to(dtype)


def _finite_block(weight_VD: Tensor, rows: slice) -> Tensor:
    """Rows of a head in float64; ModelError naming the first row with a NaN or an infinity."""
    block_BD = weight_VD[rows].double()
    # A NaN or infinity anywhere survives the row sum, so one pass over the block is enough.
    bad_B = ~block_BD.sum(1).isfinite()
    if bad_B.any():
        row = rows.start + int(bad_B.nonzero()[0])
        raise ModelError(
            f"The head weight must be finite, but row {row} (token id {row}) is not; "
            "the checkpoint is damaged or overflowed in half precision, load it again in bfloat16 or float32."
        )
    return block_BD


def _kept(eigenvalues_D: Tensor, rcond: float | None) -> Tensor:
    return eigenvalues_D > _cutoff(eigenvalues_D.numel(), rcond) * eigenvalues_D[-1:].clamp_min(0)


def _cutoff(width: int, rcond: float | None) -> float:
    """Relative eigenvalue cutoff of a Gram matrix: rcond squared, never below float64's own noise."""
    if rcond is not None and not 0 <= rcond < 1:
        raise ModelError(f"rcond must lie in [0, 1), got {rcond}; leave it out for the default.")
    return max((rcond or 0.0) ** 2, width * torch.finfo(torch.float64).eps)


def _pseudo_inverse(gram_DD: Tensor, rcond: float | None) -> Tensor:
    """G^+ in float64: by Cholesky where G is safely regular, else by eigenvalues with a cutoff."""
    cutoff = _cutoff(gram_DD.shape[0], rcond)
    factor_DD, failed = torch.linalg.cholesky_ex(gram_DD)
    if not failed:
        inverse_DD = torch.cholesky_inverse(factor_DD)
        # The condition number in the 1-norm bounds the one in the 2-norm: below it nothing is cut off.
        condition = torch.linalg.matrix_norm(gram_DD, 1) * torch.linalg.matrix_norm(inverse_DD, 1)
        if condition * cutoff < 1:
            return inverse_DD
    eigenvalues_D, vectors_DD = torch.linalg.eigh(gram_DD)
    kept_D = _kept(eigenvalues_D, rcond)
    vectors_DR = vectors_DD[:, kept_D]
    return (vectors_DR / eigenvalues_D[kept_D]) @ vectors_DR.T


def _norm_weight(name: str, norm_D: Tensor | None, weight_VD: Tensor) -> Tensor:
    width = weight_VD.shape[1]
    if norm_D is None:
        return weight_VD.new_ones(width, dtype=torch.float64)
    if norm_D.shape != (width,) or not norm_D.isfinite().all():
        raise ModelError(
            f"{name} must be {width} finite numbers, one per column of the head, got shape "
            f"{tuple(norm_D.shape)}; pass the weight of that model's final norm."
        )
    return norm_D.double()
