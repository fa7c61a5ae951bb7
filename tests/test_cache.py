"""Shards: what is written is read back, damage is noticed, an interrupted store goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from semalign.cache import Record, ShardStore, write_atomic, write_json
from semalign.errors import CacheError

PLAN = [[3, 1], [0, 2, 4]]


def record(sample: int) -> Record:
    generator = torch.Generator().manual_seed(sample)
    return {
        "tokens.prefix": torch.randn(5 + sample, 8, generator=generator).bfloat16(),
        "positions.ids": torch.randint(0, 99, (1 + sample, 4), generator=generator, dtype=torch.int32),
    }


def filled(folder: Path, fingerprint: dict | None = None) -> ShardStore:
    store = ShardStore(folder, fingerprint or {"a": 1}, PLAN)
    for number in store.missing():
        store.write(number, [record(s) for s in PLAN[number]])
    return store


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


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})

    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(CacheError, match="No space left on device"):
        write_atomic(path, "new")
    assert path.read_text() == '{\n "old": 1\n}\n' and list(tmp_path.iterdir()) == [path]
