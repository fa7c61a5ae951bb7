"""A cache with room for the tokens to come holds what one that grows by copying does."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from tiny import tiny_model
from transformers import DynamicCache

from semalign.evaluation import room
from semalign.evaluation.room import RoomyLayer, with_room


def step(cache: Any, layer: int, rows: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(rows, 2, tokens, 4, generator=generator) for _ in range(2))
    found = cache.update(keys, values, layer)
    return found[0].clone(), found[1].clone()


def test_it_holds_the_same_through_growth_beyond_its_room_and_rows_that_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "ROOM", 3)
    plain, roomy = DynamicCache(), DynamicCache()
    for cache in (plain, roomy):
        for layer in range(2):
            step(cache, layer, 5, 4, layer)
    assert with_room(roomy) is roomy and all(type(layer) is RoomyLayer for layer in roomy.layers)
    rows = 5
    for n in range(20):
        if n in (6, 7, 13):
            kept = torch.arange(rows - 1)
            rows -= 1
            for cache in (plain, roomy):
                cache.reorder_cache(kept)
        for layer in range(2):
            both = [step(cache, layer, rows, 1 + n % 2, 100 * n + layer) for cache in (plain, roomy)]
            assert torch.equal(both[0][0], both[1][0]) and torch.equal(both[0][1], both[1][1])
        assert plain.get_seq_length() == roomy.get_seq_length()


def test_what_was_given_out_before_is_not_written_over() -> None:
    cache = DynamicCache()
    step(cache, 0, 2, 3, 0)
    before = cache.layers[0].keys.clone()
    first = cache.layers[0].keys
    with_room(cache)
    step(cache, 0, 2, 1, 1)
    assert torch.equal(first, before) and torch.equal(cache.layers[0].keys[..., :3, :], before)
    # A step copies nothing as long as there is room.
    place = cache.layers[0].keys.data_ptr()
    step(cache, 0, 2, 1, 2)
    assert cache.layers[0].keys.data_ptr() == place


@pytest.mark.parametrize("kind", ["gemma3_text", "qwen3_5_text", "lfm2"])
def test_layers_of_other_kinds_are_left_alone(kind: str) -> None:
    model = tiny_model(kind, layers=4, wide=False)
    with torch.no_grad():
        found = model(input_ids=torch.arange(1, 9)[None], use_cache=True).past_key_values
    kinds = [type(layer).__name__ for layer in found.layers] if hasattr(found, "layers") else []
    after = with_room(found)
    assert [a if a != "DynamicLayer" else "RoomyLayer" for a in kinds] == [
        type(layer).__name__ for layer in getattr(after, "layers", [])
    ]
    assert with_room(None) is None


def test_rows_that_leave_take_their_room_along() -> None:
    cache = DynamicCache()
    step(cache, 0, 4, 3, 0)
    with_room(cache)
    step(cache, 0, 4, 1, 1)
    rooms = [weakref.ref(tensor) for tensor in cache.layers[0]._rooms.values()]
    assert len(rooms) == 2 and all(room() is not None for room in rooms)
    cache.reorder_cache(torch.tensor([0, 2]))
    assert all(room() is None for room in rooms)
