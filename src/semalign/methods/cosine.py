"""The paper's recipe, arXiv 2510.24208 version 1, to the letter: both cosine terms, unweighted.

loss = 1 - mean cos(h_S, S_S S_T' h_T / |h_T|) + 1 - mean cos(logits, onehot), at the output of the MLP.
"""

from collections.abc import Sequence

from torch import Tensor

from semalign.errors import SemAlignError
from semalign.maths.bases import gram
from semalign.maths.losses import cosine_loss, output_cosine_loss
from semalign.methods.loss import Batch, LayerLoss, LayerTerm, OutputLoss, OutputTerm, Setting
from semalign.methods.recipe import Recipe


def _at_output(setting: Setting) -> OutputTerm:
    head, smoothing = setting.head, setting.recipe.label_smoothing
    if head.options.softcap is not None or head.options.bias_V is not None:
        raise SemAlignError(
            "recipe.output_loss: cosine needs a head without bias and without logit soft-cap, which this student has; "
            "use topk_kl or fisher."
        )
    gram_EE = gram(head.weight_VD)

    def term(output_NE: Tensor, labels_N: Tensor, batch: Batch) -> Tensor:
        return output_cosine_loss(output_NE, head.weight_VD, gram_EE, labels_N, label_smoothing=smoothing)

    return term


def _at_layer(setting: Setting) -> LayerTerm:
    def term(place: str, hidden_NE: Tensor, target_NE: Tensor, counts: Sequence[int], batch: Batch) -> Tensor:
        return cosine_loss(hidden_NE, target_NE)

    return term


LOSSES = (
    OutputLoss("cosine", "1 - cos(logits, onehot(label))", _at_output, options=("label_smoothing",)),
    LayerLoss("cosine", "1 - cos(h_S, target)", _at_layer),
)
METHODS = (
    Recipe(
        "cosine",
        output_loss="cosine",
        layer_loss="cosine",
        map="semantic",
        interface="mlp",
        layer_weight=1.0,
    ),
)
