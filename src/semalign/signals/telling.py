"""A teacher that only tells what it thinks of the next token: loaded here, held by a server, or of which files are left; in its own tokens
or carried to the student's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from semalign.config import TransferConfig
from semalign.data import Sample
from semalign.data.batches import batch_inputs, labels_of
from semalign.data.inputs import Inputs
from semalign.models.decoder import Decoder
from semalign.signals.carried import Carrier
from semalign.signals.parquet import StoredTeacher
from semalign.signals.passes import topk
from semalign.signals.served import ServedTeacher, Told


class Telling(Protocol):
    """Who tells the likeliest tokens at the supervised positions of rows."""

    def tell(self, samples: Sequence[Sample]) -> list[Told]:
        """Of every row."""
        ...

    def self_test(self, sample: Sample) -> float:
        """Refuse a teacher that does not tell what it should; the difference between two answers to one row, nats."""
        ...


class LoadedTeacher:
    """A model in memory."""

    def __init__(self, decoder: Decoder, top_k: int) -> None:
        self.decoder, self.top_k = decoder, top_k

    @torch.no_grad()
    def tell(self, samples: Sequence[Sample]) -> list[Told]:
        """See `Telling`."""
        rows = [sample.for_teacher for sample in samples]
        ids_BT, states_BT = batch_inputs(self.decoder, rows)
        with self.decoder.span(0, self.decoder.num_layers, norm=True):
            output_XD = self.decoder.forward(ids_BT)[states_BT]
        head = self.decoder.head()
        ids_XK, values_XK, lse_X1 = topk(head, output_XD, self.top_k)
        labels_X1 = torch.cat([labels_of(row) for row in rows]).to(output_XD.device)[:, None]
        label_logp_X = (head.gathered(output_XD, labels_X1) - lse_X1)[:, 0]
        counts = [row.supervised for row in rows]
        parts = (part.cpu().split(counts) for part in (ids_XK, values_XK - lse_X1, label_logp_X))
        return [Told(*one) for one in zip(*parts, strict=True)]

    def self_test(self, sample: Sample) -> float:
        """See `Telling`; a model in memory was tested when it was loaded."""
        return 0.0


class CarriedTeacher:
    """Another one, whose tokens are not the student's."""

    def __init__(self, teacher: Telling, carrier: Carrier) -> None:
        self.teacher, self.carrier = teacher, carrier

    def tell(self, samples: Sequence[Sample]) -> list[Told]:
        """See `Telling`."""
        told = self.teacher.tell(samples)
        return [self.carrier.carry(one, sample) for one, sample in zip(told, samples, strict=True)]

    def self_test(self, sample: Sample) -> float:
        """See `Telling`."""
        return self.teacher.self_test(sample)


def carried_by(teacher: Telling) -> dict[str, float] | None:
    """How much of what it told a teacher could carry to the student's tokens; None where they are its own."""
    return teacher.carrier.counted.as_json() if isinstance(teacher, CarriedTeacher) else None


def teller_of(config: TransferConfig, inputs: Inputs) -> Telling:
    """The run's teacher, loaded where no server holds it."""
    k, lexicons = config.cache.top_k, inputs.lexicons
    tokenizer, known = inputs.tokenizer, inputs.vocabulary
    if lexicons:
        tokenizer, known = lexicons[1].tokenizer, inputs.teacher.vocabulary
    teacher: Telling
    if config.teacher.server.url:
        teacher = ServedTeacher(config.teacher.server, tokenizer, known, k)
    elif config.teacher.signals:
        teacher = StoredTeacher(config.teacher.signals, [*inputs.train, *inputs.heldout], known, k)
    else:
        teacher = LoadedTeacher(inputs.open_teacher(), k)
    return CarriedTeacher(teacher, Carrier(lexicons[1], lexicons[0], k)) if lexicons else teacher
