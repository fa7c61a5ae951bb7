"""A model over the held-out rows, beside what the cache step stored of the teacher."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from semalign.cache import Record
from semalign.capture import Point, capture
from semalign.config import TransferConfig
from semalign.data import length_batches
from semalign.folder import RunFolder
from semalign.maths.full_vocabulary import closeness
from semalign.models import Decoder
from semalign.progress import bar
from semalign.signals import batch_inputs, labels_of
from semalign.steps.inputs import Inputs
from semalign.steps.pair import read_plan
from semalign.steps.stores import Stores
from semalign.steps.train import read_teacher_head


@torch.no_grad()
def heldout_batches(
    decoder: Decoder,
    config: TransferConfig,
    run: RunFolder,
    inputs: Inputs,
    name: str,
    points: Collection[Point] = (),
    rows: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], list[Record], dict[str, Tensor], dict[Point, Tensor]]]:
    """Batches of held-out rows: their numbers, stored signals, closeness to the teacher per token, captured states.

    With `rows` each of these alone; else all of them, rows of like length together.
    """
    store = Stores(config, run, inputs, read_plan(run)).heldout
    head, teacher = decoder.head(), read_teacher_head(run, inputs).to(decoder.device)
    lengths = [len(s.input_ids) for s in inputs.heldout]
    batches = (
        length_batches(lengths, max_tokens=None, batch_size=config.cache.batch_size)
        if rows is None
        else [[number] for number in rows]
    )
    progress = bar(sum(map(len, batches)), f"held-out {name}")
    for batch in batches:
        samples = [inputs.heldout[i] for i in batch]
        ids, attention, states = batch_inputs(decoder, samples)
        with capture(decoder, points) as found, decoder.span(0, decoder.num_layers, norm=True):
            output_XE = decoder.forward(ids, attention)[states]
        stored = [store.read(i) for i in batch]
        theirs = torch.cat([r["positions.teacher_output"] for r in stored]).to(output_XE.device)
        labels = torch.cat([labels_of(s) for s in samples]).to(output_XE.device)
        figures = closeness(
            output_XE,
            head.weight_VD,
            theirs,
            teacher.weight_VD,
            labels,
            student=head.options,
            teacher=teacher.options,
        )
        yield (
            batch,
            stored,
            {key: values.cpu() for key, values in figures.items()},
            {point: found[point][states].float().cpu() for point in points},
        )
        progress.update(len(batch))
    progress.close()
