"""SemAlign's default, the teacher's distribution at the output, and the same with aligned targets at the paired layers.

`aligned_output`: loss = KL(p_T || p_S) on the union of both models' top-k tokens and the rest as one token. `aligned` adds 0.1 times
the mean over pairs of 1 - cos(h_S, M h_T + b), with M and b fitted by ridge regression on the untouched pair. That term has changed
no figure of any student so far (docs/results/embedded-pair.md, few-rows.md), so the default does without it and its cache.
"""

from torch import Tensor

from semalign.maths.topk import topk_kl_loss
from semalign.methods.loss import TOPK, Batch, OutputLoss, OutputTerm, Setting
from semalign.methods.recipe import Recipe
from semalign.methods.topk import TopK


def _topk_kl(setting: Setting) -> OutputTerm:
    recipe = setting.recipe
    topk = TopK(setting, recipe.temperature)

    def term(output_NE: Tensor, labels_N: Tensor, batch: Batch) -> Tensor:
        slots = topk.slots(output_NE, labels_N, batch, label_share=recipe.label_weight)
        return topk_kl_loss(*slots, temperature=recipe.temperature)

    return term


LOSSES = (
    OutputLoss(
        "topk_kl",
        "KL(p_T || p_S) over both models' top-k tokens and the rest as one token",
        _topk_kl,
        reads=TOPK,
        options=("temperature", "label_weight"),
    ),
)
METHODS = (
    Recipe("aligned", output_loss="topk_kl", layer_loss="cosine", layer_weight=0.1),
    Recipe("aligned_output", output_loss="topk_kl"),
)
