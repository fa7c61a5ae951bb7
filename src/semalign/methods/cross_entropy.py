"""Controls without a teacher: fine-tuning on the rows' own answers, -log p(label).

The same layers in full, LoRA on them, every layer in full, and every layer with LoRA that starts from the weights'
principal components (PiSSA, arXiv 2404.02948).
"""

from torch import Tensor

from semalign.maths.full_vocabulary import cross_entropy_loss
from semalign.methods.loss import Batch, OutputLoss, OutputTerm, Setting
from semalign.methods.recipe import Recipe


def _cross_entropy(setting: Setting) -> OutputTerm:
    head, smoothing = setting.head, setting.recipe.label_smoothing

    def term(output_NE: Tensor, labels_N: Tensor, batch: Batch) -> Tensor:
        return cross_entropy_loss(
            output_NE, head.weight_VD, labels_N, label_smoothing=smoothing, options=head.options
        )

    return term


LOSSES = (
    OutputLoss(
        "cross_entropy",
        "-log p_S(label)",
        _cross_entropy,
        options=("label_smoothing",),
        is_full_vocabulary=True,
    ),
)
METHODS = (
    Recipe("cross_entropy", output_loss="cross_entropy"),
    Recipe("cross_entropy_lora", output_loss="cross_entropy", lora_r=16),
    Recipe("cross_entropy_all", output_loss="cross_entropy", trained="all"),
    Recipe("pissa", output_loss="cross_entropy", trained="all", lora_r=16, start="pissa"),
)
