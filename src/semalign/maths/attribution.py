"""Layer attribution: how much a layer's output matters for the loss on the answer tokens.

Legend: B rows (samples), T tokens, D width.
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
