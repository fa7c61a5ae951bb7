"""Losses on activations and logits; vocabulary-free where the algebra allows it.

Every loss is the mean over the N supervised positions: a scalar with gradient, computed in float32 (float64
for float64 inputs) whatever the inputs are. The top-k losses are in `topk`, those over the whole vocabulary in
`full_vocabulary`, head products in `head`.

Legend: N supervised positions, E student width, D teacher width, V vocabulary, T tokens of one sequence.
"""

import torch
from torch import Tensor

from semalign.errors import ModelError
from semalign.maths._tensors import check_matrix, check_rows, unit, working_dtype
from semalign.maths.head import check_ids

__all__ = ["cosine_loss", "geometry_loss", "output_cosine_loss", "squared_distance_loss"]


def cosine_loss(hidden_NE: Tensor, target_NE: Tensor) -> Tensor:
    """Layer term of the v1 recipe: 1 - mean cos(hidden, target).

    The target is constant. A zero row on either side has cosine 0 and a finite gradient.
    """
    check_matrix("Hidden states", hidden_NE)
    check_matrix("Targets", target_NE, hidden_NE.shape[1])
    check_rows("Hidden states", "targets", len(hidden_NE), len(target_NE))
    _check_some(hidden_NE)
    dtype = working_dtype(hidden_NE, target_NE)
    cosine_N = (unit(hidden_NE.to(dtype)) * unit(target_NE.detach().to(dtype))).sum(-1)
    return 1.0 - cosine_N.mean()


def output_cosine_loss(
    hidden_NE: Tensor,
    weight_VE: Tensor,
    gram_EE: Tensor,
    labels_N: Tensor,
    *,
    label_smoothing: float = 0.0,
    weight_sum_E: Tensor | None = None,
) -> Tensor:
    """Output term of the v1 recipe, 1 - mean cos(logits, label), without forming a logit.

    With z = W q and t = (1 - e) onehot(y) + e / V: z . t = (1 - e) w_y . q + e / V (sum_v w_v) . q,
    |z|^2 = q' G q with G = W'W (from `bases.gram`), |t|^2 = (1 - e)^2 + 2 e (1 - e) / V + e^2 / V.
    Cost E^2 instead of V E per position. Pass `weight_sum_E` = sum_v w_v when smoothing, otherwise it is
    summed on every call. The head is frozen.

    The norm is taken in float64, because q' G q squares the head's condition number. A constant logit scale
    changes nothing. A head bias is handled by appending it to the weight as one more column and a 1 to every
    hidden state. With logit soft-capping the identity does not hold: use the full logits there.
    """
    check_matrix("Hidden states", hidden_NE)
    check_matrix("The head weight", weight_VE, hidden_NE.shape[1])
    check_matrix("The Gram matrix", gram_EE, hidden_NE.shape[1])
    check_rows("Hidden states", "labels", len(hidden_NE), len(labels_N))
    check_ids(labels_N, len(weight_VE))
    _check_some(hidden_NE)
    if not 0.0 <= label_smoothing < 1.0:
        raise ModelError(f"Label smoothing must lie in [0, 1), got {label_smoothing}.")
    hidden_NE = hidden_NE.double()
    hit_N = (weight_VE.detach()[labels_N].double() * hidden_NE).sum(-1)
    length_N = _length(((hidden_NE @ gram_EE.detach().double()) * hidden_NE).sum(-1))
    if label_smoothing:
        if weight_sum_E is None:
            weight_sum_E = weight_VE.sum(0, dtype=torch.float64)
        share = label_smoothing / len(weight_VE)
        hit_N = (1 - label_smoothing) * hit_N + share * (hidden_NE @ weight_sum_E.detach().double())
        label_length = (
            (1 - label_smoothing) * (1 - label_smoothing + 2 * share) + label_smoothing * share
        ) ** 0.5
        hit_N = hit_N / label_length
    return (1.0 - (hit_N / length_N).mean()).to(working_dtype(weight_VE))


def squared_distance_loss(projected_ND: Tensor, target_ND: Tensor) -> Tensor:
    """1/N sum |x_n - y_n|^2, for targets of mean 0 and mean |y|^2 1: the share of their variance that is not explained.

    0 for equal rows, 1 on average for a constant guess at the mean (see `regression.Spread`). The target is constant.
    """
    check_matrix("Projected states", projected_ND)
    check_matrix("Targets", target_ND, projected_ND.shape[1])
    check_rows("Projected states", "targets", len(projected_ND), len(target_ND))
    _check_some(projected_ND)
    dtype = working_dtype(projected_ND, target_ND)
    return (projected_ND.to(dtype) - target_ND.detach().to(dtype)).square().sum() / len(target_ND)


def geometry_loss(student_TE: Tensor, target_TE: Tensor) -> Tensor:
    """1 - <K_S, K_T>: mismatch of the centred token-token relations of one sequence (as in the v2 recipe).

    K = H X X' H / |H X X' H|_F with H = I - 1/T, the double-centred Gram matrix over tokens, so this is one
    minus the linear CKA over the tokens (half the squared distance of the two K). Widths may differ; shifts,
    rotations and a common scale do not count. In [0, 1]; 0 for a single token, which has no relations, and
    1 where all tokens are alike. The target is constant.
    """
    check_matrix("Student activations", student_TE)
    check_matrix("Targets", target_TE)
    check_rows("Student activations", "targets", len(student_TE), len(target_TE))
    _check_some(student_TE)
    dtype = working_dtype(student_TE, target_TE)
    student_TE, target_TE = student_TE.to(dtype), target_TE.detach().to(dtype)
    if len(student_TE) == 1:
        return student_TE.sum() * 0.0
    # Centring the rows once centres the Gram matrix on both sides.
    student_TE, target_TE = student_TE - student_TE.mean(0), target_TE - target_TE.mean(0)
    if len(student_TE) > max(student_TE.shape[1], target_TE.shape[1]):
        # <XX', YY'> = |X'Y|^2: for a long sequence the covariances are the smaller matrices.
        cross = (student_TE.T @ target_TE).square().sum()
        gram_S, gram_T = student_TE.T @ student_TE, target_TE.T @ target_TE
    else:
        gram_S, gram_T = student_TE @ student_TE.T, target_TE @ target_TE.T
        cross = (gram_S * gram_T).sum()
    return 1.0 - cross / (_length(gram_S.square().sum()) * _length(gram_T.square().sum()))


def _length(squared: Tensor) -> Tensor:
    """Square root to divide by: 1 in place of 0, so that value and gradient of the quotient stay finite."""
    return torch.where(squared > 0, squared, 1.0).sqrt()


def _check_some(rows: Tensor) -> None:
    if len(rows) == 0:
        raise ModelError("A loss needs at least one supervised position, got none; skip such a batch.")
