"""A teacher that a server holds: asked with token ids, it tells its likeliest tokens at every supervised position.

Legend: N supervised positions of a row, K likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from semalign.config import ServerConfig
from semalign.data import Sample
from semalign.errors import ModelError
from semalign.run.web import Server

DRIFT = 0.1  # nats between two answers to one row; half precision in other batches stays below
Entries = list[dict[int, tuple[float, str | None]]]
"""Of each position the log-probability and the text of some tokens by id."""


@dataclass(frozen=True)
class Told:
    """What a teacher says at the supervised positions of a row."""

    ids_NK: Tensor
    """The likeliest tokens, int64."""
    logp_NK: Tensor
    """Their log-probabilities over the teacher's whole vocabulary, float32; -inf where there is none."""
    label_logp_N: Tensor
    """That of the row's own token."""


class ServedTeacher:
    """A server's model as a teacher."""

    def __init__(
        self, options: ServerConfig, tokenizer: PreTrainedTokenizerBase, vocabulary: int, top_k: int
    ) -> None:
        """A teacher at an address.

        Args:
            vocabulary: the leading ids that both models share; others are left to what is outside the likeliest.
            top_k: K.

        Raises:
            ConfigError: the environment variable of the key is not set.
        """
        self.options, self.tokenizer, self.vocabulary, self.top_k = options, tokenizer, vocabulary, top_k
        self.server = Server.of(options)

    def tell(self, samples: Sequence[Sample]) -> list[Told]:
        """The likeliest tokens of every row as the teacher reads it, requests side by side.

        Raises:
            ModelError: the server gives no answer, or not what was asked for.
        """
        with ThreadPoolExecutor(self.options.requests) as pool:
            return list(pool.map(self._tell, [sample.for_teacher for sample in samples]))

    def self_test(self, sample: Sample) -> float:
        """Ask twice for one row and compare, before anything is stored.

        Returns:
            The largest difference between the two answers' log-probabilities of the row's tokens, nats.

        Raises:
            ModelError: the answers differ, say that tokens have other texts than here, or sum to more than 1.
        """
        sample = sample.for_teacher
        entries = self._entries(sample.input_ids)
        self._check_texts(sample, entries)
        first, again = self._told(sample, entries), self._tell(sample)
        drift = float((first.label_logp_N - again.label_logp_N).abs().max())
        if not drift <= DRIFT:
            raise ModelError(
                f"{self.server.root}: two answers to one row differ by {drift:.3g} nats (expected at most {DRIFT}); take a server that does not "
                "draw, batch by batch, other weights or precisions."
            )
        total = float(first.logp_NK.exp().sum(1).max())
        if total > 1.001:
            raise ModelError(
                f"{self.server.root}: probabilities of the likeliest tokens sum to {total:.4g} (expected at most 1); the server changes them, by a "
                "temperature or a penalty, so start it without."
            )
        return drift

    def _tell(self, sample: Sample) -> Told:
        return self._told(sample, self._entries(sample.input_ids))

    def _told(self, sample: Sample, entries: Entries) -> Told:
        places = [n for n, is_supervised in enumerate(sample.mask) if is_supervised]
        ids_NK = torch.zeros(len(places), self.top_k, dtype=torch.long)
        logp_NK = torch.full((len(places), self.top_k), -torch.inf)
        labels = torch.empty(len(places))
        for row, place in enumerate(places):
            label = sample.input_ids[place]
            if label not in entries[place]:
                raise ModelError(
                    f"{self.server.root}: expected the row's own token {label} among those of position {place}, got "
                    f"{sorted(entries[place])[:5]}; it reads other tokens than it was given."
                )
            labels[row] = entries[place][label][0]
            known = [(logp, token) for token, (logp, _) in entries[place].items() if token < self.vocabulary]
            for slot, (logp, token) in enumerate(sorted(known, reverse=True)[: self.top_k]):
                ids_NK[row, slot], logp_NK[row, slot] = token, logp
        return Told(ids_NK, logp_NK, labels)

    def _entries(self, ids: Sequence[int]) -> Entries:
        """By place in the row; the first one's is empty, since nothing predicts it."""
        try:
            found = self._of_vllm(ids) if self.options.engine == "vllm" else self._of_sglang(ids)
        except ModelError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"{self.server.root}: expected log-probabilities of a prompt's tokens from {self.options.engine}, got another answer "
                f"({type(error).__name__}: {error}); see teacher.server.engine."
            ) from None
        if len(found) != len(ids):
            raise ModelError(
                f"{self.server.root}: expected {len(ids)} positions for a row of as many tokens, got {len(found)}."
            )
        return found

    def _of_vllm(self, ids: Sequence[int]) -> Entries:
        body = {
            "model": self.server.name,
            "prompt": list(ids),
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": self.top_k,
            "add_special_tokens": False,
        }
        try:
            choice = self.server.json("/v1/completions", body)["choices"][0]
        except ModelError as error:
            if "logprobs" in str(error):
                raise ModelError(
                    f"{error} cache.top_k is {self.top_k}: start vLLM with --max-logprobs {self.top_k}."
                ) from None
            raise
        found = choice["prompt_logprobs"]
        return [
            {int(i): (e["logprob"], e.get("decoded_token")) for i, e in (one or {}).items()} for one in found
        ]

    def _of_sglang(self, ids: Sequence[int]) -> Entries:
        body = {
            "input_ids": list(ids),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": self.top_k,
            "return_text_in_logprobs": True,
        }
        told = self.server.json("/generate", body)["meta_info"]
        found: Entries = []
        for own, others in zip(told["input_token_logprobs"], told["input_top_logprobs"], strict=True):
            both = [*(others or []), own]
            found.append({int(i): (logp, text) for logp, i, text in both if logp is not None})
        return found

    def _check_texts(self, sample: Sample, entries: Entries) -> None:
        """Refuse a server whose tokenizer gives the row's tokens other texts."""
        for place, token in enumerate(sample.input_ids):
            text = entries[place].get(token, (0.0, None))[1]
            own = str(self.tokenizer.decode([token], clean_up_tokenization_spaces=False))
            # Part of a character has no text of its own.
            if text is not None and "\ufffd" not in text + own and text.strip() != own.strip():
                raise ModelError(
                    f"{self.server.root}: expected the student's tokenizer, got another: token {token} is {text!r} there and {own!r} here; serve "
                    "the teacher that model_name_or_path names."
                )
