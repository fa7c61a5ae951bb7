"""The student's logits over the cached tokens of each position, with the rest as one more slot."""

from __future__ import annotations

import math

from torch import Tensor

from semalign.maths.topk import followed_logit, mix_labels, rest_logit, with_rest
from semalign.methods.loss import REST, Batch, Setting


class TopK:
    """What losses on the top-k union share: N positions, J slots of the union."""

    def __init__(self, setting: Setting, temperature: float = 1.0) -> None:
        self.head, self.candidates_C, self.temperature = setting.head, setting.candidates_C, temperature
        self.others = setting.head.rows(setting.candidates_C)

    def slots(
        self, output_NE: Tensor, labels_N: Tensor, batch: Batch, *, label_share: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, the teacher's log-probabilities and the mask, (N, J + 1) each.

        Args:
            label_share: how much of the teacher's distribution is replaced by the row's own token.
        """
        ids_NJ, teacher_logp_NJ, valid_NJ = batch["ids"].long(), batch["teacher_logp"], batch["valid"]
        teacher_N, untouched_N, outside_N = batch[REST].unbind(1)
        if label_share:
            ids_NJ, teacher_logp_NJ, valid_NJ = mix_labels(
                ids_NJ, teacher_logp_NJ, valid_NJ, labels_N, share=label_share
            )
            teacher_N = teacher_N + math.log1p(-label_share)
        followed_N = followed_logit(
            self.others.logits(output_NE),
            self.candidates_C,
            ids_NJ,
            valid_NJ,
            temperature=self.temperature,
        )
        rest_N1 = rest_logit(followed_N, untouched_N, outside_N, temperature=self.temperature)
        return with_rest(
            self.head.gathered(output_NE, ids_NJ), rest_N1, teacher_logp_NJ, teacher_N[:, None], valid_NJ
        )
