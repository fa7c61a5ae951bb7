"""The student's logits over the cached tokens of each position, with the rest as one more slot."""

from __future__ import annotations

from torch import Tensor

from semalign.maths.topk import rest_logit, with_rest
from semalign.methods.loss import Setting


class TopK:
    """What losses on the top-k union share: N positions, J slots of the union."""

    def __init__(self, setting: Setting) -> None:
        self.head, self.candidates_C = setting.head, setting.candidates_C
        self.others = setting.head.rows(setting.candidates_C)

    def with_rest(
        self, output_NE: Tensor, ids_NJ: Tensor, teacher_logp_NJ: Tensor, valid_NJ: Tensor, outside_N: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, the teacher's log-probabilities and the mask, (N, J + 1) each."""
        others_NC = self.others.logits(output_NE)
        rest_N1 = rest_logit(others_NC, self.candidates_C, ids_NJ, valid_NJ, outside_N)
        return with_rest(self.head.gathered(output_NE, ids_NJ), rest_N1, teacher_logp_NJ, valid_NJ)
