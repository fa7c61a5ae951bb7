"""The recipe of the paper's second arXiv version (May 2026), known from its abstract alone.

The frontier schedule of `acl`; the layer loss is 1 - <K_S, K_T> with K the double-centred Gram matrix over the tokens of
a sequence, of what the layer adds to the stream and of the aligned teacher's addition; output KL to the teacher. As for `acl`,
`pairing.selection: all` gives every student layer its turn.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from semalign.maths.losses import geometry_loss
from semalign.methods.loss import Batch, LayerLoss, LayerTerm, Setting
from semalign.methods.recipe import Recipe


def _geometry(setting: Setting) -> LayerTerm:
    def term(place: str, hidden_NE: Tensor, target_NE: Tensor, counts: Sequence[int], batch: Batch) -> Tensor:
        rows = zip(hidden_NE.split(list(counts)), target_NE.split(list(counts)), strict=True)
        losses = torch.stack([geometry_loss(own_TE, target_TE) for own_TE, target_TE in rows])
        # A row counts by its positions, as in every other loss: however a step is split, its gradient is the same.
        weights = losses.new_tensor(counts)
        return (losses * weights).sum() / weights.sum()

    return term


LOSSES = (
    LayerLoss(
        "geometry",
        "1 - <K(h_S), K(target)>, K the double-centred Gram matrix over a sequence's tokens, a mean weighted by tokens",
        _geometry,
    ),
)
METHODS = (
    Recipe(
        "v2",
        output_loss="topk_kl",
        layer_loss="geometry",
        interface="delta",
        layer_weight=1.0,
        schedule="frontier",
    ),
)
