"""What the models say at single tokens of a few held-out rows, at the end and after every layer (logit lens)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from semalign.data import Sample
from semalign.data.batches import labels_of
from semalign.data.inputs import Inputs
from semalign.evaluation.heldout import heldout_batches
from semalign.models.capture import Point
from semalign.models.decoder import Decoder
from semalign.models.head import Head
from semalign.signals.prepared import Prepared
from semalign.signals.request import position_name

ROWS, TOKENS = 3, 48  # shown


def shown_rows(inputs: Inputs) -> list[int]:
    """Numbers of a few held-out rows, spread evenly, since rows of a task often stand together."""
    count = len(inputs.heldout)
    return sorted({n * count // ROWS for n in range(ROWS)}) if count else []


@torch.no_grad()
def token_view(decoder: Decoder, prepared: Prepared, name: str) -> list[dict[str, Any]]:
    """Of every shown row's first supervised tokens: the student's likeliest token, KL(teacher || student) in nats, and
    `lens`, per layer 1..L the token that final norm and head would say after it.
    """
    inputs, head = prepared.inputs, decoder.head()
    points = [Point(n, "block") for n in range(1, decoder.num_layers + 1)]
    view = []
    for _, _, figures, found in heldout_batches(
        decoder, prepared, f"tokens {name}", points, shown_rows(inputs)
    ):
        states = [found[p][:TOKENS].to(decoder.device, decoder.model.dtype) for p in points]
        lens = [pieces(inputs, first_tokens(head, decoder.final_norm(x))[0]) for x in states]
        # After the last layer the lens is the model itself.
        view.append(
            {"top": lens[-1], "kl": [round(x, 4) for x in figures["kl"][:TOKENS].tolist()], "lens": lens}
        )
    return view


@torch.no_grad()
def teacher_view(prepared: Prepared) -> list[dict[str, Any]]:
    """The same rows: prompt, expected tokens, and the teacher's likeliest token with its probability."""
    inputs, store = prepared.inputs, prepared.stores.heldout
    view = []
    for number in shown_rows(inputs):
        sample, stored = inputs.heldout[number], store.read(number)
        if (states := stored.get(position_name("teacher_output"))) is not None:
            top, p = first_tokens(prepared.teacher_head, states[:TOKENS])
        else:
            top, p = _first_told(stored)
        view.append(
            {
                "id": sample.id,
                "prompt": _prompt(sample, inputs),
                "expected": pieces(inputs, labels_of(sample)[:TOKENS].tolist()),
                "top": pieces(inputs, top),
                "p": p,
            }
        )
    return view


def _first_told(record: Mapping[str, Tensor]) -> tuple[list[int], list[float]]:
    """As `first_tokens`, of what a served teacher tells."""
    ids, logp, valid = (record[position_name(n)][:TOKENS] for n in ("ids", "teacher_logp", "valid"))
    best, at = logp.masked_fill(~valid, -torch.inf).max(1, keepdim=True)
    return ids.gather(1, at)[:, 0].tolist(), [round(x, 4) for x in best[:, 0].exp().tolist()]


def first_tokens(head: Head, hidden_NE: Tensor) -> tuple[list[int], list[float]]:
    """Ids of the likeliest tokens and their probabilities (N)."""
    p, ids = head.logits(hidden_NE).softmax(-1).max(-1)
    return ids.tolist(), [round(x, 4) for x in p.tolist()]


def pieces(inputs: Inputs, ids: Sequence[int]) -> list[str]:
    """Each token as text by itself."""
    return [str(inputs.tokenizer.decode([i], clean_up_tokenization_spaces=False)) for i in ids]


def _prompt(sample: Sample, inputs: Inputs) -> str:
    """The text before the first supervised token."""
    return str(inputs.tokenizer.decode(sample.input_ids[: sample.mask.index(True)], skip_special_tokens=True))
