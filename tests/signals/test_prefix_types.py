"""Eight-bit prefix streams: half the bytes, the error on record, and a training close to the one from bfloat16."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors import safe_open
from tiny import STEPS, config_of, losses

from semalign.config import CacheConfig, RecipeConfig, TransferConfig
from semalign.estimate.check import check
from semalign.run.folder import RunFolder
from semalign.steps.pipeline import transfer


def with_prefix(config: TransferConfig, out: Path, kind: Any) -> TransferConfig:
    cache = CacheConfig(shard_rows=6, top_k=8, prefix_dtype=kind)
    return replace(config, output_dir=str(out), cache=cache)


def prefix_bytes(run: RunFolder) -> int:
    total = 0
    for path in (run.targets / "student").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            keys = [key for key in file.keys() if key.startswith("tokens.")]  # noqa: SIM118
            total += sum(file.get_tensor(key).nbytes for key in keys)
    return total


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_training_from_eight_bits_stays_close(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, kind: str
) -> None:
    config = config_of(tiny_pair, rows_file, tmp_path)
    half = transfer(with_prefix(config, tmp_path / "half", None), STEPS)
    eight = transfer(with_prefix(config, tmp_path / "eight", kind), STEPS)
    tokens = json.loads(half.manifest.read_text())["tokens"]
    assert prefix_bytes(half) == tokens * 32 * 2 and prefix_bytes(eight) == tokens * (32 + 6)
    assert losses(eight) == pytest.approx(losses(half), rel=0.02)
    assert losses(eight) != losses(half)
    error = json.loads(eight.manifest.read_text())["prefix_error"]
    assert 0 < error["mean"] <= error["worst"] < (0.02 if kind == "int8" else 0.0625)
    assert json.loads(half.manifest.read_text())["prefix_error"] is None


def test_check_measures_the_error_and_counts_the_bytes(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_pair, rows_file, tmp_path)
    half, eight = (with_prefix(config, tmp_path / str(k), k) for k in (None, "int8"))
    console = Console(record=True, width=200)
    found = check(eight, console)
    run = transfer(eight, STEPS[:3])
    stored = json.loads(run.manifest.read_text())
    assert found["prefix_error"]["mean"] == pytest.approx(stored["prefix_error"]["mean"], rel=0.2)
    assert "eight-bit prefix streams: relative error" in console.export_text()
    saved = check(half, Console(quiet=True))["estimate"]["cache_bytes"] - found["estimate"]["cache_bytes"]
    assert saved == stored["tokens"] * (2 * 32 - (32 + 6))
    # Headers and offsets, which tiny shards are full of, are not estimated.
    assert found["estimate"]["cache_bytes"] == pytest.approx(stored["bytes"], rel=0.25)


def test_frontier_stages_go_on_from_eight_bits(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = replace(
        config_of(tiny_pair, rows_file, tmp_path), recipe=RecipeConfig("aligned", schedule="frontier")
    )
    half = transfer(with_prefix(config, tmp_path / "half", None), STEPS)
    eight = transfer(with_prefix(config, tmp_path / "eight", "int8"), STEPS)
    assert losses(eight) == pytest.approx(losses(half), rel=0.03)
