"""Hidden-state distillation as commonly done (FitNets, TinyBERT): a learned projector per pair, thrown away afterwards.

loss = cross-entropy + mean over pairs of |W_k h_S - t|^2, t = (h_T - m) / s the teacher's activation with the mean and the spread
of all training positions taken off, W_k trained beside the student.
"""

from collections.abc import Sequence

from torch import Tensor, nn

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
        """|W h_S - t|^2."""
        return squared_distance_loss(self[place](hidden_NE), target_ND)


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
