"""Shards: what is written is read back, damage is noticed, an interrupted store goes on."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from tiny import PLAN, filled, record

from semalign.errors import CacheError
from semalign.signals.shards import ShardStore


def test_every_sample_comes_back_as_it_was(tmp_path: Path) -> None:
    filled(tmp_path)
    store = ShardStore(tmp_path, {"a": 1}, PLAN)
    for sample in range(5):
        for key, value in record(sample).items():
            assert torch.equal(store.read(sample)[key], value)
    assert store.bytes == sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))


def test_only_missing_shards_are_missing(tmp_path: Path) -> None:
    store = ShardStore(tmp_path, {"a": 1}, PLAN)
    assert store.missing() == [0, 1]
    store.write(1, [record(s) for s in PLAN[1]])
    assert ShardStore(tmp_path, {"a": 1}, PLAN).missing() == [0]


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_shard_is_named_and_only_it_is_rebuilt(tmp_path: Path, damage: str) -> None:
    filled(tmp_path)
    path = tmp_path / "shard-00001.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    else:
        data[-1] ^= 255
        path.write_bytes(data[:-20] if damage == "truncate" else data)
    store = ShardStore(tmp_path, {"a": 1}, PLAN)
    with pytest.raises(CacheError, match="shard-00001"):
        store.read(4)
    assert torch.equal(store.read(1)["tokens.prefix"], record(1)["tokens.prefix"])
    assert store.missing(verify=True) == [1]


def test_another_fingerprint_makes_all_shards_stale_and_names_the_field(tmp_path: Path) -> None:
    filled(tmp_path, {"data": {"rows": 3}, "k": 1})
    store = ShardStore(tmp_path, {"data": {"rows": 4}, "k": 1}, PLAN)
    assert store.missing() == [0, 1] and store.stale_fields() == ["data.rows: 3 -> 4"]


def test_two_writers_of_one_folder_lose_nothing(tmp_path: Path) -> None:
    first, second = (ShardStore(tmp_path, {"a": 1}, PLAN) for _ in range(2))
    for store, number in ((first, 0), (second, 1)):
        store.write(number, [record(s) for s in PLAN[number]])
    first.refresh()
    assert first.missing(verify=True) == [] and torch.equal(
        first.read(4)["positions.ids"], record(4)["positions.ids"]
    )


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_shard_whose_entry_is_damaged_is_made_again_and_an_index_is_no_loss(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path)
    for name in ("shard-00001.json", "index.json"):
        (tmp_path / name).write_bytes(content)
    assert ShardStore(tmp_path, {"a": 1}, PLAN).missing() == [1]
    assert sum("made again" in r.message for r in caplog.records) == 2
    (tmp_path / "shard-00001.json").write_bytes((tmp_path / "shard-00000.json").read_bytes())
    assert ShardStore(tmp_path, {"a": 1}, PLAN).missing() == [1], "of another shard"


def test_rows_of_a_cache_of_other_inputs_are_called_stale_with_what_changed(tmp_path: Path) -> None:
    filled(tmp_path)
    store = ShardStore(tmp_path, {"a": 2}, PLAN)
    with pytest.raises(CacheError, match=r"stale \(a: 1 -> 2\), .* run `semalign cache` again"):
        store.read(0)
    (tmp_path / "shard-00000.safetensors").write_bytes(b"")
    with pytest.raises(CacheError, match=r"missing or damaged"):
        ShardStore(tmp_path, {"a": 1}, PLAN).read(PLAN[0][0])


def test_a_signal_that_nobody_asked_for_is_named(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(
        CacheError, match=r"holds no positions\.teacher_output, which the recipe reads; make the cache"
    ):
        ShardStore(tmp_path, {"a": 1}, PLAN).read(0, ["positions.teacher_output"])


def test_a_store_that_was_read_from_can_be_pickled(tmp_path: Path) -> None:
    store = filled(tmp_path)
    read = store.read(3)
    again = pickle.loads(pickle.dumps(store))
    assert all(torch.equal(again.read(3)[key], value) for key, value in read.items())
    assert torch.equal(store.read(1)["positions.ids"], record(1)["positions.ids"]), (
        "the first one still reads"
    )
