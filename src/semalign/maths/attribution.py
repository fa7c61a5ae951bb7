"""Layer and head attribution: how much an output matters for the loss on the answer tokens.

Legend: B rows (samples), T tokens, D width, H heads.
"""

from typing import Literal

import torch
from torch import Tensor

from semalign.errors import ModelError


def layer_scores(
    activation_BTD: Tensor,
    gradient_BTD: Tensor,
    mask_BT: Tensor | None,
    *,
    aggregate: Literal["sum", "abs"] = "abs",
) -> Tensor:
    """Attribution score of one layer for every sample (B,), float32.

    score = sum over tokens with mask True and over channels of g * a ("sum", signed: the first-order change
    of the loss when the output is removed, with the sign turned) or of |g * a| ("abs"), where a is the
    layer output and g the gradient of the loss with respect to it. The elementwise g * a is what captum's
    LayerGradientXActivation returns. `mask_BT=None` counts all tokens. Values at masked positions are
    never read, so NaN in padding does no harm.
    """
    if activation_BTD.dim() != 3 or activation_BTD.shape != gradient_BTD.shape:
        raise ModelError(
            "Activation and gradient must have the same shape (batch, tokens, width), got "
            f"{tuple(activation_BTD.shape)} and {tuple(gradient_BTD.shape)}; record both at the same layer."
        )
    if mask_BT is not None and (mask_BT.shape != activation_BTD.shape[:2] or mask_BT.dtype != torch.bool):
        raise ModelError(
            f"The mask must be bool of shape {tuple(activation_BTD.shape[:2])} (True counts), got "
            f"{mask_BT.dtype} of shape {tuple(mask_BT.shape)}."
        )
    if aggregate not in ("sum", "abs"):
        raise ModelError(f'aggregate must be "sum" or "abs", got {aggregate!r}.')
    # Products of half-precision numbers underflow and their sums stall: multiply and add in float32.
    product_BTD = activation_BTD.detach().float() * gradient_BTD.detach().float()
    token_BT = (product_BTD if aggregate == "sum" else product_BTD.abs_()).sum(-1)
    return (token_BT if mask_BT is None else token_BT.masked_fill(~mask_BT, 0.0)).sum(-1)


def head_scores(
    values_BTX: Tensor,
    gradient_BTX: Tensor,
    mask_BT: Tensor | None,
    heads: int,
    *,
    aggregate: Literal["sum", "abs"] = "abs",
) -> Tensor:
    """Attribution scores (B, H) of heads whose values lie side by side in X = H * head_dim channels.

    Each head's is `layer_scores` on its own channels. With "sum" that equals gradient x activation of the head's
    contribution W_h v_h to the stream: (W_h v_h)' g = v_h' (W_h' g), and W_h' g is the gradient with respect to v_h.
    """
    if values_BTX.shape[-1] % heads:
        raise ModelError(
            f"{values_BTX.shape[-1]} channels cannot be shared by {heads} heads; record the output projection's input."
        )
    parts = zip(values_BTX.chunk(heads, -1), gradient_BTX.chunk(heads, -1), strict=True)
    return torch.stack([layer_scores(v, g, mask_BT, aggregate=aggregate) for v, g in parts], dim=1)
