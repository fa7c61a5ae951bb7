"""Answers of a teacher that a server holds."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import GenerationConfig, PreTrainedTokenizerBase

from semalign.config import ModelConfig, SamplingConfig
from semalign.data import encode_prompt
from semalign.evaluation.decoding import GREEDY, Prompt, ends_in, texts_of
from semalign.evaluation.sampling import settings_of
from semalign.evaluation.server import ask
from semalign.models.finding import opened
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
    where, extra = opened(config)
    try:
        of_model = GenerationConfig.from_pretrained(where, **extra)
    except OSError:
        of_model = None
    settings = settings_of(sampling, max_new_tokens, ends_in(of_model, tokenizer), 0)
    every = [row for row in rows for _ in range(samples)]
    server = Server.of(config.server)
    return texts_of(
        ask(server, every, settings, at_once=config.server.requests, seed=seed), settings, tokenizer
    )
