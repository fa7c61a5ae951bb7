"""Prompts are read before their answers are written: rows of like length together, into one cache."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from semalign.data.batches import length_batches

READ_AT_ONCE = 8192
"""Tokens, padding included, of one pass over prompts."""


def groups_of(model: Any, mask_BT: Tensor) -> list[list[int]]:
    """Rows that are read together. A model without position ids counts positions from a batch's first column, so there all are."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return [list(range(len(mask_BT)))]
    return length_batches(mask_BT.sum(1).tolist(), max_tokens=READ_AT_ONCE, batch_size=len(mask_BT))


def prefill(model: Any, ids_BT: Tensor, mask_BT: Tensor, groups: list[list[int]]) -> Any:
    """The cache of all but the last token of rows that end together, in groups from `groups_of`.

    A padded token costs what any token costs, so groups of like length are read one after the other, and their keys and values are put side
    by side. A cache that holds other things than those of every token (states of linear attention, a window) comes from one pass over all.
    """
    if len(groups) == 1:
        return _read(model, ids_BT, mask_BT)
    joined: Any = None
    for group in groups:
        start = ids_BT.shape[1] - int(mask_BT[group].sum(1).max())
        if start == ids_BT.shape[1] - 1:
            continue  # one token each, which is the last
        part = _read(model, ids_BT[group, start:], mask_BT[group, start:])
        if not _has_all_tokens(part):
            return _read(model, ids_BT, mask_BT)
        held = [(layer.keys, layer.values) for layer in part.layers]
        if joined is None:
            # The longest come first, so these are as long as all together.
            joined = part
            for layer in joined.layers:
                layer.keys, layer.values = (_wider(kept, len(ids_BT)) for kept in (layer.keys, layer.values))
        for layer, (keys, values) in zip(joined.layers, held, strict=True):
            if keys is not None:
                layer.keys[group, :, start:], layer.values[group, :, start:] = keys, values
    return joined


def _read(model: Any, ids_BT: Tensor, mask_BT: Tensor) -> Any:
    positions = (mask_BT.cumsum(1) - 1).clamp(min=0)
    options = {"position_ids": positions[:, :-1], "logits_to_keep": 1}
    known = inspect.signature(model.forward).parameters
    return model(
        input_ids=ids_BT[:, :-1],
        attention_mask=mask_BT[:, :-1],
        use_cache=True,
        **{name: value for name, value in options.items() if name in known},
    ).past_key_values


def _has_all_tokens(cache: Any) -> bool:
    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)


def _wider(kept: Tensor | None, rows: int) -> Tensor | None:
    """The same layout for more rows; None where a layer reads another one's keys and values."""
    return (
        None if kept is None else torch.zeros((rows, *kept.shape[1:]), dtype=kept.dtype, device=kept.device)
    )
