"""A killed run goes on and ends with the same weights as a straight one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean

import pytest
import torch
import yaml
from safetensors.torch import load_file

from semalign.cli import main
from semalign.config.parsing import read_yaml
from semalign.run.files import write_yaml


def write_config(folder: Path, pair: tuple[Path, Path], rows: Path) -> Path:
    folder.mkdir()
    values = {
        "teacher": {"model_name_or_path": str(pair[0])},
        "student": {"model_name_or_path": str(pair[1])},
        "data": {"dataset_name": str(rows), "max_length": 64},
        "output_dir": str(folder / "run"),
        "pairing": {"num_layers": 2},
        "train": {
            "num_train_epochs": 6,
            "per_device_train_batch_size": 4,
            "save_steps": 4,
            "lora_r": 0,
            "learning_rate": 1e-3,
        },
        "cache": {"shard_rows": 8},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return folder / "run.yaml"


def train_until(config: Path, stop: signal.Signals | None, step: int) -> int:
    """Run the first four steps in a process of its own; send a signal once train.jsonl has that many lines."""
    code = (
        "import sys; from semalign.config.parsing import load_config; from semalign.steps.pipeline import transfer;"
        "transfer(load_config(sys.argv[1]), ('attribute', 'pair', 'cache', 'train'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(config)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    log = config.parent / "run" / "train.jsonl"
    deadline = time.monotonic() + 120
    while stop is not None and process.poll() is None and time.monotonic() < deadline:
        if log.exists() and len(log.read_text().splitlines()) >= step:
            process.send_signal(stop)
            break
        time.sleep(0.005)
    return process.wait(120)


@pytest.fixture(scope="module")
def straight(tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = write_config(tmp_path_factory.mktemp("runs") / "straight", tiny_pair, rows_file)
    assert train_until(config, None, 0) == 0
    return config.parent / "run"


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_resumes_to_the_same_weights(
    straight: Path, tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    config = write_config(tmp_path / "split", tiny_pair, rows_file)
    assert train_until(config, stop, 10) != 0
    run = config.parent / "run"
    assert not (run / "train.json").exists() and list(run.glob("checkpoint-*"))
    assert train_until(config, None, 0) == 0
    expected, ours = (load_file(r / "student" / "model.safetensors") for r in (straight, run))
    assert all(torch.equal(expected[name], ours[name]) for name in expected)
    logs = [
        [json.loads(line) for line in (r / "train.jsonl").read_text().splitlines()] for r in (straight, run)
    ]
    assert [line["step"] for line in logs[1]] == list(range(1, 31))
    assert [line["loss"] for line in logs[1]] == pytest.approx([line["loss"] for line in logs[0]])
    losses = [json.loads((r / "train.json").read_text())["loss"] for r in (straight, run)]
    assert losses[1] == pytest.approx(losses[0]) == pytest.approx(fmean(line["loss"] for line in logs[0]))
    assert not list(run.glob("checkpoint-*")), "checkpoints are removed once the student is saved"


def test_a_report_needs_no_model(straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(straight), "--quiet"]) == 6
    assert "run the evaluate step" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("name", "command", "mended_by"),
    [
        ("student/model.safetensors", "evaluate", "train"),
        ("student/tokenizer.json", "evaluate", "train"),
        ("train.jsonl", "report", "train"),
        ("train.json", "evaluate", "train"),
        ("targets/teacher_head.safetensors", "evaluate", "cache"),
        ("targets/cka.safetensors", "evaluate", "cache"),
        ("targets/heldout/shard-00000.safetensors", "evaluate", "cache"),
        ("scores.json", "pair", "attribute"),
        ("metrics.json", "report", "evaluate"),
        ("config.yaml", "report", "transfer"),
    ],
)
def test_the_step_that_a_sentence_names_mends_what_it_is_about(
    measured_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    command: str,
    mended_by: str,
) -> None:
    config = yaml.safe_load((measured_run / "run.yaml").read_text()) | {"output_dir": str(tmp_path / "run")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    shutil.copytree(measured_run / "run", tmp_path / "run")
    # The copy has a place of its own, which its config says.
    kept = read_yaml(tmp_path / "run" / "config.yaml") | {"output_dir": str(tmp_path / "run")}
    write_yaml(tmp_path / "run" / "config.yaml", kept)
    path = tmp_path / "run" / name
    content = path.read_bytes()
    path.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    if command == "evaluate" and name != "train.json":
        (tmp_path / "run" / "metrics.json").unlink()  # else nothing is read
    target = str(tmp_path / ("run" if command == "report" else "run.yaml"))
    assert main([command, target, "--quiet"]) == 6
    said = " ".join(capsys.readouterr().err.split())
    assert f"run `semalign {mended_by}` again" in said
    assert main([mended_by, str(tmp_path / "run.yaml"), "--quiet"]) == 0
    assert main([command, target, "--quiet"]) == 0


@pytest.fixture(scope="module")
def measured_run(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a config and its finished run, with held-out rows."""
    path = write_config(tmp_path_factory.mktemp("runs") / "measured", tiny_pair, rows_file)
    config = yaml.safe_load(path.read_text())
    config["data"]["heldout_rows"] = 4
    config["train"]["num_train_epochs"] = 1
    path.write_text(yaml.safe_dump(config))
    assert main(["transfer", str(path), "--quiet"]) == 0
    return path.parent


def test_a_run_of_an_earlier_version_is_refused_in_one_sentence(
    measured_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    plan = '{"pairs": [], "note": "edited by hand"}'
    for name, content in (("config.yaml", "seed: 0\n"), ("environment.json", "{}\n"), ("pairs.json", plan)):
        (run / name).write_text(content)
    arguments = ["transfer", str(measured_run / "run.yaml"), "--output_dir", str(run), "--quiet"]
    assert main(arguments) == 6
    said = " ".join(capsys.readouterr().err.split())
    assert "holds a run of an earlier version, whose files have no digests" in said
    assert (run / "pairs.json").read_text() == plan
