"""What is said of choices that nobody has seen work, and that nothing is said of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_config

from semalign.config import ModelConfig, RecipeConfig, TrainConfig
from semalign.estimate.cautions import cautions

FLOAT = {"teacher": torch.zeros(1), "student": torch.zeros(1)}


@pytest.mark.parametrize(
    ("train", "recipe", "said"),
    [
        (TrainConfig(), RecipeConfig(), None),
        (TrainConfig(learning_rate=1e-3), RecipeConfig(), None),
        (TrainConfig(learning_rate=2e-3), RecipeConfig(), "0.002 is 10 times the default of LoRA"),
        (TrainConfig(lora_r=0), RecipeConfig(), None),
        (
            TrainConfig(lora_r=0, learning_rate=1e-3),
            RecipeConfig(),
            "0.001 is 100 times the default of full weights",
        ),
        (
            TrainConfig(),
            RecipeConfig(learning_rate=1e-3, lora_r=0),
            "0.001 is 100 times the default of full weights",
        ),
    ],
)
def test_a_rate_far_above_the_default_is_told(
    tmp_path: Path, train: TrainConfig, recipe: RecipeConfig, said: str | None
) -> None:
    config = tiny_config((tmp_path, tmp_path), tmp_path, tmp_path, train=train, recipe=recipe)
    found = cautions(config, FLOAT)
    assert len(found) == (said is not None) and (said or "") in " ".join(found)
    embedded = replace(config, student=ModelConfig("embedded:student"))
    assert cautions(embedded, FLOAT) == [], "trained from nothing, it stands such rates"


def test_bfloat16_is_told_where_the_cpu_cannot_do_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config((tmp_path, tmp_path), tmp_path, tmp_path, train=TrainConfig())
    half = {"teacher": torch.zeros(1).bfloat16(), "student": torch.zeros(1)}
    for capability, count in (("AVX2", 1), ("AVX512", 0)):
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda told=capability: told)
        found = cautions(config, half)
        assert len(found) == count and all("the teacher is in bfloat16" in line for line in found)
        assert cautions(config, FLOAT) == []
        assert cautions(config, {"teacher": torch.zeros(1, device="meta").bfloat16()}) == []


def test_given_answers_are_told_where_the_student_could_write_them(tmp_path: Path) -> None:
    config = tiny_config((tmp_path, tmp_path), tmp_path, tmp_path, train=TrainConfig())
    (said,) = cautions(config, FLOAT, has_prompts=True)
    assert said.startswith("data.completions: on given answers")
    assert cautions(config, FLOAT) == [], "plain text has nothing to answer"
    own = replace(config, data=replace(config.data, completions="student"))
    embedded = replace(config, student=ModelConfig("embedded:student"))
    assert cautions(own, FLOAT, has_prompts=True) == cautions(embedded, FLOAT, has_prompts=True) == []
