"""Seeking on tiny models: sensitivities as autograd has them, a start that changes nothing, a whole run with resume."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import STEPS, CutError, cut_at, full_weights, save_model, tiny_config, tiny_model
from transformers import AutoModelForCausalLM

from semalign.config import AttributionConfig, EvaluationConfig, RecipeConfig, TransferConfig
from semalign.data.batches import batch_inputs, labels_of
from semalign.data.inputs import Inputs, load_inputs
from semalign.errors import ConfigError, ModelError
from semalign.methods import methods, resolve, starts
from semalign.methods.seeking import sensitivities
from semalign.models.decoder import Decoder
from semalign.models.layouts import PROJECTIONS
from semalign.models.loading import load
from semalign.run.files import read_tensors
from semalign.signals.plan import Plan
from semalign.steps.pipeline import transfer
from semalign.training.stages import with_recipe
from semalign.training.student import trainable

VARIANTS = ("seeking", "seeking_corrected")


config_of = partial(
    tiny_config,
    attribution=AttributionConfig(rows=3),
    recipe=RecipeConfig(name="seeking"),
    train=full_weights(num_train_epochs=2, per_device_train_batch_size=4, save_steps=2),
    evaluation=EvaluationConfig(cka_rows=0),
)


@pytest.fixture(scope="module")
def inputs(tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return load_inputs(config_of(tiny_pair, rows_file, tmp_path_factory.mktemp("inputs")))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
def test_sensitivities_are_those_of_the_whole_model(kind: str, inputs: Inputs) -> None:
    decoder = Decoder(tiny_model(kind, layers=3, wide=True), None, kind)
    samples = inputs.train[:3]
    expected: dict[str, torch.Tensor] = {}
    for sample in samples:
        ids, states = batch_inputs(decoder, [sample])
        logits = decoder.model(ids).logits[states]
        decoder.model.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels_of(sample)).backward()
        for name, parameter in decoder.model.named_parameters():
            if "layers." in name:
                product = (parameter * parameter.grad).abs().detach()
                expected[name] = expected.get(name, 0) + product
    found = {
        f"model.layers.{layer - 1}.{name}": values
        for layer, sums in sensitivities(decoder, samples)
        for name, values in sums.items()
    }
    assert found.keys() == expected.keys()
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name], rtol=1e-3, atol=1e-6)


def test_half_precision_weights_come_back_as_they_were(inputs: Inputs) -> None:
    decoder = Decoder(tiny_model("llama", layers=2, wide=True).to(torch.bfloat16), None)
    before = {n: p.detach().clone() for n, p in decoder.model.named_parameters()}
    sums = dict(sensitivities(decoder, inputs.train[:2]))
    assert all(v.dtype == torch.float32 for layer in sums.values() for v in layer.values())
    assert all(torch.equal(before[n], p) for n, p in decoder.model.named_parameters())
    assert all(p.grad is None for p in decoder.model.parameters()), "no gradient outlives its layer"


def made(
    pair: tuple[Path, Path], rows: Path, inputs: Inputs, name: str, **recipe: Any
) -> tuple[dict[str, torch.Tensor], dict[str, Any], TransferConfig, Decoder]:
    config = config_of(pair, rows, Path("unused"), recipe=RecipeConfig(name=name, **recipe))
    config = with_recipe(config, resolve(config.recipe))
    teacher, student = load(config.teacher), load(config.student)
    tensors, facts = starts()[name].make(teacher, student, inputs.train, config, resolve(config.recipe))
    return tensors, facts, config, student


@pytest.mark.parametrize("name", VARIANTS)
def test_the_student_starts_unchanged(
    tiny_pair: tuple[Path, Path], rows_file: Path, inputs: Inputs, name: str
) -> None:
    tensors, facts, config, student = made(tiny_pair, rows_file, inputs, name)
    ids, _ = batch_inputs(student, inputs.train[:3])
    with torch.no_grad():
        expected = student.model(ids).logits
        with trainable(student, Plan((), (1, 2, 3)), config, "seeking", tensors) as model:
            modules = [m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "scaling")]
            torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-4)
            assert len(modules) == 3 * len(PROJECTIONS)
            assert all(float(m.lora_B["default"].weight.norm()) > 0.1 for m in modules)
    assert len(facts["teacher_layers"]) == 3 and facts["teacher_layers"] == sorted(facts["teacher_layers"])


def test_factors_are_those_of_the_named_window(
    tiny_pair: tuple[Path, Path], rows_file: Path, inputs: Inputs
) -> None:
    # At rank 32, the smaller side of every student matrix, B A is the window itself.
    tensors, facts, config, student = made(tiny_pair, rows_file, inputs, "seeking", lora_r=32)
    teacher = load(config.teacher)
    for layer, (source, windows) in enumerate(zip(facts["teacher_layers"], facts["windows"], strict=True), 1):
        for name, (top, left) in windows.items():
            height, width = student.projections(layer)[name].weight.shape
            window = teacher.projections(source)[name].weight[top : top + height, left : left + width]
            b, a = tensors[f"{layer}.{name}.lora_B"], tensors[f"{layer}.{name}.lora_A"]
            torch.testing.assert_close(config.train.lora_alpha / 32 * b @ a, window, rtol=0, atol=1e-4)


def test_corrected_windows_agree(tiny_pair: tuple[Path, Path], rows_file: Path, inputs: Inputs) -> None:
    _, facts, _, _ = made(tiny_pair, rows_file, inputs, "seeking_corrected")
    channels = {
        corner[axis]
        for windows in facts["windows"]
        for name, corner in windows.items()
        for axis in ((0,) if name in ("o_proj", "down_proj") else (1,))
    }
    assert len(channels) == 1
    for w in facts["windows"]:
        assert w["gate_proj"][0] == w["up_proj"][0] == w["down_proj"][1]
        assert w["k_proj"][0] == w["v_proj"][0] and w["q_proj"][0] == w["o_proj"][1]


def test_corrected_windows_take_whole_groups_of_heads(
    tmp_path: Path, rows_file: Path, inputs: Inputs
) -> None:
    # Same head size and grouping on both sides: 4 key-value heads with 2 readers each against 2 with 2.
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
    teacher = save_model(tiny_model("llama", layers=3, wide=True, seed=5, **sizes), tmp_path / "teacher")
    student = save_model(tiny_model("llama", layers=2, wide=False, seed=6), tmp_path / "student")
    _, facts, _, _ = made((teacher, student), rows_file, inputs, "seeking_corrected")
    for w in facts["windows"]:
        assert w["k_proj"][0] % 8 == 0 and w["q_proj"][0] == 2 * w["k_proj"][0]


def test_a_narrower_teacher_leaves_matrices_out_and_says_so(
    tmp_path: Path, rows_file: Path, inputs: Inputs, caplog: pytest.LogCaptureFixture
) -> None:
    thin = save_model(
        tiny_model("llama", layers=3, wide=True, seed=5, intermediate_size=40), tmp_path / "teacher"
    )
    student = save_model(tiny_model("llama", layers=2, wide=False, seed=6), tmp_path / "student")
    with caplog.at_level(logging.WARNING):
        tensors, facts, _, _ = made((thin, student), rows_file, inputs, "seeking")
    assert facts["skipped"] == ["down_proj", "gate_proj", "up_proj"]
    assert "down_proj, gate_proj, up_proj: the student's are larger" in caplog.text
    assert {key.split(".")[1] for key in tensors} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_fused_matrices_and_full_weights_are_refused(
    tiny_pair: tuple[Path, Path], rows_file: Path, inputs: Inputs
) -> None:
    with pytest.raises(ModelError, match="expected separate modules"):
        Decoder(tiny_model("phi3", layers=2, wide=True), None).projections(1)
    with pytest.raises(ConfigError, match=r"set recipe\.lora_r"):
        made(tiny_pair, rows_file, inputs, "seeking", lora_r=0)
    with pytest.raises(ConfigError, match="leave those out"):
        made(tiny_pair, rows_file, inputs, "seeking", lora_target_modules=("c_attn",))


def test_every_start_has_a_recipe() -> None:
    assert set(starts()) <= {recipe.start for recipe in methods().values()}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_whole_run(tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, name: str) -> None:
    config = config_of(tiny_pair, rows_file, tmp_path / "run", recipe=RecipeConfig(name=name))
    run = transfer(config)
    before = AutoModelForCausalLM.from_pretrained(tiny_pair[1]).state_dict()
    after = AutoModelForCausalLM.from_pretrained(run.root / "student").state_dict()
    moved = {k.split(".")[-2] for k in before if not torch.allclose(before[k], after[k], atol=1e-6)}
    assert moved == set(PROJECTIONS)
    assert (run.root / "report.html").exists() and not (run.root / "adapter").exists()
    losses = [json.loads(line)["loss"] for line in (run.root / "train.jsonl").read_text().splitlines()]
    assert len(losses) == 8 and losses[-1] < losses[0]


def test_a_killed_training_keeps_its_start_and_ends_with_the_same_weights(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = transfer(config_of(tiny_pair, rows_file, tmp_path / "straight"), STEPS)
    config = config_of(tiny_pair, rows_file, tmp_path / "split")
    with cut_at(monkeypatch, 5), pytest.raises(CutError):
        transfer(config, STEPS)
    kept = tmp_path / "split" / "start.safetensors"
    changed = kept.stat().st_mtime_ns
    run = transfer(config, STEPS)
    assert kept.stat().st_mtime_ns == changed, "a finished start is not made again"
    expected, ours = (read_tensors(r.root / "student" / "model.safetensors") for r in (straight, run))
    assert all(torch.equal(expected[n], ours[n]) for n in expected)
