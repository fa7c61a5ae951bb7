"""Other divergences at the output than the KL from the teacher, over the same cached tokens and the rest.

reverse is KL(p_S || p_T), which follows the teacher's mode; generalised_jsd the Jensen-Shannon divergence with a weight (arXiv
2306.13649), skewed the KL to a mixture of both (arXiv 2402.03898). bridge aims between both models, at p_T p_S^b, and b falls from
`beta` to 0 while the student trains (arXiv 2601.07155).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from semalign.maths.topk import Divergence, topk_divergence
from semalign.methods.loss import TOPK, Batch, OutputLoss, OutputTerm, Setting
from semalign.methods.recipe import Recipe
from semalign.methods.topk import TopK


def _divergence(setting: Setting, kind: Divergence) -> OutputTerm:
    recipe = setting.recipe
    topk = TopK(setting, recipe.temperature)

    def term(output_NE: Tensor, labels_N: Tensor, batch: Batch) -> Tensor:
        slots = topk.slots(output_NE, labels_N, batch, label_share=recipe.label_weight)
        beta = recipe.beta * (1.0 - setting.progress()) if kind == "bridge" else recipe.beta
        return topk_divergence(*slots, kind, beta=beta, temperature=recipe.temperature)

    return term


def _loss(kind: Divergence, formula: str, *options: str, constant_at: tuple[float, ...] = ()) -> OutputLoss:
    return OutputLoss(
        f"topk_{kind}",
        f"{formula} over both models' top-k tokens and the rest as one token",
        partial(_divergence, kind=kind),
        reads=TOPK,
        options=("temperature", "label_weight", *options),
        constant_at=constant_at,
    )


LOSSES = (
    _loss("reverse", "KL(p_S || p_T)"),
    _loss(
        "jsd",
        "beta KL(p_T || m) + (1 - beta) KL(p_S || m), m = beta p_T + (1 - beta) p_S,",
        "beta",
        constant_at=(0.0, 1.0),
    ),
    _loss("skewed", "KL(p_T || beta p_T + (1 - beta) p_S)", "beta", constant_at=(1.0,)),
    _loss("bridge", "KL(r || p_S), r proportional to p_T p_S^b, b from beta to 0,", "beta"),
)
METHODS = (
    Recipe("reverse", output_loss="topk_reverse"),
    Recipe("generalised_jsd", output_loss="topk_jsd"),
    Recipe("skewed", output_loss="topk_skewed", beta=0.1),
    Recipe("bridge", output_loss="topk_bridge", beta=0.8),
)
