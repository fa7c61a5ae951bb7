"""The paper's protocol as configs: its figures, and what it means for models of the paper's shapes, which need no weights for that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from semalign.cli import main
from semalign.config import TransferConfig
from semalign.config.parsing import load_config
from semalign.estimate.cost import record_sizes
from semalign.models.decoder import Decoder, lora_modules
from semalign.models.layouts import shape_of
from semalign.models.soundness import check_pair
from semalign.signals.plan import Plan
from semalign.signals.request import request_of
from semalign.steps.pair import pair_layers

FOLDER = Path(__file__).parents[1] / "examples" / "paper"
# Rows, epochs, rate and benchmark as the paper has them (arXiv 2510.24208, version 1).
PROTOCOL = {
    "mmlu": (1000, 5, 3e-4),
    "gsm8k": (1000, 5, 3e-4),
    "humaneval": (1000, 3, 3e-5),
    "mbpp": (300, 5, 3e-4),
}
SHAPES: dict[str, dict[str, Any]] = {
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
}


@pytest.mark.parametrize("name", PROTOCOL)
def test_a_config_is_the_paper_s_protocol(name: str) -> None:
    config = load_config(FOLDER / f"{name}.yaml")
    rows, epochs, rate = PROTOCOL[name]
    t = config.train
    assert (config.data.max_rows, t.num_train_epochs, t.learning_rate) == (rows, epochs, rate)
    assert t.per_device_train_batch_size * t.gradient_accumulation_steps == 64
    assert (t.lora_r, t.lora_target_modules) == (16, ("up_proj", "down_proj", "v_proj", "o_proj"))
    assert (config.pairing.selection, config.pairing.num_layers, config.recipe.name) == (
        "attribution",
        1,
        "cosine",
    )
    assert config.evaluation.harness == (name,)
    assert bool(config.evaluation.allow_code_execution) == (name in ("humaneval", "mbpp"))
    assert sorted(PROTOCOL) == sorted(path.stem for path in FOLDER.glob("*.yaml"))


def on_meta(size: str, vocabulary: int) -> Decoder:
    """A model of Llama 2's shape without weights; its code variants have a few tokens more."""
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=4096, **SHAPES[size])
    with torch.device("meta"):
        return Decoder(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), None)


@pytest.mark.parametrize(
    ("name", "vocabulary"), [*((name, 32000) for name in PROTOCOL), ("humaneval", 32016), ("mbpp", 32001)]
)
def test_models_of_the_paper_s_shapes_go_through_it(name: str, vocabulary: int) -> None:
    config: TransferConfig = load_config(FOLDER / f"{name}.yaml")
    teacher, student = on_meta("13b", vocabulary), on_meta("7b", 32000)
    shapes = [shape_of(decoder.config, "x") for decoder in (teacher, student)]
    check_pair(*shapes, allow_smaller_teacher=False)
    scores = [1.0 if layer == 23 else 0.5 for layer in range(1, 41)]
    (pair,) = pair_layers(scores, 40, 32, config.pairing)
    assert pair.teacher == 23 and pair.student == 19, (
        "the first layer whose depth in the teacher is at least 23: 19 * 40 / 32"
    )
    plan = Plan((pair,), (pair.student,), ())
    modules = lora_modules(student, plan.trained_layers, config.train.lora_target_modules)
    assert [m.rsplit(".", 1)[-1] for m in modules] == ["v_proj", "o_proj", "up_proj", "down_proj"]
    assert all(".18." in m for m in modules)
    request, wanted = request_of(config, plan)
    assert wanted[0] and ("semantic", "mlp") in wanted and request.cut == 18
    sizes = record_sizes(request, wanted, 5120, 4096)
    # A frozen prefix of 4,096 numbers a token in two bytes each; no size holds the vocabulary.
    assert sizes.token == 2 * 4096 and sizes.position < 8 * (5120 + 4096)
    entered = torch.zeros(1, 5, 4096, device="meta", dtype=torch.bfloat16)
    assert student.sublayer(pair.student, "mlp")(entered).shape == (1, 5, 4096)


@pytest.mark.parametrize("name", ["mmlu", "gsm8k"])
def test_check_takes_it_with_models_that_are_here(
    name: str,
    tiny_pair: tuple[Path, Path],
    rows_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = {
        "teacher.model_name_or_path": tiny_pair[0],
        "student.model_name_or_path": tiny_pair[1],
        "data.dataset_name": rows_file,
        "data.heldout_rows": 3,
        "data.max_length": 64,
        "evaluation.harness": [],
        "output_dir": tmp_path / "run",
    }
    words = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
    assert main(["check", str(FOLDER / f"{name}.yaml"), *words, "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["pairs"]) == 1 and found["pairs_are_provisional"]
