"""Losses and figures over the whole vocabulary, in chunks of positions.

At most one chunk's logits are alive (chunk x V), whatever the number of positions: the gradient of a chunk is
taken as soon as its loss is known, and only the N x E gradient is kept for the backward pass.

Legend: N supervised positions, E student width, D teacher width, V vocabulary, C positions of one chunk.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from semalign.errors import ModelError
from semalign.maths._tensors import check_matrix, check_rows, row_blocks
from semalign.maths.head import PLAIN_HEAD, HeadOptions, check_ids, head_logits

Divergence = Literal["forward", "reverse", "jsd"]

# (hidden states of a chunk, head weight, which rows) -> summed loss of the chunk
_ChunkLoss = Callable[[Tensor, Tensor, slice], Tensor]


def full_kl_loss(
    hidden_NE: Tensor,
    weight_VE: Tensor,
    teacher_hidden_ND: Tensor,
    teacher_weight_VD: Tensor,
    *,
    chunk: int = 256,
    kind: Divergence = "forward",
    temperature: float = 1.0,
    student: HeadOptions = PLAIN_HEAD,
    teacher: HeadOptions = PLAIN_HEAD,
) -> Tensor:
    """Exact divergence between teacher and student over the whole vocabulary.

    forward: KL(p_T || p_S). reverse: KL(p_S || p_T). jsd: half KL(p_T || m) + half KL(p_S || m), m = (p_T +
    p_S) / 2. At temperature t both logits are divided by t and the loss is multiplied by t^2. Gradients reach
    the student's hidden states and, where it asks for one, the student's head weight; never the teacher.
    """
    _check_models(hidden_NE, weight_VE, teacher_hidden_ND, teacher_weight_VD)
    if kind not in ("forward", "reverse", "jsd") or temperature <= 0:
        raise ModelError(
            'The divergence must be "forward", "reverse" or "jsd" at a positive temperature, got '
            f"{kind!r} at {temperature}."
        )

    def chunk_loss(hidden_CE: Tensor, weight_VE: Tensor, rows: slice) -> Tensor:
        with torch.no_grad():
            teacher_CV = head_logits(teacher_hidden_ND[rows], teacher_weight_VD, teacher)
            teacher_CV = torch.log_softmax(teacher_CV / temperature, dim=-1)
        student_CV = head_logits(hidden_CE, weight_VE, student)
        student_CV = torch.log_softmax(student_CV / temperature, dim=-1)
        return _divergence(teacher_CV, student_CV, kind) * temperature**2

    return _chunked_mean(hidden_NE, weight_VE, chunk_loss, chunk)


def cross_entropy_loss(
    hidden_NE: Tensor,
    weight_VE: Tensor,
    labels_N: Tensor,
    *,
    chunk: int = 256,
    label_smoothing: float = 0.0,
    options: HeadOptions = PLAIN_HEAD,
    weights_N: Tensor | None = None,
) -> Tensor:
    """Cross-entropy 1/N sum_n w_n (-log p(label_n)), in chunks; weights are 1 unless given.

    With smoothing e the target is (1 - e) one-hot + e / V.
    """
    check_rows("Hidden states", "labels", len(hidden_NE), len(labels_N))
    check_ids(labels_N, len(weight_VE))

    def chunk_loss(hidden_CE: Tensor, weight_VE: Tensor, rows: slice) -> Tensor:
        logits_CV = head_logits(hidden_CE, weight_VE, options)
        losses_C = cross_entropy(logits_CV, labels_N[rows], reduction="none", label_smoothing=label_smoothing)
        return losses_C.sum() if weights_N is None else weights_N[rows] @ losses_C

    return _chunked_mean(hidden_NE, weight_VE, chunk_loss, chunk)


@torch.no_grad()
def closeness(
    hidden_NE: Tensor,
    weight_VE: Tensor,
    teacher_hidden_ND: Tensor,
    teacher_weight_VD: Tensor,
    labels_N: Tensor,
    *,
    chunk: int = 256,
    student: HeadOptions = PLAIN_HEAD,
    teacher: HeadOptions = PLAIN_HEAD,
) -> dict[str, Tensor]:
    """How close the student is to the teacher at every position; no gradient, in chunks.

    Returns four float32 tensors (N,): `kl` = KL(p_T || p_S) in nats, `top1` = 1 where both models rank the
    same token first, `nll_student` and `nll_teacher` = -log p(label).
    """
    _check_models(hidden_NE, weight_VE, teacher_hidden_ND, teacher_weight_VD)
    check_rows("Hidden states", "labels", len(hidden_NE), len(labels_N))
    check_ids(labels_N, len(weight_VE))
    figures: dict[str, list[Tensor]] = {"kl": [], "top1": [], "nll_student": [], "nll_teacher": []}
    for rows in row_blocks(len(hidden_NE), chunk):
        teacher_CV = torch.log_softmax(head_logits(teacher_hidden_ND[rows], teacher_weight_VD, teacher), -1)
        student_CV = torch.log_softmax(head_logits(hidden_NE[rows], weight_VE, student), -1)
        labels_C1 = labels_N[rows, None]
        figures["nll_student"].append(-student_CV.gather(1, labels_C1).squeeze(1))
        figures["nll_teacher"].append(-teacher_CV.gather(1, labels_C1).squeeze(1))
        figures["top1"].append(student_CV.argmax(-1) == teacher_CV.argmax(-1))
        figures["kl"].append((teacher_CV.exp() * student_CV.neg_().add_(teacher_CV)).sum(-1))
    return {name: torch.cat(chunks).float() for name, chunks in figures.items()}


def _divergence(teacher_CV: Tensor, student_CV: Tensor, kind: Divergence) -> Tensor:
    """Summed divergence of log-probabilities."""
    if kind == "forward":
        return kl_div(student_CV, teacher_CV, reduction="sum", log_target=True)
    if kind == "reverse":
        return (student_CV.exp() * (student_CV - teacher_CV)).sum()
    middle_CV = torch.logaddexp(teacher_CV, student_CV) - torch.log(teacher_CV.new_tensor(2.0))
    from_teacher = (teacher_CV.exp() * (teacher_CV - middle_CV)).sum()
    return (from_teacher + (student_CV.exp() * (student_CV - middle_CV)).sum()) / 2


def _chunked_mean(hidden_NE: Tensor, weight_VE: Tensor, chunk_loss: _ChunkLoss, chunk: int) -> Tensor:
    """Mean over positions of a chunk-wise loss, with gradients for hidden states and weight."""
    check_matrix("Hidden states", hidden_NE)
    if len(hidden_NE) == 0:
        raise ModelError("A loss needs at least one supervised position, got none; skip such a batch.")
    if torch.is_grad_enabled() and (hidden_NE.requires_grad or weight_VE.requires_grad):
        loss: Tensor = _ChunkedMean.apply(hidden_NE, weight_VE, chunk_loss, chunk)
        return loss
    blocks = row_blocks(len(hidden_NE), chunk)
    return torch.stack([chunk_loss(hidden_NE[rows], weight_VE, rows) for rows in blocks]).sum() / len(
        hidden_NE
    )


class _ChunkedMean(torch.autograd.Function):
    """Takes each chunk's gradient during the forward pass, so no chunk is computed twice."""

    @staticmethod
    def forward(ctx: Any, hidden_NE: Tensor, weight_VE: Tensor, chunk_loss: _ChunkLoss, chunk: int) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        weight_leaf = weight_VE.detach().requires_grad_(needs_weight)
        grad_NE = torch.empty_like(hidden_NE) if needs_hidden else None
        # Summed over chunks in full precision even where the weight is bfloat16.
        grad_VE = torch.zeros_like(weight_VE, dtype=torch.float32) if needs_weight else None
        losses = []
        for rows in row_blocks(len(hidden_NE), chunk):
            with torch.enable_grad():
                hidden_leaf = hidden_NE[rows].detach().requires_grad_(needs_hidden)
                loss = chunk_loss(hidden_leaf, weight_leaf, rows)
            leaves = [leaf for leaf in (hidden_leaf, weight_leaf) if leaf.requires_grad]
            gradients = list(torch.autograd.grad(loss, leaves))
            if grad_NE is not None:
                grad_NE[rows] = gradients.pop(0) / len(hidden_NE)
            if grad_VE is not None:
                grad_VE += gradients.pop(0) / len(hidden_NE)
            losses.append(loss.detach())
        ctx.save_for_backward(grad_NE, None if grad_VE is None else grad_VE.to(weight_VE.dtype))
        return torch.stack(losses).sum() / len(hidden_NE)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_NE, grad_VE = ctx.saved_tensors
        return (
            None if grad_NE is None else (grad * grad_NE).to(grad_NE.dtype),
            None if grad_VE is None else (grad * grad_VE).to(grad_VE.dtype),
            None,
            None,
        )


def _check_models(
    hidden_NE: Tensor, weight_VE: Tensor, teacher_hidden_ND: Tensor, teacher_weight_VD: Tensor
) -> None:
    check_matrix("Teacher hidden states", teacher_hidden_ND, teacher_weight_VD.shape[1])
    check_rows("Student hidden states", "teacher hidden states", len(hidden_NE), len(teacher_hidden_ND))
    check_rows("The student's head", "the teacher's head", len(weight_VE), len(teacher_weight_VD))
