"""Half precision: which parts run in it, and models of which only the trained layers do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import full_weights, save_model, tiny_model

from semalign.config import DataConfig, ModelConfig, PairingConfig, RecipeConfig, TransferConfig
from semalign.data import Sample
from semalign.data.batches import candidates_of
from semalign.steps.pipeline import transfer


def run(
    pair: tuple[Path, Path], rows: Path, out: Path, recipe: str, kernel: str | None = None, **train: Any
) -> Path:
    models = [ModelConfig(str(p), dtype="bfloat16", attn_implementation=kernel) for p in pair]
    return transfer(
        TransferConfig(
            *models,
            DataConfig(str(rows), heldout_rows=4, max_length=64),
            str(out),
            pairing=PairingConfig(num_layers=2),
            recipe=RecipeConfig(recipe, learning_rate=1e-2),
            train=full_weights(num_train_epochs=2, per_device_train_batch_size=4, **train),
        )
    ).report


def test_stages_carry_streams_on_through_frozen_half_precision_matrices(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    assert run(tiny_pair, rows_file, tmp_path / "run", "acl", lora_r=2, bf16=True).exists()


def test_a_student_is_reloaded_with_the_kernel_it_was_trained_with(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    assert run(tiny_pair, rows_file, tmp_path / "run", "aligned", kernel="eager").exists()


@pytest.mark.parametrize("recipe", ["aligned", "cross_entropy_all"])
def test_float32_layers_on_top_of_half_precision_ones_that_do_not_promote(
    rows_file: Path, tmp_path: Path, recipe: str
) -> None:
    teacher = save_model(tiny_model("gemma2", layers=4, wide=True, seed=1), tmp_path / "teacher")
    student = save_model(tiny_model("gemma2", layers=3, wide=False, seed=2), tmp_path / "student")
    assert run((teacher, student), rows_file, tmp_path / "run", recipe, cache_prefix=False).exists()


def test_candidates_are_the_rows_most_frequent_tokens() -> None:
    long = list(range(2_000))
    samples = [Sample(long, [True] * 2_000, "a"), Sample(long[976:], [False] * 1_024, "b")]
    assert candidates_of(samples).tolist() == long[976:]
    assert candidates_of([Sample([9, 4, 9, 2], [False] * 4, "c")]).tolist() == [2, 4, 9]
