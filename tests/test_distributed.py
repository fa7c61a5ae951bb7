"""Two processes on the CPU (gloo): the same result as one, shards from both, and a killed process's run goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from semalign.run.files import read_tensors

STEPS = ("attribute", "pair", "cache", "train")
# Runs the steps of a config, in every process of a launch; process 1 sends itself a signal where the test says so.
DRIVER = """
import os, signal, sys
from semalign.cli import main
from semalign.run import ranks
from semalign.signals.shards import ShardStore
from semalign.training.callbacks import StopOnSignal

def signalled(function, place):
    calls = []
    def wrapped(*args, **kwargs):
        result = function(*args, **kwargs)
        calls.append(None)
        if ranks.rank() == 1 and os.environ.get("AT") == f"{place} {len(calls)}":
            os.kill(os.getpid(), signal.Signals[os.environ["SEND"]])
        return result
    return wrapped

ShardStore.write = signalled(ShardStore.write, "shard")
StopOnSignal.on_step_end = signalled(StopOnSignal.on_step_end, "step")
for step in os.environ["STEPS"].split():
    if code := main([step, sys.argv[1], "--quiet"]):
        raise SystemExit(code)
"""


def write_config(folder: Path, pair: tuple[Path, Path], rows: Path, **train: Any) -> Path:
    folder.mkdir(parents=True)
    values = {
        "teacher": {"model_name_or_path": str(pair[0])},
        "student": {"model_name_or_path": str(pair[1])},
        "data": {"dataset_name": str(rows), "max_length": 64, "heldout_rows": 3},
        "output_dir": str(folder / "run"),
        "pairing": {"num_layers": 2},
        "train": {
            "num_train_epochs": 3,
            "per_device_train_batch_size": 4,
            "save_steps": 2,
            "lora_r": 0,
            "learning_rate": 1e-3,
        }
        | train,
        "cache": {"shard_rows": 3, "batch_size": 3, "dtype": "float32"},
        "recipe": {"name": "aligned", "layer_weight": 0.1},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    (folder / "driver.py").write_text(DRIVER)
    return folder / "run.yaml"


def launch(
    config: Path, processes: int, *, steps: str = " ".join(STEPS), **environment: str
) -> subprocess.CompletedProcess:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [*command, str(config.parent / "driver.py"), str(config)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "STEPS": steps, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def losses(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]


def assert_same(ours: Path, expected: Path) -> None:
    """Losses, maps and weights of two runs agree to float32 accuracy."""
    for name in ("loss", "loss_output", "loss_layer"):
        values, wanted = ([line[name] for line in losses(r)] for r in (ours, expected))
        assert values == pytest.approx(wanted, rel=1e-4), name
    for file in ("targets/maps.safetensors", "student/model.safetensors"):
        mine, theirs = read_tensors(ours / file), read_tensors(expected / file)
        for key, value in theirs.items():
            torch.testing.assert_close(mine[key], value, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def alone(tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with the global batch of two: 2 batches of 4 rows a step, and a last step of one row for one of them."""
    config = write_config(
        tmp_path_factory.mktemp("alone") / "x", tiny_pair, rows_file, gradient_accumulation_steps=2
    )
    done = launch(config, 1)
    assert done.returncode == 0, done.stderr
    return config.parent / "run"


@pytest.fixture(scope="module")
def together(tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, all steps, as a user launches them."""
    config = write_config(tmp_path_factory.mktemp("together") / "x", tiny_pair, rows_file)
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
    launcher += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "semalign", "transfer", str(config), "--json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (printed,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert json.loads(printed)["kl_gap_closed"] is not None, "one process alone prints the result"
    return config.parent / "run"


def test_two_processes_train_what_one_does(alone: Path, together: Path) -> None:
    assert len(losses(alone)) == 9, "17 rows make 3 steps of up to 8 rows an epoch"
    assert_same(together, alone)
    assert json.loads((together / "train.json").read_text())["processes"] == 2
    assert (together / "report.html").exists()


def test_both_processes_wrote_their_shards(alone: Path, together: Path) -> None:
    for store in ("student", "teacher", "heldout"):
        entries = sorted((together / "targets" / store).glob("shard-*.json"))
        writers = [json.loads(path.read_text())["process"] for path in entries]
        assert writers == [n % 2 for n in range(len(entries))]
        for path in sorted((alone / "targets" / store).glob("*.safetensors")):
            mine, theirs = load_file(path), load_file(together / "targets" / store / path.name)
            assert mine.keys() == theirs.keys()
            for key, value in mine.items():
                torch.testing.assert_close(theirs[key], value, rtol=1e-3, atol=1e-4)
    assert json.loads((together / "targets" / "manifest.json").read_text())["processes"] == 2


def test_a_run_with_a_killed_process_goes_on_to_the_same_result(
    together: Path, tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    """Killed in caching, killed in training, told to stop in training; each time the same command goes on."""
    config = write_config(tmp_path / "x", tiny_pair, rows_file)
    run = config.parent / "run"
    killed = launch(config, 2, AT="shard 2", SEND="SIGKILL")
    assert killed.returncode != 0 and "(SIGKILL)" in killed.stderr
    shards = {path: path.stat().st_mtime_ns for path in run.rglob("shard-*.json")}
    assert shards and not (run / "targets" / "manifest.json").exists()

    killed = launch(config, 2, AT="step 5", SEND="SIGKILL")
    assert killed.returncode != 0 and "(SIGKILL)" in killed.stderr
    assert all(path.stat().st_mtime_ns == changed for path, changed in shards.items()), (
        "no shard is made again"
    )
    assert (run / "checkpoint-4").exists()

    stopped = launch(config, 2, AT="step 1", SEND="SIGTERM")
    assert stopped.returncode != 0 and "stopped after step 6" in stopped.stderr, (
        "both stop after the same step"
    )
    assert (run / "checkpoint-6").exists() and not (run / "train.json").exists()

    done = launch(config, 2)
    assert done.returncode == 0, done.stderr
    assert_same(run, together)
