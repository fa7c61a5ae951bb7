"""Which tokens a sample may take: the likeliest of each position, found without a sort of the vocabulary.

Legend: B sequences, V vocabulary, K tokens that are looked at.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from semalign.config import SamplingConfig

FIRST_LOOK = 256
"""Tokens among which the nucleus is looked for first, where `top_k` sets no limit."""


class Likeliest(LogitsProcessor):
    """Temperature, then the top_k likeliest tokens, then of these the fewest that hold top_p of their probability.

    A nucleus (arXiv 1904.09751) is nearly always among a few hundred tokens: the K likeliest are picked and only these are sorted. Where
    they do not hold enough, more are taken, up to all. What is left keeps its logit, everything else gets -inf.
    """

    def __init__(self, options: SamplingConfig) -> None:
        self.options = options

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Logits (B, V) of which the tokens that are left are finite."""
        scores_BV = scores / self.options.temperature
        count = scores_BV.shape[1]
        most = min(self.options.top_k or count, count)
        if self.options.top_p >= 1 and most == count:
            return scores_BV
        looked_at = most if self.options.top_k else min(FIRST_LOOK, most)
        while True:
            values_BK, ids_BK = scores_BV.topk(looked_at)
            # Of what top_k leaves, as a second softmax would have it.
            among = values_BK if self.options.top_k else scores_BV
            shares_BK = (values_BK - among.logsumexp(1, keepdim=True)).exp()
            held_BK = shares_BK.cumsum(1)
            if looked_at == most or bool((held_BK[:, -1] >= self.options.top_p).all()):
                break
            looked_at = min(4 * looked_at, most)
        # A token is in where those before it hold less; the likeliest always is.
        is_in_BK = held_BK - shares_BK < self.options.top_p
        is_in_BK[:, 0] = True
        left_BK = values_BK.masked_fill(~is_in_BK, -torch.inf)
        return _nothing_like(scores_BV).scatter(1, ids_BK, left_BK)


def _nothing_like(scores_BV: Tensor) -> Tensor:
    return torch.full_like(scores_BV, -torch.inf)
