"""Hidden-state distillation as commonly done (FitNets, TinyBERT): a learned projector per pair, thrown away afterwards.

loss = cross-entropy + mean over pairs of |W_k u / sqrt(D) - t|^2, u = h_S sqrt(E) / |h_S| the student's activation, t = (h_T - m) / s the
teacher's with the mean and the spread of all training positions taken off, W_k (D, E) trained beside the student.

Channels of u and of sqrt(D) t have size 1, whatever the size of either model's stream, so that one learning rate suits W_k. Without u, a
stream of size 50 is 50 times too large for its projector at the start, and the loss ruins the student before the projector has learnt.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from semalign.maths.losses import squared_distance_loss
from semalign.methods.loss import Batch, LayerLoss, Setting
from semalign.methods.recipe import Recipe


class Projectors(nn.ModuleDict):
    """W_k (D, E) with a bias for every place."""

    def __init__(self, setting: Setting) -> None:
        assert setting.teacher_head is not None
        wide = setting.teacher_head.weight_VD.shape[1]
        super().__init__({place: nn.Linear(setting.decoder.width, wide) for place in setting.places})

    def forward(
        self, place: str, hidden_NE: Tensor, target_ND: Tensor, counts: Sequence[int], batch: Batch
    ) -> Tensor:
        """|W u / sqrt(D) - t|^2."""
        unit_NE = functional.rms_norm(hidden_NE, hidden_NE.shape[1:])
        return squared_distance_loss(self[place](unit_NE) / math.sqrt(target_ND.shape[1]), target_ND)


LOSSES = (
    LayerLoss(
        "projected_mse",
        "|P h_S - target|^2, P learned and thrown away",
        Projectors,
        is_raw=True,
        needs_teacher_head=True,
    ),
)
METHODS = (
    Recipe(
        "hidden_mse", output_loss="cross_entropy", layer_loss="projected_mse", map="none", layer_weight=1.0
    ),
)
