"""Draws from the likeliest tokens of each position, without a sort, a softmax or a draw over the vocabulary.

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


def likeliest(scores_BV: Tensor, options: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Temperature, then the top_k likeliest tokens, then of these the fewest that hold top_p of their probability.

    A nucleus (arXiv 1904.09751) is nearly always among a few hundred tokens: the K likeliest are picked and only these are sorted. Where
    they do not hold enough, more are taken, up to all.

    Returns:
        Logits (B, K), falling, over the temperature, -inf for what is left out; and the tokens (B, K) that they belong to.
    """
    count = scores_BV.shape[1]
    most = min(options.top_k or count, count)
    if options.top_p >= 1:
        values_BK, ids_BK = scores_BV.topk(most)
        return values_BK / options.temperature, ids_BK
    looked_at = most if options.top_k else min(FIRST_LOOK, most)
    # Of what top_k leaves, as a second softmax would have it; without it, of all tokens.
    known_B1 = None if options.top_k else (scores_BV / options.temperature).logsumexp(1, keepdim=True)
    while True:
        values_BK, ids_BK = scores_BV.topk(looked_at)
        values_BK = values_BK / options.temperature
        total_B1 = values_BK.logsumexp(1, keepdim=True) if known_B1 is None else known_B1
        shares_BK = (values_BK - total_B1).exp()
        held_BK = shares_BK.cumsum(1)
        if looked_at == most or bool((held_BK[:, -1] >= options.top_p).all()):
            break
        looked_at = min(4 * looked_at, most)
    # A token is in where those before it hold less; the likeliest always is.
    is_in_BK = held_BK - shares_BK < options.top_p
    is_in_BK[:, 0] = True
    return values_BK.masked_fill(~is_in_BK, -torch.inf), ids_BK


def draw(scores_BV: Tensor, options: SamplingConfig) -> Tensor:
    """One token (B,) a row, drawn from its `likeliest`."""
    if options.top_k is None and options.top_p >= 1:
        return (scores_BV / options.temperature).softmax(1).multinomial(1)[:, 0]
    values_BK, ids_BK = likeliest(scores_BV, options)
    return ids_BK.gather(1, values_BK.softmax(1).multinomial(1))[:, 0]


class Drawn(LogitsProcessor):
    """Makes the token that `draw` draws the likeliest of all, so that a greedy search takes it.

    The search of transformers draws from a softmax over V instead: for 400 sequences on a CPU that takes longer than the model.
    """

    def __init__(self, options: SamplingConfig) -> None:
        self.options = options

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """The logits (B, V), +inf at the token that is drawn."""
        return scores.scatter_(1, draw(scores, self.options)[:, None], torch.inf)
