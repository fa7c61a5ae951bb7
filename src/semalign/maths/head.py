"""From hidden states to logits: all of them, or only the few that a loss needs.

Legend: N supervised positions, E width, V vocabulary, K tokens chosen per position.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semalign.errors import ModelError
from semalign.maths._tensors import check_matrix, check_rows, row_blocks, working_dtype

# A half-precision head is upcast this many vocabulary rows at a time.
_UPCAST_ROWS = 16384
# Gathered head rows that live at one time. On a CPU what fits in its cache was fastest; a GPU wants few, large products.
_GATHER_BYTES = 8 * 2**20
_GATHER_BYTES_ON_GPU = 256 * 2**20


@dataclass(frozen=True, eq=False)
class HeadOptions:
    """What a model does between h W' and its logits: z = cap(scale * (W h + bias))."""

    bias_V: Tensor | None = None
    """Bias of the head, one number per token; constant (it gets no gradient)."""
    scale: float = 1.0
    """Constant factor on the logits (for example Cohere's logit_scale, one over Granite's logits_scaling)."""
    softcap: float | None = None
    """Soft cap c: z becomes c tanh(z / c) (Gemma 2); None for no cap."""

    def __post_init__(self) -> None:
        if self.scale <= 0 or (self.softcap is not None and self.softcap <= 0):
            raise ModelError(
                f"Logit scale and soft cap must be positive, got scale={self.scale}, softcap={self.softcap}."
            )


PLAIN_HEAD = HeadOptions()
"""A head without bias, scale or cap: z = W h."""


def head_logits(hidden_NE: Tensor, weight_VE: Tensor, options: HeadOptions = PLAIN_HEAD) -> Tensor:
    """Logits z = cap(scale * (W h + bias)) over the whole vocabulary (N x V, float32), with gradient.

    A half-precision head is upcast block by block, never as a whole; under autocast the product runs in half precision, as it
    does in the model itself. Gradients reach the hidden states and, where it asks for one, the weight.
    """
    check_matrix("Hidden states", hidden_NE)
    check_matrix("The head weight", weight_VE, hidden_NE.shape[1])
    dtype = working_dtype(hidden_NE, weight_VE)
    hidden_NE = hidden_NE.to(dtype)
    if torch.is_autocast_enabled(hidden_NE.device.type):
        logits_NV = torch.nn.functional.linear(hidden_NE, weight_VE).to(dtype)
    elif weight_VE.dtype == dtype:
        logits_NV = hidden_NE @ weight_VE.T
    else:
        logits_NV = _UpcastProduct.apply(hidden_NE, weight_VE)
    if options.bias_V is not None:
        logits_NV = logits_NV + options.bias_V.to(dtype)
    return _scale_and_cap(logits_NV, options.scale, options.softcap)


def gathered_logits(
    hidden_NE: Tensor,
    weight_VE: Tensor,
    ids_NK: Tensor,
    *,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """Logits of K chosen tokens per position, z_nk = cap(scale * (w_{id_nk} . h_n + bias)) (N x K, float32).

    Only the chosen head rows are read, in the forward and the backward pass. A head in the working precision on a CPU
    is read in place, as a product sampled at the ids (N x K numbers live); any other is gathered and upcast a few
    positions at a time (at most 8 MiB live, 256 MiB on a GPU). The head is frozen: the gradient goes to the hidden states only. Repeated
    ids are allowed. On one CPU core with N = 2000, K = 64, E = 896 the sampled product took 0.05 s and gathering 0.30 s;
    one dense product with the union of all ids is slower still, because a batch chooses tens of thousands of tokens.
    """
    check_matrix("Hidden states", hidden_NE)
    check_matrix("The head weight", weight_VE, hidden_NE.shape[1])
    check_rows("Hidden states", "token ids", len(hidden_NE), len(ids_NK))
    check_ids(ids_NK, len(weight_VE))
    dtype = working_dtype(hidden_NE, weight_VE)
    logits_NK: Tensor = _GatheredProduct.apply(hidden_NE.to(dtype), weight_VE.detach(), ids_NK)
    if bias_V is not None:
        logits_NK = logits_NK + bias_V.detach().to(dtype)[ids_NK]
    return _scale_and_cap(logits_NK, scale, softcap)


def check_ids(ids: Tensor, vocabulary: int) -> None:
    """Raise ModelError unless every token id lies in 0..vocabulary - 1."""
    if ids.numel() == 0:
        return
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= vocabulary:
        raise ModelError(
            f"Token ids must lie in 0..{vocabulary - 1}, got {lowest}..{highest}; drop positions "
            "without a label (-100) first and check that both models share the vocabulary."
        )


def _scale_and_cap(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    if scale != 1.0:
        logits = logits * scale
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


class _UpcastProduct(torch.autograd.Function):
    """h W' with a half-precision W, in float32, without a float32 copy of W."""

    @staticmethod
    def forward(ctx: Any, hidden_NE: Tensor, weight_VE: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_NE, weight_VE)
        logits_NV = hidden_NE.new_empty((len(hidden_NE), len(weight_VE)))
        for rows in row_blocks(len(weight_VE), _UPCAST_ROWS):
            logits_NV[:, rows] = hidden_NE @ weight_VE[rows].to(hidden_NE.dtype).T
        return logits_NV

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NV: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden_NE, weight_VE = ctx.saved_tensors
        grad_NE = torch.zeros_like(hidden_NE) if ctx.needs_input_grad[0] else None
        grad_VE = torch.empty_like(weight_VE) if ctx.needs_input_grad[1] else None
        for rows in row_blocks(len(weight_VE), _UPCAST_ROWS):
            if grad_NE is not None:
                grad_NE.addmm_(grad_NV[:, rows], weight_VE[rows].to(hidden_NE.dtype))
            if grad_VE is not None:
                grad_VE[rows] = (grad_NV[:, rows].T @ hidden_NE).to(weight_VE.dtype)
        return grad_NE, grad_VE


class _GatheredProduct(torch.autograd.Function):
    """Products of each position with its own K rows of a frozen head."""

    @staticmethod
    def forward(ctx: Any, hidden_NE: Tensor, weight_VE: Tensor, ids_NK: Tensor) -> Tensor:
        ctx.save_for_backward(weight_VE, ids_NK)
        if _in_place(weight_VE, ids_NK, hidden_NE.dtype):
            pattern_NV = _sparse(hidden_NE.new_zeros(ids_NK.shape), ids_NK, len(weight_VE))
            sampled_NV = torch.sparse.sampled_addmm(pattern_NV, hidden_NE, weight_VE.T, beta=0)
            return sampled_NV.values().view(ids_NK.shape)
        logits_NK = hidden_NE.new_empty(ids_NK.shape)
        for rows in _gather_chunks(hidden_NE, ids_NK):
            gathered_CKE = _gather(weight_VE, ids_NK[rows], hidden_NE.dtype)
            logits_NK[rows] = torch.bmm(gathered_CKE, hidden_NE[rows, :, None]).squeeze(-1)
        return logits_NK

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NK: Tensor) -> tuple[Tensor, None, None]:
        weight_VE, ids_NK = ctx.saved_tensors
        if _in_place(weight_VE, ids_NK, grad_NK.dtype):
            return _sparse(grad_NK, ids_NK, len(weight_VE)) @ weight_VE, None, None
        grad_NE = grad_NK.new_empty((len(ids_NK), weight_VE.shape[1]))
        for rows in _gather_chunks(grad_NE, ids_NK):
            gathered_CKE = _gather(weight_VE, ids_NK[rows], grad_NK.dtype)
            grad_NE[rows] = torch.bmm(grad_NK[rows, None, :], gathered_CKE).squeeze(1)
        return grad_NE, None, None


def _in_place(weight_VE: Tensor, ids_NK: Tensor, dtype: torch.dtype) -> bool:
    # A sparse row has no place for more entries than the vocabulary.
    is_fitting = ids_NK.shape[1] <= len(weight_VE) and weight_VE.dtype == dtype
    return is_fitting and weight_VE.device.type == "cpu" and torch.backends.mkl.is_available()


def _sparse(values_NK: Tensor, ids_NK: Tensor, vocabulary: int) -> Tensor:
    """K entries of every row of an N x V matrix, repeated ids included; nothing of size V is stored."""
    count, chosen = ids_NK.shape
    starts = torch.arange(count + 1, device=ids_NK.device) * chosen
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            starts,
            ids_NK.reshape(-1),
            values_NK.reshape(-1),
            (count, vocabulary),
            check_invariants=False,
        )


def _gather(weight_VE: Tensor, ids_CK: Tensor, dtype: torch.dtype) -> Tensor:
    # index_select on flat ids is twice as fast here as weight[ids] with a matrix of ids.
    rows = weight_VE.index_select(0, ids_CK.reshape(-1)).to(dtype)
    return rows.view(*ids_CK.shape, weight_VE.shape[1])


def _gather_chunks(rows_NE: Tensor, ids_NK: Tensor) -> list[slice]:
    bytes_per_position = max(1, ids_NK.shape[1] * rows_NE.shape[1] * rows_NE.element_size())
    most = _GATHER_BYTES if rows_NE.device.type == "cpu" else _GATHER_BYTES_ON_GPU
    return list(row_blocks(len(ids_NK), max(1, most // bytes_per_position)))
