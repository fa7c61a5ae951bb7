"""Losses on the union of both models' top-k tokens: the full KL's knowledge from 2k head rows.

J is the union of the teacher's and the untouched student's top-k tokens at a position and of the row's own token, stored as
2K + 1 ids of which repeats are masked out. Log-probabilities are those of the full softmax, not renormalised.

Losses on J alone leave everything outside J free: the student may put any mass there. One more slot, the rest, holds it
in place: the teacher's mass outside J against the student's, of which a fixed set of candidates is followed through training.
What is neither in J nor a candidate moves as the candidates do: it keeps its share of their sum in the untouched student.

Legend: N supervised positions, V vocabulary, K top tokens of one model, J = 2K + 1 slots of the union, C candidates.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from semalign.errors import ModelError
from semalign.maths._tensors import check_matrix, check_rows, working_dtype

# Stands for log 0 in masked slots: exp of it is exactly 0, and 0 times it is 0, not NaN.
_LOG_ZERO = -1e30


def union_topk(
    teacher_ids_NK: Tensor, teacher_logp_NK: Tensor, student_ids_NK: Tensor, student_logp_NK: Tensor
) -> tuple[Tensor, Tensor]:
    """Union of two lists of token ids per position: (ids_NJ, mask_NJ), the teacher's slots first.

    A student id that the teacher's list has already is masked False, so every token counts once. Slots with
    log-probability -inf are padding (a list shorter than K) and masked too. Ids within one list differ.
    """
    check_rows("Teacher ids", "student ids", len(teacher_ids_NK), len(student_ids_NK))
    teacher_real_NK = teacher_logp_NK > -torch.inf
    student_real_NK = student_logp_NK > -torch.inf
    # Student slot against teacher slot; padding on the teacher's side hides nothing.
    same_NKK = student_ids_NK[:, :, None] == teacher_ids_NK[:, None, :]
    repeated_NK = (same_NKK & teacher_real_NK[:, None, :]).any(-1)
    ids_NJ = torch.cat([teacher_ids_NK, student_ids_NK], dim=1)
    return ids_NJ, torch.cat([teacher_real_NK, student_real_NK & ~repeated_NK], dim=1)


def topk_kl_loss(
    logits_NJ: Tensor, teacher_logp_NJ: Tensor, mask_NJ: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """KL(p_T || p_S) with both distributions renormalised over the masked-in tokens of J, and the rest where it has a slot.

    At temperature t both sides are divided by t before the softmax and the loss is multiplied by t^2, which
    keeps the size of the gradient (Hinton et al. 2015).
    """
    _check_slots(logits_NJ, mask_NJ, teacher_logp_NJ)
    if temperature <= 0:
        raise ModelError(f"The temperature must be positive, got {temperature}.")
    student_NJ = _masked_log_softmax(logits_NJ, mask_NJ, temperature)
    teacher_NJ = _masked_log_softmax(teacher_logp_NJ.detach(), mask_NJ, temperature)
    terms_NJ = (teacher_NJ.exp() * (teacher_NJ - student_NJ)).masked_fill(~mask_NJ, 0.0)
    return terms_NJ.sum(-1).mean() * temperature**2


Divergence = Literal["reverse", "jsd", "skewed", "bridge"]


def topk_divergence(
    logits_NJ: Tensor,
    teacher_logp_NJ: Tensor,
    mask_NJ: Tensor,
    kind: Divergence,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """Another divergence of p_T and p_S over the same slots as `topk_kl_loss`, times t^2 at temperature t.

    reverse: KL(p_S || p_T).
    jsd: beta KL(p_T || m) + (1 - beta) KL(p_S || m) with m = beta p_T + (1 - beta) p_S (arXiv 2306.13649).
    skewed: KL(p_T || beta p_T + (1 - beta) p_S) (arXiv 2402.03898).
    bridge: KL(r || p_S) with r proportional to p_T p_S^beta, in which no gradient flows (arXiv 2601.07155); beta = 0 is the KL itself.
    """
    _check_slots(logits_NJ, mask_NJ, teacher_logp_NJ)
    if temperature <= 0:
        raise ModelError(f"The temperature must be positive, got {temperature}.")
    if not 0.0 <= beta <= 1.0 or (kind == "jsd" and beta in (0.0, 1.0)):
        raise ModelError(f"beta must lie in [0, 1], and inside it for jsd, got {beta}.")
    student_NJ = _masked_log_softmax(logits_NJ, mask_NJ, temperature)
    teacher_NJ = _masked_log_softmax(teacher_logp_NJ.detach(), mask_NJ, temperature)
    if kind == "reverse":
        parts = [(1.0, student_NJ, teacher_NJ)]
    elif kind == "bridge":
        between_NJ = _masked_log_softmax(teacher_NJ + beta * student_NJ.detach(), mask_NJ, 1.0)
        parts = [(1.0, between_NJ, student_NJ)]
    else:
        mixed_NJ = _log_mixture(teacher_NJ, student_NJ, beta)
        parts = [(beta, teacher_NJ, mixed_NJ), (1.0 - beta, student_NJ, mixed_NJ)]
        parts = parts if kind == "jsd" else [(1.0, teacher_NJ, mixed_NJ)]
    terms_NJ = sum(weight * p_NJ.exp() * (p_NJ - q_NJ) for weight, p_NJ, q_NJ in parts)
    return torch.as_tensor(terms_NJ).masked_fill(~mask_NJ, 0.0).sum(-1).mean() * temperature**2


def _log_mixture(one_NJ: Tensor, other_NJ: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) q) of two log-probabilities."""
    if share in (0.0, 1.0):
        return one_NJ if share else other_NJ
    return torch.logaddexp(one_NJ + math.log(share), other_NJ + math.log1p(-share))


@torch.no_grad()
def told_closeness(
    logits_NV: Tensor, ids_NJ: Tensor, teacher_logp_NJ: Tensor, mask_NJ: Tensor, labels_N: Tensor
) -> dict[str, Tensor]:
    """How close the student is to a teacher of which some tokens' log-probabilities are known, and all others as one.

    Returns four float32 tensors (N,), as `semalign.maths.full_vocabulary.closeness`: `kl` is that of the tokens of J and the rest, at
    most the full one; `top1` compares the student's first token with the likeliest that the teacher tells; `nll_teacher` is the
    teacher's of the row's own token, which J holds.
    """
    _check_slots(logits_NV.gather(1, ids_NJ), mask_NJ, teacher_logp_NJ)
    student_NV = logits_NV.float().log_softmax(1)
    top_N, label_N = student_NV.argmax(1), student_NV.gather(1, labels_N[:, None])[:, 0]
    # In float64, since what the teacher leaves may be less than float32 tells from none.
    student_NJ, teacher_NJ = student_NV.gather(1, ids_NJ).double(), teacher_logp_NJ.double()
    p_NJ = teacher_NJ.exp().masked_fill(~mask_NJ, 0.0)
    p_N = (1.0 - p_NJ.sum(1)).clamp_min(0.0)
    # One minus what a sure student gives to J would be none; its other logits say what it is.
    rows, slots = mask_NJ.nonzero(as_tuple=True)
    student_NV[rows, ids_NJ[rows, slots]] = -torch.inf
    tiny = torch.finfo(torch.float32).tiny
    q_N = student_NV.logsumexp(1).double().clamp_min(math.log(tiny))
    inside_N = (p_NJ * (teacher_NJ - student_NJ)).masked_fill(~mask_NJ, 0.0).sum(1)
    outside_N = p_N * (p_N.clamp_min(tiny).log() - q_N)
    first_N = ids_NJ.gather(1, teacher_NJ.masked_fill(~mask_NJ, -torch.inf).argmax(1, keepdim=True))[:, 0]
    is_label_NJ = (ids_NJ == labels_N[:, None]) & mask_NJ
    return {
        "kl": (inside_N + outside_N).float(),
        "top1": (top_N == first_N).float(),
        "nll_student": -label_N,
        "nll_teacher": -teacher_NJ.masked_fill(~is_label_NJ, 0.0).sum(1).float(),
    }


def with_labels(ids_NJ: Tensor, mask_NJ: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and mask with the row's own tokens in one more slot, masked where the others have them (N x (J + 1) each)."""
    known_N = ((ids_NJ == labels_N[:, None]) & mask_NJ).any(1)
    return torch.cat([ids_NJ, labels_N[:, None]], 1), torch.cat([mask_NJ, ~known_N[:, None]], 1)


def followed_logit(
    logits_NC: Tensor, candidates_C: Tensor, ids_NJ: Tensor, mask_NJ: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """t log sum exp(z_c / t) (N,) over the candidates that are not in J; -1e30 t where there are none.

    Args:
        logits_NC: the student's logits of the candidates.
        candidates_C: their token ids, ascending, each once.
        ids_NJ: the tokens of J of each position.
        mask_NJ: which of them count.
    """
    check_rows("Candidates' logits", "ids", len(logits_NC), len(ids_NJ))
    at_NJ = torch.searchsorted(candidates_C, ids_NJ).clamp_max(len(candidates_C) - 1)
    row_M, slot_M = ((candidates_C[at_NJ] == ids_NJ) & mask_NJ).nonzero(as_tuple=True)
    inside_NC = torch.zeros_like(logits_NC, dtype=torch.bool)
    inside_NC[row_M, at_NJ[row_M, slot_M]] = True
    scaled_NC = (logits_NC.to(working_dtype(logits_NC)) / temperature).masked_fill(inside_NC, _LOG_ZERO)
    # The least that a sum can be, so that without candidates it is no log 0.
    return scaled_NC.logsumexp(1).clamp_min(_LOG_ZERO) * temperature


def rest_logit(
    followed_N: Tensor, untouched_N: Tensor, outside_N: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """The logit of "any token outside J" (N x 1) at temperature t: t log(exp(f / t) + exp((o + f - f0) / t)).

    A softmax at t over J and this slot gives it the joint probability of all these tokens, as far as tokens that are not followed
    move with those that are. At the untouched student, or with the whole vocabulary as candidates, the KL on J and the rest is exactly
    that of both models once tokens outside J are taken as one: at most the full KL, and 0 where the models agree.

    Args:
        followed_N: f, `followed_logit` of the student.
        untouched_N: f0, that of the untouched student.
        outside_N: o, t log sum exp(z / t) of the untouched student's logits over the tokens that are neither in J nor candidates.
    """
    check_rows("Followed logits", "logits outside", len(followed_N), len(outside_N))
    # Without candidates nothing says how the others move, and they stay.
    moved_N = torch.where(untouched_N > _LOG_ZERO / 2, followed_N - untouched_N, 0.0)
    both_NT = torch.stack([followed_N, outside_N.to(followed_N.dtype) + moved_N], 1)
    return (both_NT / temperature).logsumexp(1, keepdim=True) * temperature


def log_rest(logp_NJ: Tensor, mask_NJ: Tensor) -> Tensor:
    """log(1 - sum_J p), the log-probability of everything outside J (N x 1); rounding may not make it -inf."""
    _check_slots(logp_NJ, mask_NJ)
    rest_N1 = 1.0 - _masked_exp(logp_NJ, mask_NJ).sum(1, keepdim=True)
    return rest_N1.clamp_min(torch.finfo(rest_N1.dtype).eps).log()


def rest_of(logits_NJ: Tensor, lse_N: Tensor, mask_NJ: Tensor, *, temperature: float = 1.0) -> Tensor:
    """t log sum exp(z / t) (N,) over the tokens outside J of a model whose t log sum exp over the vocabulary is `lse_N`."""
    scaled_NJ = (logits_NJ - lse_N[:, None]) / temperature
    return lse_N + temperature * log_rest(scaled_NJ, mask_NJ)[:, 0]


def outside_of(
    followed_N: Tensor, logits_NJ: Tensor, lse_N: Tensor, mask_NJ: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """The same over the tokens that are neither in J nor among the candidates, whose part is `followed_N`."""
    rest_N = (rest_of(logits_NJ, lse_N, mask_NJ, temperature=temperature) - lse_N) / temperature
    left_N = rest_N.exp() - ((followed_N - lse_N) / temperature).exp()
    return lse_N + temperature * left_N.clamp_min(torch.finfo(left_N.dtype).eps).log()


def with_rest(
    logits_NJ: Tensor, rest_N1: Tensor, logp_NJ: Tensor, logp_rest_N1: Tensor, mask_NJ: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, log-probabilities and mask with one more slot, the rest (N x (J + 1) each), for the losses below."""
    return (
        torch.cat([logits_NJ, rest_N1], 1),
        torch.cat([logp_NJ, logp_rest_N1], 1),
        torch.cat([mask_NJ, torch.ones_like(mask_NJ[:, :1])], 1),
    )


def mix_labels(
    ids_NJ: Tensor, teacher_logp_NJ: Tensor, mask_NJ: Tensor, labels_N: Tensor, *, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The distribution (1 - share) p_T + share onehot(label) on J and the label.

    A label outside J gets a slot of its own, where p_T counts as 0. What p_T has outside J stays outside.
    Returns ids, log-probabilities and mask (N x (J + 1)) for `gathered_logits` and `topk_kl_loss`.
    """
    _check_slots(teacher_logp_NJ, mask_NJ)
    if not 0.0 <= share < 1.0:
        raise ModelError(f"The label's share must lie in [0, 1), got {share}.")
    teacher_NJ = _masked_exp(teacher_logp_NJ.detach(), mask_NJ)
    hit_NJ = (ids_NJ == labels_N[:, None]) & mask_NJ
    missing_N1 = ~hit_NJ.any(-1, keepdim=True)
    mixed = torch.cat([(1 - share) * teacher_NJ + share * hit_NJ, share * missing_N1], dim=-1)
    # clamp: a masked slot holds 0, whose log would be -inf
    logp = mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log()
    return torch.cat([ids_NJ, labels_N[:, None]], -1), logp, torch.cat([mask_NJ, missing_N1], -1)


def fisher_loss(
    logits_NJ: Tensor, teacher_logp_NJ: Tensor, student_logp_NJ: Tensor, mask_NJ: Tensor
) -> Tensor:
    """Fisher-weighted quadratic surrogate of the KL on the tokens of J.

    1/2 sum_J w_j (d_j - dbar)^2 with w = (p_T + p_S0) / 2 (not renormalised), d = z_S - log p_T and
    dbar = sum w d / sum w: the second-order expansion of the KL around equal models. `student_logp_NJ` are
    the untouched student's; they and the teacher's must be finite where the mask is True.
    """
    _check_slots(logits_NJ, mask_NJ, teacher_logp_NJ, student_logp_NJ)
    difference_NJ = logits_NJ.to(working_dtype(logits_NJ)) - teacher_logp_NJ.detach()
    return fisher_quadratic(difference_NJ, teacher_logp_NJ, student_logp_NJ, mask_NJ)


def fisher_quadratic(
    difference_NJ: Tensor, teacher_logp_NJ: Tensor, student_logp_NJ: Tensor, mask_NJ: Tensor
) -> Tensor:
    """1/2 sum_J w_j (d_j - dbar)^2 of any logit difference d in the metric w = (p_T + p_S0) / 2; see `fisher_loss`.

    Shifting d by a constant at a position changes nothing. The gradient goes to d only.
    """
    _check_slots(difference_NJ, mask_NJ, teacher_logp_NJ, student_logp_NJ)
    dtype = working_dtype(difference_NJ)
    teacher_NJ, student_NJ = (
        _masked_exp(logp_NJ.detach().to(dtype), mask_NJ) for logp_NJ in (teacher_logp_NJ, student_logp_NJ)
    )
    weight_NJ = (teacher_NJ + student_NJ) / 2
    difference_NJ = difference_NJ.to(dtype).masked_fill(~mask_NJ, 0.0)
    # A position with nothing masked in has weight 0 everywhere and counts as loss 0.
    total_N1 = weight_NJ.sum(-1, keepdim=True)
    mean_N1 = (weight_NJ * difference_NJ).sum(-1, keepdim=True) / torch.where(total_N1 > 0, total_N1, 1.0)
    return (weight_NJ * (difference_NJ - mean_N1).square()).sum(-1).mean() / 2


def _masked_exp(logp_NJ: Tensor, mask_NJ: Tensor) -> Tensor:
    """Probabilities, 0 where masked."""
    return logp_NJ.to(working_dtype(logp_NJ)).masked_fill(~mask_NJ, _LOG_ZERO).exp()


def _masked_log_softmax(scores_NJ: Tensor, mask_NJ: Tensor, temperature: float) -> Tensor:
    scores_NJ = scores_NJ.to(working_dtype(scores_NJ)) / temperature
    return torch.log_softmax(scores_NJ.masked_fill(~mask_NJ, _LOG_ZERO), dim=-1)


def _check_slots(logits_NJ: Tensor, mask_NJ: Tensor, *logps: Tensor) -> None:
    check_matrix("Gathered logits", logits_NJ)
    shapes = [tuple(tensor.shape) for tensor in (logits_NJ, mask_NJ, *logps)]
    if len(set(shapes)) > 1 or mask_NJ.dtype != torch.bool:
        raise ModelError(
            "Gathered logits, log-probabilities and the bool mask must share one shape (positions x slots), "
            f"got {shapes} and a {mask_NJ.dtype} mask; gather the logits with the ids that go with the mask."
        )
    if len(logits_NJ) == 0:
        raise ModelError("A loss needs at least one supervised position, got none; skip such a batch.")
