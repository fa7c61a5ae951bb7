"""Answers that the student proposes and the teacher corrects (speculative knowledge distillation, arXiv 2410.11325).

The student proposes BLOCK tokens; the teacher reads them in one pass. The first that is not among its K likeliest tokens there gives way
to one that the teacher draws, and the student goes on from it. So rows go where the student goes, as long as the teacher would follow.
Both keep their caches: a block costs one pass of the teacher over BLOCK tokens, whatever is replaced.

Legend: B answers, N tokens of a block, V shared vocabulary, H heads, T cached tokens, D channels of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from semalign.config import SamplingConfig
from semalign.errors import ModelError
from semalign.evaluation.decoding import (
    batches_of,
    drawn_from,
    ends_of,
    in_order,
    learned_positions,
    padded_on_the_left,
    places_left,
    until_end,
)
from semalign.evaluation.sampling import draw
from semalign.models.decoder import Decoder

BLOCK = 8


def corrected_answers(
    student: Decoder,
    teacher: Decoder,
    prompts: Sequence[tuple[list[int], list[int]]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocabulary: int,
    accepted: int,
    max_new_tokens: int,
    batch_size: int,
    samples: int,
    sampling: SamplingConfig,
    seed: int,
) -> list[tuple[str, bool]]:
    """As `semalign.evaluation.decoding.answers`: ``samples`` answers a prompt, each with whether it came to its end.

    Args:
        prompts: token ids of each prompt as the student and as the teacher reads it.
        vocabulary: the leading ids that both models share; no other token is proposed or drawn.
        accepted: K. With 1 and greedy sampling the answers are the teacher's own; with all of the vocabulary the student's.

    Raises:
        ModelError: a model keeps something else than keys and values of every token.
        DataError: a prompt leaves an answer no position.
    """
    own, theirs = (_Side(model, vocabulary) for model in (student, teacher))
    ends = {end for model in (student, teacher) for end in ends_of(model.model, tokenizer)}
    longest = [max(len(ids) for ids in both) for both in prompts]
    limits = [limit for model in (student, teacher) if (limit := model.shape.positions) is not None]
    batches = batches_of(longest, max(1, batch_size // samples), max_new_tokens, min(limits, default=None))

    def write(batch: list[int]) -> list[tuple[str, bool]]:
        most = max_new_tokens
        for number, side in enumerate((own, theirs)):
            rows = [prompts[n][number] for n in batch for _ in range(samples)]
            most = places_left(side.decoder.model, rows, most)
            side.read(rows)
        written = _write(own, theirs, accepted, most, sampling, ends)
        return [until_end(ids, ends, tokenizer) for ids in written]

    with drawn_from(seed, student.device), torch.inference_mode():
        return in_order(batches, samples, write)


def _write(
    student: _Side, teacher: _Side, accepted: int, most: int, sampling: SamplingConfig, ends: set[int]
) -> list[list[int]]:
    """Tokens of every answer, up to its end token or `most` of them."""
    written: list[list[int]] = [[] for _ in range(len(student.last_B))]
    going_on = list(range(len(written)))
    while going_on:
        size = min(BLOCK, most - min(len(written[n]) for n in going_on))
        start_B = student.last_B
        proposed = []
        for _ in range(size):
            logits_BV = student.run(student.last_B[:, None])[:, -1]
            student.last_B = _draw(logits_BV, sampling)
            proposed.append(student.last_B)
        proposed_BN = torch.stack(proposed, 1)
        logits_BNV = teacher.run(torch.cat([start_B[:, None], proposed_BN[:, :-1]], 1))
        # Ids and not values are compared: of equally likely tokens topk takes as many as it was asked for.
        likeliest_BNK = logits_BNV.topk(min(accepted, logits_BNV.shape[2])).indices
        stays_BN = (likeliest_BNK == proposed_BN.to(likeliest_BNK.device)[:, :, None]).any(2)
        taken: list[int] = []
        for place, number in enumerate(going_on):
            stays = stays_BN[place].tolist()
            new = proposed_BN[place].tolist()
            at = stays.index(False) if False in stays else size
            if at < size:
                new = [*new[:at], int(_draw(logits_BNV[place, at : at + 1], sampling))]
            ended = next((n for n, token in enumerate(new) if token in ends), None)
            new = new[: size if ended is None else ended + 1][: most - len(written[number])]
            written[number] += new
            taken.append(len(new))
        places = [
            place
            for place, number in enumerate(going_on)
            if ends.isdisjoint(written[number]) and len(written[number]) < most
        ]
        going_on = [going_on[place] for place in places]
        last = [written[number][-1] for number in going_on]
        for side in (student, teacher):
            side.keep(places, [size - taken[place] for place in places], last)
    return written


def _draw(logits_BV: Tensor, sampling: SamplingConfig) -> Tensor:
    """A token of each row (B,)."""
    if sampling.is_greedy:
        return logits_BV.argmax(1)
    return draw(logits_BV.float(), sampling)


@dataclass
class _Side:
    """A model with its cache of all but the last token of every answer in the making."""

    decoder: Decoder
    vocabulary: int

    def read(self, rows: Sequence[Sequence[int]]) -> None:
        """Start from prompts, padded on the left."""
        ids_BT, whole_BT = (part.to(self.decoder.device) for part in padded_on_the_left(rows, 0))
        self.cache, self.mask_BT, self.last_B = DynamicCache(), whole_BT[:, :0], ids_BT[:, -1]
        if ids_BT.shape[1] == 1:
            return
        self.run(ids_BT[:, :-1], whole_BT[:, :-1])
        if len(self._kept) < self.decoder.num_layers:
            raise ModelError(
                f"{self.decoder.name}: expected a cache of all tokens' keys and values in each of its {self.decoder.num_layers} layers, "
                f"got {len(self._kept)} such layers; set data.completions to teacher or student."
            )

    def run(self, ids_BN: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        """Logits (B, N, V) after more tokens, which the cache holds from then on."""
        ids_BN = ids_BN.to(self.decoder.device)
        more_BN = torch.ones_like(ids_BN) if mask_BN is None else mask_BN
        self.mask_BT = torch.cat([self.mask_BT, more_BN], 1)
        # What a block has beyond the end of the longest answers is dropped, wherever it is read.
        limit = learned_positions(self.decoder.model)
        places_BT = (self.mask_BT.cumsum(1) - 1).clamp(0, None if limit is None else limit - 1)
        options: dict[str, Any] = {"position_ids": places_BT[:, -ids_BN.shape[1] :]}
        if mask_BN is not None:
            options["logits_to_keep"] = 1
        model: Any = self.decoder.model
        known = inspect.signature(model.forward).parameters
        output = model(
            input_ids=ids_BN,
            attention_mask=self.mask_BT,
            past_key_values=self.cache,
            use_cache=True,
            **{name: value for name, value in options.items() if name in known},
        )
        return output.logits[..., : self.vocabulary]

    def keep(self, places: Sequence[int], rejected: Sequence[int], last: Sequence[int]) -> None:
        """Go on with some of the answers, each without its last `rejected` cached tokens and with another last token.

        What is left of each moves to the right end, so that the layout is again that of a batch padded on the left.
        """
        device = self.mask_BT.device
        self.last_B = torch.tensor(last, dtype=torch.long, device=device)
        if not places:
            return
        rows_B = torch.tensor(places, device=device)
        mask_BT, rejected_B = self.mask_BT[rows_B], torch.tensor(rejected, device=device)
        length_B = mask_BT.sum(1) - rejected_B
        width = int(length_B.max())
        slots_T = torch.arange(width, device=device)
        source_BT = mask_BT.shape[1] - rejected_B[:, None] - width + slots_T
        self.mask_BT = (slots_T >= width - length_B[:, None]).long()
        source_BT = source_BT.clamp(min=0)
        for layer in self._kept:
            layer.keys = _moved(layer.keys, rows_B, source_BT)
            layer.values = _moved(layer.values, rows_B, source_BT)

    @property
    def _kept(self) -> list[Any]:
        """Keys and values of all tokens, a layer each; a model with other states has fewer of these than layers."""
        return [layer for layer in self.cache.layers if type(layer) is DynamicLayer]


def _moved(part_BHTD: Tensor, rows_B: Tensor, source_BT: Tensor) -> Tensor:
    chosen = part_BHTD[rows_B]
    index = source_BT[:, None, :, None].expand(-1, chosen.shape[1], -1, chosen.shape[3])
    return chosen.gather(2, index)
