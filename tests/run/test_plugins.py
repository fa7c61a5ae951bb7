"""A method with a loss of its own, and an architecture, each added by one file on Python's path, as CONTRIBUTING.md says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny import COMMON, NARROW, WIDE, save_model
from transformers import AutoConfig, AutoModelForCausalLM

GUIDE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
METHOD, ARCHITECTURE = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def plugged_in(folder: Path, name: str, code: str) -> dict[str, str]:
    """The environment in which a file of that code is on Python's path."""
    package = folder / "elsewhere" / "semalign_plugins"
    package.mkdir(parents=True)
    (package / f"{name}.py").write_text(code, encoding="utf-8")
    before = os.environ.get("PYTHONPATH")
    path = [str(package.parent), *([before] if before else [])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}


def run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "semalign", *arguments, "--quiet"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_method_with_a_new_loss_is_one_file(config_file: Path, tmp_path: Path) -> None:
    environment = plugged_in(tmp_path, "huber", METHOD)
    done = run(["transfer", str(config_file), "--recipe.name", "huber"], environment)
    assert done.returncode == 0, done.stderr
    folder = config_file.parent / "run"
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert all(0 < line["loss_layer"] < float("inf") for line in lines) and len(lines) > 1
    for line in lines:
        assert line["loss"] == pytest.approx(line["loss_output"] + 0.05 * line["loss_layer"], rel=1e-3)
    card = (folder / "student" / "README.md").read_text(encoding="utf-8")
    assert "huber(h_S - target), mean over channels" in card
    assert json.loads((folder / "metrics.json").read_text())["recipe"] == "huber"
    assert json.loads((folder / "environment.json").read_text())["plugins"] == ["semalign_plugins.huber"]
    # With another formula the same recipe is another training; without a change it is done.
    trained = (folder / "train.json").read_bytes()
    again = ["train", str(config_file), "--recipe.name", "huber"]
    assert run(again, environment).returncode == 0 and (folder / "train.json").read_bytes() == trained
    (tmp_path / "elsewhere" / "semalign_plugins" / "huber.py").write_text(
        METHOD + "\n# mended\n", encoding="utf-8"
    )
    assert run(again, environment).returncode == 0 and (folder / "train.json").read_bytes() != trained


def test_without_the_file_the_method_is_not_known(config_file: Path) -> None:
    done = run(["transfer", str(config_file), "--recipe.name", "huber"], dict(os.environ))
    assert done.returncode == 3 and "expected the name of a method, got 'huber'" in done.stderr


def test_an_architecture_is_one_file(rows_file: Path, tmp_path: Path) -> None:
    sizes = (("teacher", 4, WIDE), ("student", 3, NARROW))
    for name, layers, size in sizes:
        config = AutoConfig.for_model("helium", num_hidden_layers=layers, **COMMON, **size)
        torch.manual_seed(layers)
        save_model(AutoModelForCausalLM.from_config(config, dtype=torch.float32), tmp_path / name)
    values = {
        "teacher": {"model_name_or_path": "teacher"},
        "student": {"model_name_or_path": "student"},
        "data": {"dataset_name": str(rows_file), "heldout_rows": 4, "max_length": 64},
        "output_dir": str(tmp_path / "run"),
        "pairing": {"num_layers": 2},
        "train": {"num_train_epochs": 1, "per_device_train_batch_size": 8, "lora_r": 2},
        "cache": {"shard_rows": 8},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    refused = run(["transfer", str(path)], dict(os.environ))
    assert refused.returncode == 5 and "'helium'" in refused.stderr
    done = run(["transfer", str(path)], plugged_in(tmp_path, "helium", ARCHITECTURE))
    assert done.returncode == 0, done.stderr
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student").config.model_type == "helium"
    assert (tmp_path / "run" / "report.html").exists()


def test_a_plugin_that_cannot_be_imported_is_named(config_file: Path, tmp_path: Path) -> None:
    done = run(["transfer", str(config_file)], plugged_in(tmp_path, "broken", "import no_such_module\n"))
    assert done.returncode == 3
    assert "semalign_plugins.broken: expected a module that can be imported" in " ".join(done.stderr.split())
