"""Controls with a teacher at the output alone, over the whole vocabulary (Hinton et al. 2015; Agarwal et al. 2024).

kl is KL(p_T || p_S), jsd the Jensen-Shannon divergence; kl_all trains every layer.
"""

from functools import partial
from typing import Literal

from torch import Tensor

from semalign.maths.full_vocabulary import full_kl_loss
from semalign.methods.loss import TEACHER_OUTPUT, Batch, OutputLoss, OutputTerm, Setting
from semalign.methods.recipe import Recipe

Kind = Literal["forward", "jsd"]


def _divergence(setting: Setting, kind: Kind) -> OutputTerm:
    head, teacher, temperature = setting.head, setting.teacher_head, setting.recipe.temperature
    assert teacher is not None

    def term(output_NE: Tensor, labels_N: Tensor, batch: Batch) -> Tensor:
        return full_kl_loss(
            output_NE,
            head.weight_VD,
            batch["teacher_output"],
            teacher.weight_VD,
            kind=kind,
            temperature=temperature,
            student=head.options,
            teacher=teacher.options,
        )

    return term


def _loss(name: str, kind: Kind, formula: str) -> OutputLoss:
    return OutputLoss(
        name,
        formula,
        partial(_divergence, kind=kind),
        reads=TEACHER_OUTPUT,
        options=("temperature",),
        needs_teacher_head=True,
        is_full_vocabulary=True,
    )


LOSSES = (
    _loss("kl", "forward", "KL(p_T || p_S) over the whole vocabulary"),
    _loss("jsd", "jsd", "JSD(p_T, p_S) over the whole vocabulary"),
)
METHODS = (
    Recipe("kl", output_loss="kl"),
    Recipe("kl_all", output_loss="kl", trained="all"),
    Recipe("jsd", output_loss="jsd"),
)
