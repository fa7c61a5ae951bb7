"""The student around its training: what takes gradients and in which type, how it moved, how it is merged and saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from in_memory import config_of as in_memory_config
from in_memory import inputs_of, samples, student
from peft import PeftModel
from tiny import STEPS, TRAIN, config_of, full_weights, tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from semalign.config import EvaluationConfig, ModelConfig, RecipeConfig, TransferConfig
from semalign.data.inputs import load_inputs
from semalign.errors import ConfigError, ModelError
from semalign.evaluation.summary import trained_model
from semalign.models.decoder import Decoder
from semalign.models.layouts import PROJECTIONS
from semalign.models.loading import load
from semalign.run.files import Record
from semalign.signals.plan import Plan
from semalign.steps.pipeline import transfer
from semalign.training.student import (
    add_deltas,
    merge,
    movement,
    save_student,
    to_float32,
    to_types,
    trainable,
    types_of,
    weights_of,
)

UPPER = Plan((), (2, 3))
IDS = torch.arange(10, 22)[None]


def config(**train: Any) -> TransferConfig:
    return in_memory_config(Path("unused"), train=full_weights(**train))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(IDS).logits


def test_pissa_needs_lora(tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path) -> None:
    wrong = config_of(tiny_pair, rows_file, tmp_path / "run", recipe=RecipeConfig(name="pissa", lora_r=0))
    with pytest.raises(ConfigError, match=r"set recipe\.lora_r"):
        transfer(wrong, STEPS)


def test_lora_keeps_an_adapter_that_equals_the_merged_student(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    lora = config_of(
        tiny_pair,
        rows_file,
        tmp_path / "run",
        train=replace(TRAIN, lora_r=4),
        evaluation=EvaluationConfig(),
    )
    run = transfer(lora, STEPS)
    base = AutoModelForCausalLM.from_pretrained(lora.student.model_name_or_path)
    ids = torch.tensor([load_inputs(lora).train[0].input_ids])
    with torch.no_grad():
        untouched = base(ids).logits
        adapted = PeftModel.from_pretrained(base, run.root / "adapter")(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(run.root / "student")(ids).logits
    torch.testing.assert_close(adapted, merged, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(untouched, merged, atol=1e-3)


def trained_names(decoder: Decoder) -> set[str]:
    return {name for name, p in decoder.model.named_parameters() if p.requires_grad}


def test_exactly_the_plans_layers_take_gradients() -> None:
    decoder = student()
    inside = {
        n for n, _ in decoder.model.named_parameters() if n.startswith(("model.layers.1.", "model.layers.2."))
    }
    with trainable(decoder, UPPER, config()) as model:
        assert trained_names(decoder) == inside and model is decoder.model
    decoder.model.requires_grad_(True)
    with trainable(decoder, Plan((), (1,)), config()):
        assert {name.split(".")[2] for name in trained_names(decoder)} == {"0"}, (
            "whatever took gradients before"
        )


def layer_types(decoder: Decoder) -> list[torch.dtype]:
    return [next(iter(layer.parameters())).dtype for layer in decoder.layers]


HALF, FULL = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("layers", "options", "expected"),
    [
        ((3,), {}, [HALF, HALF, FULL]),
        ((2,), {}, [HALF, FULL, FULL]),
        ((3,), {"cache_prefix": False}, [FULL, FULL, FULL]),
        ((2,), {"bf16": True}, [HALF, FULL, HALF]),
        ((2,), {"bf16": True, "cache_prefix": False}, [HALF, FULL, HALF]),
    ],
    ids=["above the cut", "frozen ones above it too", "whole student", "autocast", "autocast, whole student"],
)
def test_what_is_trained_and_what_runs_above_the_cut_is_float32(
    layers: tuple[int, ...], options: dict[str, Any], expected: list[torch.dtype]
) -> None:
    decoder = student()
    decoder.model.to(HALF)
    with trainable(decoder, Plan((), layers), config(**options)):
        assert layer_types(decoder) == expected
        assert decoder.final_norm.weight.dtype == FULL
        assert decoder.model.get_input_embeddings().weight.dtype == HALF
    assert {p.dtype for p in decoder.model.parameters()} == {HALF}


@pytest.mark.parametrize("kind", ["starcoder2", "gpt2"])
def test_layer_norms_of_half_precision_take_a_stream_in_float32(kind: str) -> None:
    """As autocast does on a GPU and not on a CPU."""
    decoder = Decoder(tiny_model(kind, layers=3, wide=False, seed=1), tiny_tokenizer(), kind)
    decoder.model.to(HALF)
    stream = torch.randn(1, 5, decoder.width)
    with trainable(decoder, Plan((), (2, 3)), config(bf16=True, lora_r=2)):
        with torch.autocast("cpu", HALF), decoder.span(1, 3, norm=True):
            decoder.forward(stream).sum().backward()
        assert any(p.grad is not None for p in decoder.model.parameters())
    assert {p.dtype for n, p in decoder.model.named_parameters() if "lora" not in n} == {HALF}


def test_types_are_put_back_by_name_and_new_parameters_keep_theirs() -> None:
    decoder = student()
    decoder.layers[0].to(HALF)
    types = types_of(decoder)
    to_float32(decoder, 0, keep_frozen=False)
    assert layer_types(decoder) == [FULL] * 3
    decoder.model.register_parameter("new", torch.nn.Parameter(torch.ones(1).half()))
    to_types(decoder, types)
    assert layer_types(decoder) == [HALF, FULL, FULL] and decoder.model.new.dtype == torch.float16


def test_training_that_changes_nothing_changes_no_half_precision_weight() -> None:
    decoder = student()
    decoder.model.to(HALF)
    before = [p.clone() for p in decoder.model.parameters()]
    with trainable(decoder, UPPER, config()):
        pass
    assert all(torch.equal(p, old) for p, old in zip(decoder.model.parameters(), before, strict=True))


def test_lora_takes_gradients_in_the_plans_layers_alone_and_starts_without_effect() -> None:
    decoder = student()
    before = logits(decoder.model)
    with trainable(decoder, UPPER, config(lora_r=4, lora_alpha=8)) as model:
        names = trained_names(decoder)
        assert torch.equal(logits(model), before)
        lora = {n: p for n, p in decoder.model.named_parameters() if n in names}
    assert {(n.split(".layers.")[1][0], n.split(".")[-4]) for n in names} == {
        (layer, name) for layer in "12" for name in PROJECTIONS
    }
    assert all("lora_" in n and min(p.shape) == 4 for n, p in lora.items())


def test_lora_adapts_the_modules_that_are_named() -> None:
    decoder = student()
    with trainable(decoder, UPPER, config(lora_r=2, lora_target_modules=("q_proj",))):
        assert {name.split(".")[-4] for name in trained_names(decoder)} == {"q_proj"}
    with (
        pytest.raises(ModelError, match=r"train\.lora_target_modules: c_attn match no linear map.*q_proj"),
        trainable(student(), UPPER, config(lora_r=2, lora_target_modules=("c_attn",))),
    ):
        pass


def first_factor(seed: int) -> Tensor:
    decoder = student()
    with trainable(decoder, UPPER, replace(config(lora_r=2), seed=seed)):
        return next(p.detach() for n, p in decoder.model.named_parameters() if "lora_A" in n)


def test_the_seed_of_the_run_draws_the_factors() -> None:
    assert torch.equal(first_factor(1), first_factor(1)) and not torch.equal(first_factor(1), first_factor(2))


def test_pissa_starts_at_the_principal_components_and_changes_nothing() -> None:
    decoder = student()
    weight = decoder.projections(3)["up_proj"].weight.detach().clone()
    before = logits(decoder.model)
    with trainable(decoder, UPPER, config(lora_r=4, lora_alpha=4), "pissa") as model:
        torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-4)
        module = decoder.projections(3)["up_proj"]
        product = module.lora_B["default"].weight @ module.lora_A["default"].weight
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    principal = (u[:, :4] * s[:4]) @ v[:4]
    torch.testing.assert_close(product.detach().double(), principal, rtol=0, atol=1e-5)


def test_given_factors_are_taken_off_the_weights() -> None:
    decoder = student()
    before, weight = logits(decoder.model), decoder.projections(2)["v_proj"].weight.detach().clone()
    draw = torch.Generator().manual_seed(0)
    factors = {
        "2.v_proj.lora_A": torch.randn(4, weight.shape[1], generator=draw),
        "2.v_proj.lora_B": torch.randn(weight.shape[0], 4, generator=draw),
        "2.q_proj.lora_A": torch.randn(4, 32, generator=draw),
        "2.q_proj.lora_B": torch.randn(32, 4, generator=draw),
    }
    own = config(lora_r=4, lora_alpha=8, lora_target_modules=("v_proj", "up_proj"))
    with trainable(decoder, UPPER, own, "seeking", factors) as model:
        module = decoder.projections(2)["v_proj"]
        assert torch.equal(module.lora_B["default"].weight, factors["2.v_proj.lora_B"])
        left = weight - 2 * factors["2.v_proj.lora_B"] @ factors["2.v_proj.lora_A"]
        torch.testing.assert_close(module.get_base_layer().weight.detach(), left)
        torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-4)
        assert not hasattr(decoder.projections(2)["q_proj"], "lora_A"), (
            "factors of other modules are left out"
        )


@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_a_quantised_student_trains_lora_alone(bits: str) -> None:
    quantised = replace(config(), student=ModelConfig("student", **{bits: True}))
    with (
        pytest.raises(ConfigError, match=r"train\.lora_r: a quantised student can only train LoRA"),
        trainable(student(), UPPER, quantised),
    ):
        pass


def test_activation_checkpointing_lives_as_long_as_the_training() -> None:
    decoder = student()
    with trainable(decoder, UPPER, config(activation_checkpointing=True)):
        assert decoder.model.is_activation_checkpointing
    assert not decoder.model.is_activation_checkpointing
    with trainable(decoder, UPPER, config()):
        assert not decoder.model.is_activation_checkpointing


def test_deltas_are_added_to_the_rows_or_columns_that_are_named() -> None:
    decoder = student()
    up, down = (decoder.projections(2)[name].weight.detach().clone() for name in ("up_proj", "down_proj"))
    others = {n: p.detach().clone() for n, p in decoder.model.named_parameters()}
    draw = torch.Generator().manual_seed(0)
    start: Record = {
        "2.up_proj.delta": torch.randn(3, up.shape[1], generator=draw),
        "2.up_proj.rows": torch.tensor([5, 0, 9]),
        "2.down_proj.delta": torch.randn(2, down.shape[0], generator=draw),
        "2.down_proj.columns": torch.tensor([7, 1]),
    }
    add_deltas(decoder, start)
    for n, row in enumerate((5, 0, 9)):
        up[row] += start["2.up_proj.delta"][n]
    for n, column in enumerate((7, 1)):
        down[:, column] += start["2.down_proj.delta"][n]
    torch.testing.assert_close(decoder.projections(2)["up_proj"].weight.detach(), up)
    torch.testing.assert_close(decoder.projections(2)["down_proj"].weight.detach(), down)
    changed = {n for n, p in decoder.model.named_parameters() if not torch.equal(p, others[n])}
    assert changed == {f"model.layers.1.mlp.{name}_proj.weight" for name in ("up", "down")}


def test_small_deltas_on_one_row_add_up_before_half_precision_rounds_them() -> None:
    decoder = student()
    decoder.model.to(HALF)
    weight: Any = decoder.projections(1)["up_proj"].weight
    with torch.no_grad():
        weight.fill_(1.0)
    many = torch.full((64, weight.shape[1]), 2**-10)
    add_deltas(decoder, {"1.up_proj.delta": many, "1.up_proj.rows": torch.zeros(64, dtype=torch.long)})
    assert torch.equal(weight[0].float(), torch.full((weight.shape[1],), 1.0625)), "each alone would be lost"
    add_deltas(decoder, {})
    assert torch.equal(weight[1].float(), torch.ones(weight.shape[1]))


def test_movement_is_the_length_of_the_change_over_that_of_the_start() -> None:
    decoder = student()
    before = {k: weights_of(decoder, k) for k in (2, 3)}
    with torch.no_grad():
        for parameter in decoder.layers[2].parameters():
            parameter.mul_(1.25)
        decoder.layers[0].mlp.up_proj.weight.mul_(2)
    found = movement(decoder, before)
    assert [line["layer"] for line in found] == [2, 3]
    assert [line["relative_change"] for line in found] == pytest.approx([0.0, 0.25])
    matrix = decoder.projections(2)["q_proj"].weight
    with torch.no_grad():
        matrix[0, 0] += 3.0
    size = torch.cat([w.flatten() for w in before[2]]).norm()
    assert movement(decoder, before)[0]["relative_change"] == pytest.approx(3 / float(size), rel=1e-4)


def test_weights_that_are_kept_do_not_move_with_the_student() -> None:
    decoder = student()
    before = weights_of(decoder, 1)
    with torch.no_grad():
        decoder.layers[0].mlp.up_proj.weight.zero_()
    assert all(float(w.abs().sum()) > 0 and not w.requires_grad for w in before)


def test_a_training_that_changed_nothing_is_told_what_to_do() -> None:
    decoder = student()
    before = {k: weights_of(decoder, k) for k in (2, 3)}
    with pytest.raises(
        ModelError, match=r"changed no weight.*more steps.*raise train\.learning_rate.*float32"
    ):
        movement(decoder, before)


def adapted(folder: Path, start: str, dtype: torch.dtype = FULL) -> tuple[Tensor, Any, Tensor]:
    """Logits of a student with random LoRA factors, the merged model, and the logits of the untouched one."""
    decoder = student()
    decoder.model.to(dtype)
    untouched = logits(decoder.model)
    with trainable(decoder, UPPER, config(lora_r=4)) as model, torch.no_grad():
        draw = torch.Generator().manual_seed(0)
        for name, parameter in decoder.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
        expected = logits(model)
        merged = merge(model, folder, start)
    return expected, merged, untouched


def test_a_merged_student_says_what_its_adapter_says_and_has_no_adapter(tmp_path: Path) -> None:
    expected, merged, untouched = adapted(tmp_path, "untouched")
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, untouched, atol=1e-2)
    assert not any("lora_" in name for name, _ in merged.named_parameters())


def test_an_adapter_is_kept_where_it_fits_the_untouched_weights(tmp_path: Path) -> None:
    old = tmp_path / "adapter" / "old"
    old.parent.mkdir()
    old.write_text("of an earlier training")
    expected, _, _ = adapted(tmp_path, "untouched")
    loaded = PeftModel.from_pretrained(student().model, tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)
    assert not old.exists() and [p.name for p in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("start", ["pissa", "seeking"])
def test_an_adapter_that_fits_no_stored_weights_is_not_kept(tmp_path: Path, start: str) -> None:
    adapted(tmp_path, start)
    assert list(tmp_path.iterdir()) == []


def test_matrices_are_merged_in_float32() -> None:
    decoder = student()
    decoder.model.to(HALF)
    with trainable(decoder, UPPER, config(lora_r=4, bf16=True)) as model:
        module = decoder.projections(2)["up_proj"]
        with torch.no_grad():
            module.lora_B["default"].weight.fill_(1e-4)
        wanted = module.get_base_layer().weight.float() + module.get_delta_weight("default")
        merge(model, Path("unused"), "pissa")
        found = decoder.projections(2)["up_proj"].weight
        assert found.dtype == FULL
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)


def saved(model: Any, target: Path) -> None:
    save_student(model, inputs_of(samples(1)), config(), target)


def test_a_saved_student_loads_plainly_with_its_tokenizer_and_replaces_an_older_one(tmp_path: Path) -> None:
    decoder, target = student(), tmp_path / "run" / "student"
    target.mkdir(parents=True)
    (target / "old").write_text("of an earlier training")
    saved(decoder.model, target)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(target)), logits(decoder.model))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in target.iterdir()}
    assert not (target / "old").exists() and [p.name for p in target.parent.iterdir()] == ["student"]


def test_a_saved_base_model_ends_its_answers_as_the_chat_template_does(tmp_path: Path) -> None:
    inputs, model = inputs_of(samples(1)), student().model
    saved(model, tmp_path / "same")
    before = model.generation_config.eos_token_id
    assert GenerationConfig.from_pretrained(tmp_path / "same").eos_token_id == before
    inputs.tokenizer.eos_token = "<s>"
    model.generation_config.eos_token_id = inputs.tokenizer.eos_token_id
    save_student(model, inputs, config(), tmp_path / "base")
    ends = inputs.tokenizer.convert_tokens_to_ids(["<s>", "<|end|>"])
    assert GenerationConfig.from_pretrained(tmp_path / "base").eos_token_id == sorted(ends)
    assert model.generation_config.eos_token_id == ends[0], "the model in memory stays as it is"


def test_a_saved_student_keeps_its_type(tmp_path: Path) -> None:
    student().model.save_pretrained(tmp_path / "untouched")
    saved(
        AutoModelForCausalLM.from_pretrained(tmp_path / "untouched", dtype=HALF).eval(), tmp_path / "student"
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert {p.dtype for p in loaded.parameters()} == {HALF}


@pytest.mark.parametrize("value", [3.0, float("nan")], ids=["other weights", "NaN"])
def test_a_student_that_loads_as_another_is_not_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    target = tmp_path / "student"
    target.mkdir()
    (target / "old").write_text("kept")
    wrong = tiny_model("llama", layers=3, wide=False, seed=2)
    with torch.no_grad():
        wrong.model.norm.weight.fill_(value)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: wrong)
    with pytest.raises(
        ModelError, match=r"student: the reloaded student's logits differ by .* from the trained one's"
    ):
        saved(student().model, target)
    assert [p.name for p in tmp_path.iterdir()] == ["student"] and (target / "old").read_text() == "kept"


def test_a_student_is_reloaded_with_its_own_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    load = AutoModelForCausalLM.from_pretrained

    def listening(*given: Any, **options: Any) -> Any:
        asked.append(options.get("attn_implementation"))
        return load(*given, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", listening)
    eager = replace(config(), student=ModelConfig("student", attn_implementation="eager"))
    save_student(student().model, inputs_of(samples(1)), eager, tmp_path / "student")
    saved(student().model, tmp_path / "other")
    assert asked == ["eager", None]


def test_a_student_with_code_of_its_own_is_reloaded_with_it_and_not_without_leave(
    own_code: Path, tmp_path: Path
) -> None:
    model = load(ModelConfig(str(own_code), trust_remote_code=True)).model
    trusted = replace(config(), student=ModelConfig(str(own_code), trust_remote_code=True))
    save_student(model, inputs_of(samples(1)), trusted, tmp_path / "run" / "student")
    again = load(trained_model(trusted.student, tmp_path / "run")).model
    assert type(again).__name__ == "OwnForCausalLM" and torch.equal(logits(again), logits(model))
    with pytest.raises(ValueError, match="trust_remote_code"):
        saved(model, tmp_path / "other")
