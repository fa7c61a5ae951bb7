"""What of a training is refused, and whose names its fields have."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest
from transformers import TrainingArguments

from semalign.config import (
    OptimiserConfig,
    RecipeConfig,
    RecipeFields,
    TrainConfig,
)
from semalign.errors import ConfigError
from semalign.methods.recipe import Recipe

from .refused import assert_refused


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TrainConfig(num_train_epochs=0), "train.num_train_epochs: expected more than 0, got 0"),
        (lambda: TrainConfig(lora_r=-1), "train.lora_r: expected 0 or a rank, got -1"),
        (lambda: TrainConfig(lora_alpha=0), "train.lora_alpha: expected a positive number, got 0"),
        (lambda: TrainConfig(max_steps=0), "train.max_steps: expected a positive count, or -1 for whole epochs, got 0"),
        (lambda: TrainConfig(weight_decay=-1.0), "train.weight_decay: expected 0 or more, got -1.0"),
        (lambda: TrainConfig(warmup_steps=-1), "train.warmup_steps: expected 0 or more, got -1"),
        (lambda: TrainConfig(per_device_train_batch_size=0), "train.per_device_train_batch_size: expected a positive count, got 0"),
        (lambda: TrainConfig(live_teacher=True), "train.live_teacher: expected false unless train.cache_prefix is false"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named_with_what_was_expected(
    make: Callable[[], object], said: str
) -> None:
    assert_refused(make, said)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: TrainConfig(gradient_accumulation_steps=0), "train.gradient_accumulation_steps"),
        (lambda: TrainConfig(logging_steps=0), "train.logging_steps"),
        (lambda: TrainConfig(save_steps=-3), "train.save_steps"),
    ],
)
def test_counts_are_checked_before_anything_runs(make: Callable[[], object], field: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(field)):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainConfig(num_train_epochs=0.01, live_teacher=True, cache_prefix=False),
    ],
)
def test_what_lies_just_inside_a_bound_is_taken(make: Callable[[], object]) -> None:
    make()


def test_the_live_teacher_cannot_be_combined_with_a_cached_prefix() -> None:
    with pytest.raises(ConfigError, match=r"expected false unless train\.cache_prefix is false"):
        TrainConfig(live_teacher=True)


def test_optimiser_fields_are_those_of_transformers_by_name() -> None:
    theirs = {f.name for f in dataclasses.fields(TrainingArguments)}
    ours = {f.name for f in dataclasses.fields(OptimiserConfig)}
    assert ours <= theirs


def test_a_config_leaves_every_field_of_its_recipe_open_but_the_name() -> None:
    given = {f.name: getattr(RecipeConfig(), f.name) for f in dataclasses.fields(RecipeFields)}
    assert given.pop("name") == "aligned_output"
    assert set(given.values()) == {None}
    optional = {"learning_rate", "lora_r", "lora_target_modules"}
    for f in dataclasses.fields(Recipe):
        assert (getattr(Recipe("x"), f.name) is None) == (f.name in optional), f.name
