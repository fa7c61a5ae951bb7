"""What is stored is finite, or one sentence says whether the model or the stored type is to blame."""

from __future__ import annotations

import torch
from torch import Tensor

from semalign.errors import ModelError

OF_MODEL = "load the model in float32 or bfloat16, or drop the sample"
"""What to do where a model computed it."""


def check_finite(what: str, stored: Tensor, computed: Tensor, advice: str = OF_MODEL) -> None:
    """Refuse numbers of which some are stored as NaN or infinity.

    Args:
        what: whose and which they are, as the sentence begins.
        stored: the numbers in the type in which they are stored.
        computed: as they were before; looked at only where a stored one is not finite.
        advice: what to do where they were not finite then.

    Raises:
        ModelError: they are not finite; it names cache.dtype where only its type is too small for them.
    """
    if torch.isfinite(stored).all():
        return
    if torch.isfinite(computed).all():
        kind = str(stored.dtype).removeprefix("torch.")
        raise ModelError(
            f"{what} holds values up to {float(computed.abs().max()):.3g}, too large for cache.dtype: {kind}, whose largest is "
            f"{torch.finfo(stored.dtype).max:.3g}; set cache.dtype: bfloat16 or float32."
        )
    raise ModelError(f"{what} holds NaN or infinite values; {advice}.")
