"""A cache folder elsewhere: shards and what lies beside them go there, and come back where they are needed."""

from __future__ import annotations

import shutil
import uuid
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file
from tiny import PLAN, STEPS, config_of, filled, record

from semalign.errors import CacheError, ConfigError
from semalign.signals.remote import Remote
from semalign.signals.shards import ShardStore
from semalign.steps.pipeline import open_run, transfer


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder of a store."""
    return f"memory://{uuid.uuid4()}" if request.param == "memory" else f"file://{tmp_path}/far"


def test_a_shard_is_fetched_when_it_is_first_read(url: str, tmp_path: Path) -> None:
    filled(tmp_path / "here", remote=Remote(url))
    there = ShardStore(tmp_path / "there", {"a": 1}, PLAN, Remote(url))
    assert there.missing(verify=True) == [] and not (tmp_path / "there").exists()
    assert torch.equal(there.read(4)["tokens.prefix"], record(4)["tokens.prefix"])
    assert [p.name for p in (tmp_path / "there").iterdir()] == ["shard-00001.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damage_in_the_store_is_found(url: str, tmp_path: Path, damage: str) -> None:
    filled(tmp_path / "here", remote=Remote(url))
    fs, root = fsspec.core.url_to_fs(url)
    data = bytearray(fs.cat_file(f"{root}/shard-00001.safetensors"))
    data[-1] ^= 255
    fs.pipe_file(f"{root}/shard-00001.safetensors", bytes(data[:-9] if damage == "cut" else data))
    there = ShardStore(tmp_path / "there", {"a": 1}, PLAN, Remote(url))
    assert there.missing() == ([1] if damage == "cut" else []), "sizes are known before anything is fetched"
    with pytest.raises(CacheError, match="shard-00001"):
        there.read(4)
    assert there.missing(verify=True) == [1]


def test_a_damaged_copy_is_fetched_again(url: str, tmp_path: Path) -> None:
    store = filled(tmp_path / "here", remote=Remote(url))
    copy = tmp_path / "here" / "shard-00000.safetensors"
    copy.write_bytes(copy.read_bytes()[:-9])
    assert store.missing(verify=True) == []
    assert torch.equal(store.read(3)["tokens.prefix"], record(3)["tokens.prefix"])


def test_a_run_goes_on_from_the_store_where_its_targets_are_lost(
    url: str, tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_pair, rows_file, tmp_path / "run")
    config = replace(config, cache=replace(config.cache, folder=url))
    run = transfer(config, STEPS)
    expected = load_file(run.root / "student" / "model.safetensors")
    kept = {p.relative_to(run.root): p.read_bytes() for p in run.targets.rglob("*.safetensors")}
    names = set(Remote(url).sizes())
    assert {"manifest.json", "maps.safetensors", "teacher_head.safetensors"} <= names
    assert not any(name.endswith(".part") for name in names), "what a try has left is of this machine"
    assert not Remote(url).child("raw").sizes()

    shutil.rmtree(run.targets)
    (run.root / "train.json").unlink()
    fs, root = fsspec.core.url_to_fs(url)
    dates = {path: entry.get("created") for path, entry in fs.find(root, detail=True).items()}
    transfer(config, STEPS)
    assert {path: entry.get("created") for path, entry in fs.find(root, detail=True).items()} == dates
    ours = load_file(run.root / "student" / "model.safetensors")
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    read = {p.relative_to(run.root): p.read_bytes() for p in run.targets.rglob("*.safetensors")}
    assert read and all(kept[path] == data for path, data in read.items())


def test_a_local_folder_holds_the_cache_itself(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_pair, rows_file, tmp_path / "run")
    config = replace(config, cache=replace(config.cache, folder=str(tmp_path / "disk")))
    run = transfer(config, ("attribute", "pair", "cache"))
    assert (tmp_path / "disk" / "teacher" / "shard-00000.safetensors").exists()
    assert run.targets.is_symlink() and run.manifest.exists()


@pytest.mark.parametrize(
    "url", ["nosuch://bucket/run", "adl://account/run"], ids=["unknown", "not installed"]
)
def test_a_store_that_cannot_be_reached_is_named_before_anything_is_loaded(
    url: str, tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_pair, rows_file, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"cache\.folder.*pip"):
        open_run(replace(config, cache=replace(config.cache, folder=url)))
    assert not (tmp_path / "run" / "config.yaml").exists(), "another address may be given in the same folder"
