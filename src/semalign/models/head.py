"""The LM head as a value that outlives its model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from semalign.maths.head import PLAIN_HEAD, HeadOptions, gathered_logits
from semalign.models.layouts import Shape


@dataclass(frozen=True)
class Head:
    """The LM head: logits = softcap(scale * (W q + bias)) for the post-norm state q."""

    weight_VD: Tensor
    options: HeadOptions = PLAIN_HEAD

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits in float32 (N, V); the product runs in the weight's type, as in the model itself."""
        bias, cap = self.options.bias_V, self.options.softcap
        bias = None if bias is None else bias.to(self.weight_VD.dtype)
        logits_NV = nn.functional.linear(hidden_ND.to(self.weight_VD.dtype), self.weight_VD, bias).float()
        logits_NV = logits_NV * self.options.scale
        return logits_NV if cap is None else cap * torch.tanh(logits_NV / cap)

    def gathered(self, hidden_ND: Tensor, ids_NK: Tensor) -> Tensor:
        """Logits of chosen tokens only (N, K), float32; the gradient goes to the hidden states."""
        o = self.options
        return gathered_logits(
            hidden_ND.float(), self.weight_VD, ids_NK, bias_V=o.bias_V, scale=o.scale, softcap=o.softcap
        )

    def rows(self, ids_K: Tensor) -> Head:
        """The head of some tokens alone, in float32."""
        bias = self.options.bias_V
        options = replace(self.options, bias_V=None if bias is None else bias[ids_K].float())
        return Head(self.weight_VD[ids_K].float(), options)

    def to(self, device: torch.device | str) -> Head:
        """The same head on a device."""
        bias = self.options.bias_V
        options = replace(self.options, bias_V=None if bias is None else bias.to(device))
        return Head(self.weight_VD.to(device), options)

    def detached(self) -> Head:
        """A copy that outlives its model."""
        bias = self.options.bias_V
        return Head(
            self.weight_VD.clone(), replace(self.options, bias_V=None if bias is None else bias.clone())
        )


def head_options(shape: Shape, bias_V: Tensor | None) -> HeadOptions:
    """What the architecture does to its logits after the product with the head's weight."""
    return HeadOptions(bias_V, shape.logit_scale, shape.logit_softcap)
