"""The next token of each sequence, without a copy, a sort, a softmax or a draw over the vocabulary.

Legend: B sequences, V vocabulary, K tokens that are looked at.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.utils import GenerateDecoderOnlyOutput

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
        return values_BK.float() / options.temperature, ids_BK
    looked_at = most if options.top_k else min(FIRST_LOOK, most)
    # Of what top_k leaves, as a second softmax would have it; without it, of all tokens.
    known_B1 = None if options.top_k else (scores_BV.float() / options.temperature).logsumexp(1, keepdim=True)
    while True:
        values_BK, ids_BK = scores_BV.topk(looked_at)
        values_BK = values_BK.float() / options.temperature
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
        return (scores_BV.float() / options.temperature).softmax(1).multinomial(1)[:, 0]
    values_BK, ids_BK = likeliest(scores_BV, options)
    return ids_BK.gather(1, values_BK.softmax(1).multinomial(1))[:, 0]


def token_by_token(
    model: Any,
    input_ids: Any,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    **state: Any,
) -> GenerateDecoderOnlyOutput:
    """transformers' own search of one token after the other, for `generate(custom_generate=...)`, with tokens from `next_tokens`.

    At every step that search copies all logits to float32 and then looks for the largest, or draws from a softmax over V: for 400
    sequences on a CPU the first takes a seventh of the time, and the second longer than the model. Processors of logits are not asked.
    """
    sampling = sampling_in(generation_config)
    is_open_B = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    pad = int(generation_config.pad_token_id or 0)
    outputs = model._prefill(input_ids, generation_config, state)
    with model._optimize_model_for_decode():
        while True:
            state = model._update_model_kwargs_for_generation(outputs, state)
            tokens_B = next_tokens(outputs.logits[:, -1], sampling).to(input_ids.device)
            del outputs  # after a prompt without a cache they are large
            input_ids = torch.cat([input_ids, tokens_B.where(is_open_B, pad)[:, None]], 1)
            is_open_B &= ~stopping_criteria(input_ids, None)
            if not is_open_B.any():
                break
            known = 1 if state["use_cache"] else None
            inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=known, **state)
            outputs = model(**inputs, return_dict=True)
    return GenerateDecoderOnlyOutput(sequences=input_ids, past_key_values=state.get("past_key_values"))


def settings_of(sampling: SamplingConfig, max_new_tokens: int, ends: list[int], pad: int) -> GenerationConfig:
    """Generation settings in transformers' words, with nothing else in them; `sampling_in` reads them back."""
    options: dict[str, Any] = {"do_sample": False}
    if not sampling.is_greedy:
        options = {"do_sample": True, "temperature": sampling.temperature}
        options |= {"top_p": sampling.top_p, "top_k": sampling.top_k or 0}
    return GenerationConfig(
        **options, max_new_tokens=max_new_tokens, eos_token_id=ends or None, pad_token_id=pad
    )


def sampling_in(settings: GenerationConfig) -> SamplingConfig:
    """What generation settings say of drawing."""
    if not settings.do_sample:
        return SamplingConfig()
    return SamplingConfig(settings.temperature, settings.top_p, settings.top_k or None)


def next_tokens(scores_BV: Tensor, options: SamplingConfig) -> Tensor:
    """The likeliest token (B,) of each row of logits of any type, or one that is drawn; of equal ones the first."""
    return scores_BV.max(1).indices if options.is_greedy else draw(scores_BV, options)
