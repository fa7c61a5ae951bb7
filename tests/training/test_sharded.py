"""Layers that are split over two processes (gloo) train as whole ones do, and a killed training goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_distributed import assert_same, launch, losses, write_config
from torch import nn

from semalign.config.parsing import load_config
from semalign.errors import ConfigError
from semalign.training.sharded import check_processes, shard


@pytest.fixture(scope="module", params=[0, 4], ids=["full weights", "LoRA"])
def pair_of_runs(
    request: pytest.FixtureRequest,
    tiny_pair: tuple[Path, Path],
    rows_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], Path]:
    """What is trained, and the run of one process with the global batch of two."""
    options: dict[str, Any] = {"lora_r": request.param, "activation_checkpointing": bool(request.param)}
    folder = tmp_path_factory.mktemp("whole")
    config = write_config(folder / "x", tiny_pair, rows_file, gradient_accumulation_steps=2, **options)
    done = launch(config, 1)
    assert done.returncode == 0, done.stderr
    return options, config.parent / "run"


def test_split_layers_train_as_whole_ones_and_a_killed_training_goes_on(
    pair_of_runs: tuple[dict[str, Any], Path], tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    options, alone = pair_of_runs
    config = write_config(tmp_path / "x", tiny_pair, rows_file, fsdp=True, **options)
    run = config.parent / "run"
    killed = launch(config, 2, AT="step 5", SEND="SIGKILL")
    assert killed.returncode != 0 and "(SIGKILL)" in killed.stderr
    assert (run / "checkpoint-4").exists() and not (run / "train.json").exists()
    done = launch(config, 2)
    assert done.returncode == 0, done.stderr
    assert len(losses(run)) == 9
    assert_same(run, alone)
    assert json.loads((run / "train.json").read_text())["processes"] == 2


def test_what_cannot_be_split_is_refused() -> None:
    layers = nn.ModuleList([nn.Linear(2, 2, bias=False)])
    model = nn.Module()
    model.layers, model.projector = layers, nn.Linear(2, 2)
    with pytest.raises(
        ConfigError, match=r"^train\.fsdp: expected a layer loss that trains nothing of its own"
    ):
        shard(model, layers, torch.device("cpu"))
    layers[0].weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(
        ConfigError, match=r"^train\.fsdp: expected a student whose weights are in floating point"
    ):
        shard(model, layers, torch.device("cpu"))


def test_one_process_has_nothing_to_split_over(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = load_config(write_config(tmp_path / "x", tiny_pair, rows_file, fsdp=True))
    with pytest.raises(ConfigError, match=r"^train\.fsdp: expected several processes .*got one; launch"):
        check_processes(config)


SPLIT = """
import sys
from pathlib import Path
from torch import nn
from semalign.models.loading import load
from semalign.run import ranks
from semalign.training.sharded import copied, shard

ranks.start()
decoder = load(sys.argv[1])
decoder.model.requires_grad_(False)
before = decoder.layers[1:]
with copied(decoder, 1):
    model = nn.Module()
    model.layers, model.norm = nn.ModuleList(decoder.layers[1:]), decoder.final_norm
    shard(model, model.layers, decoder.device)
    parameters = list(model.layers.parameters())
    held = sum(p.to_local().numel() for p in parameters) / sum(p.numel() for p in parameters)
    found = f"{held} {type(next(model.norm.parameters()).data).__name__}"
    Path(sys.argv[2], f"{ranks.rank()}.txt").write_text(found)
assert decoder.layers[1:] == before
ranks.leave()
"""


def test_each_process_holds_its_part_of_the_layers_and_all_of_the_rest(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    script = tmp_path / "split.py"
    script.write_text(SPLIT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(script), str(tiny_pair[1]), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["0.5 Tensor"] * 2
