"""A frozen linear map with a trained low-rank term (LoRA, arXiv 2106.09685) as one operation.

As modules of their own the two small products cast and copy the tokens' activations several times forth and back,
which costs a CPU as much as the large product itself.

Legend: N tokens, E inputs, F outputs, R rank.
"""

from typing import Any

import torch
from torch import Tensor, nn


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NE: Tensor,
        weight_FE: Tensor,
        bias_F: Tensor | None,
        a_RE: Tensor,
        b_FR: Tensor,
        scale: float,
        dtype: torch.dtype,
    ) -> Tensor:
        x, a, b = x_NE.to(dtype), a_RE.to(dtype), (scale * b_FR).to(dtype)
        low_NR = x @ a.T
        y_NF = nn.functional.linear(x, weight_FE.to(dtype), None if bias_F is None else bias_F.to(dtype))
        y_NF.addmm_(low_NR, b.T)
        ctx.save_for_backward(x, low_NR, weight_FE, a, b)
        ctx.scale, ctx.types = scale, (x_NE.dtype, a_RE.dtype, b_FR.dtype)
        return y_NF

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, low_NR, weight_FE, a, b = ctx.saved_tensors
        of_x, of_a, of_b = ctx.types
        g_NF = gradients[0].to(x.dtype)
        g_low_NR = g_NF @ b
        g_x = g_a = g_b = None
        if ctx.needs_input_grad[0]:
            g_x = (g_NF @ weight_FE.to(x.dtype)).addmm_(g_low_NR, a).to(of_x)
        if ctx.needs_input_grad[3]:
            g_a = (g_low_NR.T @ x).to(of_a)
        if ctx.needs_input_grad[4]:
            g_b = ctx.scale * (g_NF.T @ low_NR).to(of_b)
        return g_x, None, None, g_a, g_b, None, None


def low_rank_linear(
    x: Tensor,
    weight_FE: Tensor,
    bias_F: Tensor | None,
    a_RE: Tensor,
    b_FR: Tensor,
    *,
    scale: float,
    dtype: torch.dtype,
) -> Tensor:
    """x W' + bias + scale (x A') B', with gradients to x, A and B only.

    Args:
        x: activations (..., E) of any type.
        dtype: in which everything is multiplied, and the type of the result (..., F); gradients have their tensors' own.
    """
    flat = x.reshape(-1, x.shape[-1])
    y_NF = _LowRankLinear.apply(flat, weight_FE, bias_F, a_RE, b_FR, scale, dtype)
    return y_NF.view(*x.shape[:-1], -1)
