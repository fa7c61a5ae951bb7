"""A cache of keys and values with room for the tokens to come.

transformers' own grows by concatenation: every step of every layer copies all keys and values so far, which for 82 rows of a 0.5B
model at 500 tokens is 2 GB a step. Here a step writes its own token's alone, and all are copied once in ROOM steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 128


class RoomyLayer(DynamicLayer):
    """One layer's keys and values (B, H, T, D), the first T of T + ROOM places. What else is done to a cache gives new tensors without room."""

    def __init__(self, of: DynamicLayer) -> None:
        super().__init__()
        assert of.keys is not None and of.values is not None
        self.lazy_initialization(of.keys, of.values)
        self.keys, self.values = of.keys, of.values
        self._rooms: dict[str, Tensor] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See `DynamicLayer`."""
        assert self.keys is not None and self.values is not None
        self.keys = self._joined("keys", self.keys, key_states)
        self.values = self._joined("values", self.values, value_states)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Any) -> None:
        """See `DynamicLayer`; the room of the rows before is let go at once."""
        self._rooms.clear()
        super().reorder_cache(beam_idx)

    def _joined(self, name: str, old: Tensor, new: Tensor) -> Tensor:
        room, at = self._rooms.get(name), old.shape[-2]
        stop = at + new.shape[-2]
        if (
            room is None
            or room.data_ptr() != old.data_ptr()
            or stop > room.shape[-2]
            or len(old) != len(room)
        ):
            room = new.new_empty((*new.shape[:-2], stop + ROOM, new.shape[-1]))
            room[..., :at, :] = old
            self._rooms[name] = room
        room[..., at:stop, :] = new
        return room[..., :stop, :]


def with_room(cache: Any) -> Any:
    """The same cache; layers that only grow have room from now on. Others, and caches of other kinds, are left alone."""
    if type(cache) is DynamicCache:
        for number, layer in enumerate(cache.layers):
            if type(layer) is DynamicLayer and isinstance(layer.keys, torch.Tensor) and layer.keys.numel():
                cache.layers[number] = RoomyLayer(layer)
    return cache
