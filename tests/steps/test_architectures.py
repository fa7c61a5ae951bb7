"""Every architecture that the README lists runs from its rows to a report: full weights, LoRA, and KL over the vocabulary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import ARCHITECTURES, full_weights, save_model, tiny_config, tiny_model
from transformers import AutoModelForCausalLM

from semalign.config import EvaluationConfig, PairingConfig
from semalign.run.files import read_json
from semalign.steps.pipeline import transfer

BASELINES = {"lora": {"name": "aligned", "lora_r": 4}, "kl": {}}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_transfer_finishes(kind: str, rows_file: Path, tmp_path: Path) -> None:
    teacher = save_model(tiny_model(kind, layers=4, wide=True, seed=1), tmp_path / "teacher")
    student = save_model(tiny_model(kind, layers=3, wide=False, seed=2), tmp_path / "student")
    config = tiny_config((teacher, student), rows_file, tmp_path / "run", heldout_rows=4)
    config = replace(
        config,
        pairing=PairingConfig(num_layers=2),
        train=full_weights(max_steps=2, per_device_train_batch_size=8),
        evaluation=EvaluationConfig(baselines=BASELINES, cka_rows=2),
    )
    run = transfer(config)
    assert run.report.is_file()
    metrics = read_json(run.metrics, "evaluate")
    assert metrics["closeness"].keys() >= {"before", "after", *BASELINES}
    untouched = dict(AutoModelForCausalLM.from_pretrained(student).state_dict())
    for name in (None, *BASELINES):
        model = AutoModelForCausalLM.from_pretrained(run.training(name) / "student")
        trained = dict(model.state_dict())
        moved = {key for key, weight in untouched.items() if not torch.equal(weight, trained[key])}
        inside = {key for key in untouched if ".1." in key or ".2." in key}  # the upper two of three layers
        assert moved and moved <= inside, f"{name}: {sorted(moved - inside) or 'nothing moved'}"
