"""Answers of a teacher that a server holds."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import GenerationConfig, PreTrainedTokenizerBase

from semalign.config import ModelConfig, SamplingConfig
from semalign.data import encode_prompt
from semalign.evaluation.decoding import GREEDY, Prompt, until_end
from semalign.evaluation.server import ask
from semalign.models.loading import locate
from semalign.run.web import Server


def asked_answers(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    *,
    samples: int = 1,
    sampling: SamplingConfig = GREEDY,
    seed: int = 0,
) -> list[tuple[str, bool]]:
    """As `semalign.evaluation.decoding.answers`, of the model that `config.server` names.

    Raises:
        ModelError: the server refuses, or gives no answer after all retries.
    """
    rows = [encode_prompt(p, tokenizer, f"prompt {n}") for n, p in enumerate(prompts, 1)]
    ends = _ends(config, tokenizer)
    drawn = (
        {}
        if sampling.is_greedy
        else {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or 0}
    )
    settings = GenerationConfig(
        do_sample=not sampling.is_greedy,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=0,
        **drawn,
    )
    every = [row for row in rows for _ in range(samples)]
    server = Server.of(config.server)
    found = ask(server, every, settings, at_once=config.server.requests, seed=seed)
    told = [(until_end(ids, set(ends), tokenizer), was_stopped) for ids, was_stopped in found]
    return [(text, has_ended or was_stopped) for (text, has_ended), was_stopped in told]


def _ends(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's end token and those of the model's own generation settings, where its folder has any."""
    where, extra = locate(config)
    try:
        of_model = GenerationConfig.from_pretrained(where, **extra).eos_token_id
    except OSError:
        of_model = None
    every = [tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])]
    return sorted({int(n) for n in every if n is not None})
