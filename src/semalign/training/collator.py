"""Rows to batches: their order in an epoch, the streams and signals that go with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from semalign.data import Sample, collate
from semalign.data.batches import labels_of, state_mask
from semalign.signals.passes import stream_of
from semalign.signals.request import PREFIX
from semalign.signals.supervision import Supervision


class EpochSampler(Sampler[int]):
    """Length-grouped order from (seed, epoch) alone, so that a resumed run sees the same batches.

    `step` rows make an optimiser step. The order is filled up to a multiple of `multiple` by rows that do not count, as
    ~n instead of n, so that every process has a batch in every step. `epoch` is asked when an epoch starts: the
    Trainer's own set_epoch does not get through to the sampler of a resumed epoch with several processes.
    """

    def __init__(
        self, lengths: list[int], step: int, seed: int, *, multiple: int = 1, epoch: Callable[[], int]
    ) -> None:
        self.lengths, self.step, self.seed, self.epoch = lengths, step, seed, epoch
        self.filled = -len(lengths) % multiple

    def __len__(self) -> int:
        return len(self.lengths) + self.filled

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch())
        order = get_length_grouped_indices(self.lengths, self.step, generator=generator)
        return iter(order + [~order[-1]] * self.filled)


class Prefixes(Protocol):
    """Where cached streams come from; a `ShardStore` is one."""

    def read(self, sample: int, keys: Sequence[str]) -> Mapping[str, Tensor]:
        """The named tensors of a sample."""
        ...


class Collator:
    """Sample numbers -> one batch: padded stream or ids, states mask, labels, the supervision's signals.

    `counted` is the number of supervised positions, or 0 where the batch only keeps its process in step.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        supervision: Supervision,
        prefixes: Prefixes | None,
        prefix_keys: Sequence[str] = (PREFIX,),
    ) -> None:
        self.samples, self.supervision = samples, supervision
        self.prefixes, self.prefix_keys = prefixes, prefix_keys

    def __call__(self, features: Sequence[Mapping[str, int]]) -> dict[str, Tensor]:
        counted = [f["index"] for f in features if f["index"] >= 0]
        numbers = counted or [~features[0]["index"]]
        chosen = [self.samples[n] for n in numbers]
        padded = collate(chosen)
        batch = {
            "attention_mask": padded["attention_mask"],
            "states": state_mask(padded["mask"]),
            "labels": torch.cat([labels_of(s) for s in chosen]),
            "counted": torch.tensor(sum(self.samples[n].supervised for n in counted)),
        }
        if self.prefixes is None:
            batch["input_ids"] = padded["input_ids"]
        else:
            streams = [stream_of(self.prefixes.read(n, self.prefix_keys)) for n in numbers]
            batch["prefix"] = nn.utils.rnn.pad_sequence(streams, batch_first=True)
        return batch | self.supervision.signals(numbers)


class _Numbers(Dataset[dict[str, int]]):
    """Sample numbers; those of rows that do not count are negative."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, int]:
        return {"index": number}
