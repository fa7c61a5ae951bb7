"""The second-order KL, 1/2 sum_J w_j (d_j - dbar)^2, at the output and on target-space logits of the paired layers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from semalign.maths.topk import fisher_loss, fisher_quadratic, log_rest
from semalign.methods.loss import TOPK, Batch, LayerLoss, LayerTerm, OutputLoss, OutputTerm, Setting
from semalign.methods.recipe import Recipe
from semalign.methods.topk import TopK


def _at_output(setting: Setting) -> OutputTerm:
    topk = TopK(setting)

    def term(output_NE: Tensor, labels_N: Tensor, batch: Batch) -> Tensor:
        logits_NJ, teacher_NJ, mask_NJ = topk.slots(output_NE, labels_N, batch)
        untouched_NJ = torch.cat([batch["student_logp"], log_rest(batch["student_logp"], batch["valid"])], 1)
        return fisher_loss(logits_NJ, teacher_NJ, untouched_NJ, mask_NJ)

    return term


def _at_layer(setting: Setting) -> LayerTerm:
    head, norm = setting.head, setting.decoder.final_norm

    def term(place: str, hidden_NE: Tensor, target_NE: Tensor, counts: Sequence[int], batch: Batch) -> Tensor:
        # Both sides go through the final norm and the head, at the cached tokens.
        ids_NJ = batch["ids"].long()
        with torch.no_grad():
            target_NJ = head.gathered(norm(target_NE), ids_NJ)
        logits_NJ = head.gathered(norm(hidden_NE), ids_NJ)
        # The metric is the output's, (p_T + p_S0) / 2; only the difference is the layer's own.
        return fisher_quadratic(
            logits_NJ - target_NJ, batch["teacher_logp"], batch["student_logp"], batch["valid"]
        )

    return term


LOSSES = (
    OutputLoss(
        "fisher",
        "1/2 sum_j w_j (d_j - mean_w d)^2 over both models' top-k tokens and the rest, w = (p_T + p_S0) / 2, d = z_S - log p_T",
        _at_output,
        reads=TOPK,
    ),
    # It reads logits off the residual stream, so it works on the stream alone.
    LayerLoss(
        "fisher",
        "the same quadratic form on the logits of h_S and target",
        _at_layer,
        reads=TOPK,
        interfaces=("block",),
    ),
)
METHODS = (Recipe("fisher", output_loss="fisher", layer_loss="fisher", layer_weight=0.1),)
