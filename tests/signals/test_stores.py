"""The stores of a run: which samples lie in which shard, what makes them stale, how they are filled."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import CACHE, PAIRS, prepared, samples
from tiny import PLAN, full_weights, record

from semalign.config import CacheConfig, EvaluationConfig, RecipeConfig
from semalign.data import Sample
from semalign.errors import CacheError
from semalign.run.files import Record
from semalign.signals.plan import Plan
from semalign.signals.remote import Remote
from semalign.signals.shards import ShardStore
from semalign.signals.stores import Source, Stores, fill, shard_plan


@given(st.lists(st.integers(1, 30), max_size=30), st.integers(1, 7))
@settings(max_examples=40)
def test_every_sample_lies_in_one_shard_beside_others_of_its_length(lengths: list[int], rows: int) -> None:
    plan = shard_plan([Sample([7] * n, [False] * n, str(n)) for n in lengths], rows)
    order = [lengths[n] for shard in plan for n in shard]
    assert sorted(n for shard in plan for n in shard) == list(range(len(lengths)))
    assert order == sorted(lengths, reverse=True)
    assert [len(shard) for shard in plan[:-1]] == [rows] * (len(plan) - 1)


def stores(folder: Path, **options: Any) -> Stores:
    return prepared(folder, **options).stores


def planned(made: Stores) -> list[int]:
    """How many samples the student's, the teacher's and the held-out store hold."""
    return [sum(map(len, store.plan)) for store in (made.student, made.teacher, made.heldout)]


def test_rows_are_stored_only_of_a_model_that_runs_over_them(tmp_path: Path) -> None:
    assert planned(stores(tmp_path)) == [6, 6, 3]
    assert planned(stores(tmp_path, recipe="cross_entropy")) == [6, 0, 3]
    assert planned(stores(tmp_path, recipe="kl", train=full_weights(cache_prefix=False))) == [0, 6, 3]
    assert planned(stores(tmp_path, heldout=[])) == [6, 6, 0]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rows": samples(5)}, "rows"),
        ({"plan": Plan(PAIRS.pairs[1:], (2, 3))}, "plan"),
        ({"plan": Plan(PAIRS.pairs, (2,))}, "plan"),
        ({"recipe": RecipeConfig("aligned", map="procrustes")}, "targets"),
        ({"recipe": "kl"}, "teacher_output"),
        ({"cache": replace(CACHE, top_k=4)}, "top_k"),
        ({"cache": replace(CACHE, dtype="float16")}, "dtype"),
        ({"cache": replace(CACHE, ridge_penalty=1.0)}, "ridge_penalty"),
        ({"cache": replace(CACHE, shard_rows=3)}, "shard_rows"),
        ({"cache": replace(CACHE, prefix_dtype="int8")}, "prefix_dtype"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_changes_the_records_makes_a_cache_stale_and_is_named(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    before = stores(tmp_path)
    store = before.student
    store.write(0, [record(n) for n in store.plan[0]])
    made = stores(tmp_path, **changes)
    assert made.fingerprint != before.fingerprint
    assert any(line.startswith(field) for line in made.student.stale_fields())


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": RecipeConfig("aligned", learning_rate=1.0, layer_weight=3.0)},
        {"evaluation": EvaluationConfig(baselines=("cross_entropy",))},
        {"cache": replace(CACHE, batch_size=1, max_bytes=9)},
        {"rows": samples(6), "seed": 7},
    ],
    ids=["training", "a baseline that reads nothing more", "how it is made", "the same rows again"],
)
def test_what_changes_no_record_leaves_a_cache_valid(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert stores(tmp_path, **changes).fingerprint == stores(tmp_path).fingerprint


def test_folders_from_before_eight_bits_stay_valid() -> None:
    assert "prefix_dtype" not in stores(Path("unused")).fingerprint
    eight = CacheConfig(prefix_dtype="fp8")
    no_prefix = stores(Path("unused"), cache=eight, train=full_weights(cache_prefix=False))
    assert "prefix_dtype" not in no_prefix.fingerprint, "where no stream is kept, its type says nothing"


def test_the_size_is_that_of_all_shards(tmp_path: Path) -> None:
    made = stores(tmp_path)
    for store in (made.student, made.teacher, made.heldout):
        for number, plan in enumerate(store.plan):
            store.write(number, [record(n) for n in plan])
    assert made.bytes == sum(p.stat().st_size for p in tmp_path.rglob("shard-*.safetensors")) > 0


@pytest.fixture
def url() -> str:
    """An empty folder of a store in memory."""
    return f"memory://{uuid.uuid4()}"


def remote_stores(folder: Path, url: str) -> Stores:
    return stores(folder, cache=replace(CACHE, folder=url))


def test_what_lies_beside_the_shards_goes_to_the_remote_folder_the_manifest_last(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = remote_stores(tmp_path, url)
    made.targets.mkdir()
    for name in ("manifest.json", "maps.safetensors", "cka.safetensors", ".maps.safetensors.x"):
        (made.targets / name).write_text(name)
    order, put = [], Remote.put

    def listening(self: Remote, local: Path) -> None:
        order.append(local.name)
        put(self, local)

    monkeypatch.setattr(Remote, "put", listening)
    made.publish()
    assert order == ["cka.safetensors", "maps.safetensors", "manifest.json"]
    assert set(Remote(url).sizes()) == set(order), "a file that is not whole yet stays here"


def test_what_is_missing_here_comes_from_the_remote_folder_and_the_rest_stays(
    tmp_path: Path, url: str
) -> None:
    made = remote_stores(tmp_path / "a", url)
    made.targets.mkdir(parents=True)
    for name in ("manifest.json", "maps.safetensors"):
        (made.targets / name).write_text(f"far {name}")
    made.publish()
    (tmp_path / "b" / "targets").mkdir(parents=True)
    (tmp_path / "b" / "targets" / "manifest.json").write_text("near")
    other = remote_stores(tmp_path / "b", url)
    assert (other.targets / "manifest.json").read_text() == "near"
    assert (other.targets / "maps.safetensors").read_text() == "far maps.safetensors"


def test_without_a_remote_folder_nothing_is_copied(tmp_path: Path) -> None:
    made = stores(tmp_path)
    made.publish()
    made.fetch()
    assert made.remote is None and not made.targets.exists()
    local = stores(tmp_path, cache=replace(CACHE, folder=str(tmp_path / "disk")))
    assert local.remote is None, "a local folder is reached through targets/ itself"


def test_raw_activations_are_dropped_here_and_there(tmp_path: Path, url: str) -> None:
    made = remote_stores(tmp_path, url)
    raw = made.store("raw/teacher", PLAN)
    fill(raw, lambda batch: [record(n) for n in batch], label="raw", batch_size=2)
    made.student.write(0, [record(n) for n in made.student.plan[0]])
    made.forget_raw()
    assert not (made.targets / "raw").exists() and not Remote(url).child("raw/teacher").sizes()
    assert (made.targets / "student").exists() and Remote(url).child("student").sizes()


def counting(asked: list[list[int]]) -> Source:
    """Records of samples, and the batches in which they were asked for."""

    def source(batch: list[int]) -> list[Record]:
        asked.append(batch)
        return [record(n) for n in batch]

    return source


def store_of(folder: Path) -> ShardStore:
    return ShardStore(folder, {"a": 1}, PLAN)


def test_a_store_is_filled_in_batches_that_do_not_cross_shards(tmp_path: Path) -> None:
    asked: list[list[int]] = []
    store = store_of(tmp_path)
    fill(store, counting(asked), label="test", batch_size=2)
    assert asked == [[3, 1], [0, 2], [4]]
    assert store.missing(verify=True) == []
    for sample in range(5):
        assert torch.equal(store.read(sample)["positions.ids"], record(sample)["positions.ids"])


def test_only_shards_that_are_missing_or_damaged_are_made(tmp_path: Path) -> None:
    fill(store_of(tmp_path), counting([]), label="test", batch_size=9)
    asked: list[list[int]] = []
    fill(store_of(tmp_path), counting(asked), label="test", batch_size=9)
    assert asked == []
    path = tmp_path / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    fill(store_of(tmp_path), counting(asked), label="test", batch_size=9)
    assert asked == [PLAN[1]]


def stop_at(last: int, told: list[int]) -> Callable[[int], None]:
    def limit(more: int) -> None:
        told.append(more)
        if len(told) == last:
            raise CacheError("full")

    return limit


def test_the_limit_is_told_the_bytes_of_a_shard_before_it_is_written(tmp_path: Path) -> None:
    told: list[int] = []
    with pytest.raises(CacheError, match="full"):
        fill(store_of(tmp_path), counting([]), label="test", batch_size=1, limit=stop_at(2, told))
    assert told == [sum(t.nbytes for n in shard for t in record(n).values()) for shard in PLAN]
    assert store_of(tmp_path).missing(verify=True) == [1], (
        "what is there stays, what would be too much is not"
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_each_makes_the_shards_of_its_own_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    asked: list[list[int]] = []
    fill(store_of(tmp_path), counting(asked), label="test", batch_size=9)
    assert asked == [PLAN[rank]] and store_of(tmp_path).missing() == [1 - rank]
