"""What a recipe says about the optimisation, and what holds where nobody says anything."""

from __future__ import annotations

import pytest

from semalign.config import RecipeConfig, TrainConfig
from semalign.config.options import DEMO
from semalign.config.parsing import load_config
from semalign.methods import methods, resolve
from semalign.signals.request import recipes_of


def test_a_pretrained_student_meets_no_rate_that_nobody_chose() -> None:
    default = resolve(RecipeConfig()).train_of(TrainConfig())
    assert (default.lora_r, default.learning_rate, default.lora_target_modules) == (16, 2e-4, ())
    assert resolve(RecipeConfig()).train_of(TrainConfig(lora_r=0)).learning_rate == 1e-5
    for recipe in methods().values():
        train = recipe.train_of(TrainConfig())
        is_papers = recipe.name.startswith(("seeking", "laten"))
        assert train.learning_rate is not None and (is_papers or train.learning_rate <= 2e-4)


@pytest.mark.parametrize(
    ("recipe", "train", "rate"),
    [
        ({}, {"learning_rate": 3e-4}, 3e-4),
        ({"learning_rate": 5e-4}, {"learning_rate": 3e-4}, 5e-4),
        ({"lora_r": 0}, {}, 1e-5),
        ({"lora_r": 4}, {"lora_r": 0}, 2e-4),
        ({"name": "seeking"}, {"lora_r": 0}, 3e-4),
        ({"name": "laten"}, {"learning_rate": 9e-4}, 3e-5),
    ],
)
def test_the_recipe_s_rate_comes_before_the_run_s(recipe: dict, train: dict, rate: float) -> None:
    assert resolve(RecipeConfig(**recipe)).train_of(TrainConfig(**train)).learning_rate == rate


def test_the_demo_trains_full_weights_at_the_rates_that_its_figures_are_of() -> None:
    config = load_config(DEMO)
    trained = {name: recipe.train_of(config.train) for name, recipe in recipes_of(config).items()}
    assert {train.lora_r for train in trained.values()} == {0}
    assert {name: train.learning_rate for name, train in trained.items()} == {
        None: 1e-3,
        "cosine": 3e-4,
        "cross_entropy": 1e-3,
    }
