"""Samples to tensors. Legend: B samples, T tokens of the longest one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from semalign.data.samples import Sample
from semalign.errors import DataError
from semalign.models.decoder import Decoder


def collate(samples: Sequence[Sample], *, pad_id: int = 0) -> dict[str, torch.Tensor]:
    """Right-padded tensors of a batch.

    Padding is known by its place only: attention_mask and mask come from the samples' lengths and masks,
    never from comparing ids, so `pad_id` may be any id, that of eos included.

    Returns:
        input_ids (B, T) long; attention_mask (B, T) long, 1 on real tokens; mask (B, T) bool, True on
            supervised tokens.
    """
    assert samples, "a batch needs a sample"
    shape = len(samples), max(len(sample.input_ids) for sample in samples)
    ids_BT = torch.full(shape, pad_id, dtype=torch.long)
    attention_BT = torch.zeros(shape, dtype=torch.long)
    mask_BT = torch.zeros(shape, dtype=torch.bool)
    for b, sample in enumerate(samples):
        length = len(sample.input_ids)
        ids_BT[b, :length] = torch.tensor(sample.input_ids, dtype=torch.long)
        attention_BT[b, :length] = 1
        mask_BT[b, :length] = torch.tensor(sample.mask, dtype=torch.bool)
    return {"input_ids": ids_BT, "attention_mask": attention_BT, "mask": mask_BT}


def length_batches(lengths: Sequence[int], *, max_tokens: int | None, batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first, for passes in which order does not matter.

    A batch holds at most batch_size indices and, padded to its longest, at most max_tokens tokens; a single
    row longer than that is a batch of its own. The longest come first so that memory runs out at once or
    never. Equal lengths keep their order.

        >>> length_batches([3, 9, 4], max_tokens=10, batch_size=8)
        [[1], [2, 0]]
    """
    assert batch_size > 0, "batch_size is positive"
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # The first index of a batch is its longest row, so the padded size is known when the next one is
        # added.
        size = (len(batches[-1]) + 1) * lengths[batches[-1][0]] if batches else 0
        full = not batches or len(batches[-1]) == batch_size or (max_tokens is not None and size > max_tokens)
        if full:
            batches.append([])
        batches[-1].append(index)
    return batches


CANDIDATES = 1024  # tokens outside the top k that training follows


def state_mask(mask_BT: Tensor) -> Tensor:
    """Positions whose state predicts a supervised token: the token mask moved one to the left."""
    shifted = torch.zeros_like(mask_BT)
    shifted[:, :-1] = mask_BT[:, 1:]
    return shifted


def labels_of(sample: Sample) -> Tensor:
    """Supervised token ids (N,)."""
    return torch.tensor([i for i, m in zip(sample.input_ids, sample.mask, strict=True) if m])


def candidates_of(samples: Sequence[Sample]) -> Tensor:
    """The tokens of all rows, each once, ascending; the 1,024 most frequent where there are more."""
    ids, counts = torch.cat([torch.tensor(s.input_ids) for s in samples]).unique(return_counts=True)
    kept = counts.argsort(descending=True, stable=True)[:CANDIDATES]
    return ids[kept].sort().values


def batch_inputs(decoder: Decoder, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Token ids and states mask (B, T) of samples, on the model's device.

    Raises:
        DataError: a sample is longer than the model's positions, beyond which its signals would depend on the batch.
    """
    batch, limit = collate(samples), decoder.shape.positions
    if limit is not None and (length := batch["input_ids"].shape[1]) > limit:
        raise DataError(
            f"{decoder.name}: expected rows of at most {limit} tokens, got {length}; lower data.max_length to cut them."
        )
    move = decoder.device
    return batch["input_ids"].to(move), state_mask(batch["mask"]).to(move)
