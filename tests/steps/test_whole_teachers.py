"""A teacher whose layers are not known teaches by its distribution; what needs its layers is refused before any weight is read."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import COMMON, EXTRA, WIDE, config_of, save_model, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from semalign.config import EvaluationConfig, ModelConfig, PairingConfig, RecipeConfig, TransferConfig
from semalign.errors import ConfigError, ModelError
from semalign.estimate.check import check
from semalign.models.capture import Point, capture
from semalign.models.finding import load_shape
from semalign.models.loading import load
from semalign.run.files import read_json
from semalign.signals.passes import topk
from semalign.steps.pipeline import transfer

CONSOLE = Console(file=io.StringIO())
KINDS: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 4, "num_hidden_layers": 4},
    "bloom": {"n_layer": 4, "n_head": 4},
    "jamba": {"num_hidden_layers": 4, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    # A Gemma 4 whose layers read more than the stream.
    "gemma4_text": EXTRA["gemma4_text"] | {"num_hidden_layers": 4, "hidden_size_per_layer_input": 8},
}


def teacher_of(kind: str, folder: Path) -> Path:
    own = WIDE | {"vocab_size_per_layer_input": 320} if kind == "gemma4_text" else {"hidden_size": 48}
    if kind == "jamba":
        own = WIDE | {"mamba_d_state": 4, "mamba_dt_rank": 4}
    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, **COMMON | own | KINDS[kind])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    return save_model(model, folder)


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return save_model(tiny_model("llama", layers=3, wide=False, seed=2), tmp_path / "student")


def config(teacher: Path, student: Path, rows: Path, out: Path, **changes: Any) -> TransferConfig:
    made = config_of((teacher, student), rows, out, pairing=PairingConfig(num_layers=2))
    return replace(made, **{"recipe": RecipeConfig()} | changes)


@pytest.mark.parametrize("kind", KINDS)
def test_it_teaches_by_its_distribution(kind: str, student: Path, rows_file: Path, tmp_path: Path) -> None:
    teacher = teacher_of(kind, tmp_path / "teacher")
    evaluation = EvaluationConfig(baselines={"kl": {}})
    run = transfer(config(teacher, student, rows_file, tmp_path / "run", evaluation=evaluation))
    metrics = read_json(run.metrics, "evaluate")["closeness"]
    assert metrics["after"]["kl"] < metrics["before"]["kl"] and metrics["kl"]["kl"] < metrics["before"]["kl"]
    assert run.report.is_file() and read_json(run.scores, "attribute")["layers"] == []
    assert [p["teacher"] for p in read_json(run.pairs, "pair")["pairs"]] == [2, 4]


def test_its_top_k_is_that_of_its_own_logits(tmp_path: Path) -> None:
    decoder = load(ModelConfig(str(teacher_of("mamba", tmp_path))), needs_layers=False)
    assert not decoder.has_layers and decoder.num_layers == 4
    ids = torch.randint(6, 300, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = decoder.model(ids).logits[0]
        found, values, lse = topk(decoder.head(), decoder.forward(ids)[0], 5)
    assert torch.equal(found, logits.topk(5).indices)
    torch.testing.assert_close(values - lse, logits.log_softmax(1).topk(5).values, rtol=1e-4, atol=1e-5)


def test_check_estimates_it(student: Path, rows_file: Path, tmp_path: Path) -> None:
    found = check(
        config(teacher_of("mamba", tmp_path / "teacher"), student, rows_file, tmp_path / "run"), CONSOLE
    )
    assert found["estimate"]["cache_bytes"] > 0 and found["pair_figures"] == []


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({"recipe": RecipeConfig("aligned")}, "recipe: aligned"),
        ({"pairing": PairingConfig(selection="attribution", num_layers=1)}, "pairing.selection: attribution"),
        ({"pairing": PairingConfig(match="cka", num_layers=1)}, "pairing.match: cka"),
        ({"evaluation": EvaluationConfig(baselines={"cosine": {}})}, "cosine: cosine"),
        ({"recipe": RecipeConfig("seeking")}, "recipe: seeking"),
    ],
)
def test_what_needs_its_layers_is_refused(
    changes: dict[str, Any], asked: str, student: Path, rows_file: Path, tmp_path: Path
) -> None:
    made = config(teacher_of("mamba", tmp_path / "teacher"), student, rows_file, tmp_path / "run", **changes)
    for command in (transfer, partial(check, console=CONSOLE)):
        with pytest.raises(ConfigError, match=rf"knows for {asked}.* take recipe\.name: aligned_output"):
            command(made)


def test_as_a_student_it_is_refused_with_what_it_can_do(tmp_path: Path) -> None:
    folder = teacher_of("mamba", tmp_path)
    with pytest.raises(ModelError, match=r"As a teacher it will do with recipe\.name: aligned_output"):
        load_shape(ModelConfig(str(folder)))
    with pytest.raises(ModelError, match="not been tested"):
        load_shape(ModelConfig(str(folder), offload="cpu"))
    decoder = load(ModelConfig(str(folder)), needs_layers=False)
    with (
        pytest.raises(ConfigError, match="whose layers SemAlign knows"),
        capture(decoder, [Point(1, "block")]),
    ):
        pass
