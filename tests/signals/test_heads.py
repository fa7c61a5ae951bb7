"""The interface of single attention heads: what is captured, how heads are scored and matched, a run through it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import LayerGradientXActivation
from peft import LoraConfig, get_peft_model
from tiny import STEPS, full_weights, tiny_config, tiny_model, tiny_tokenizer

from semalign.config import AttributionConfig, PairingConfig, RecipeConfig
from semalign.data import Sample, prepare
from semalign.data.batches import labels_of, state_mask
from semalign.data.inputs import load_inputs
from semalign.errors import ConfigError
from semalign.maths.pairing import match_heads
from semalign.maths.similarity import linear_cka
from semalign.models.capture import Point, capture
from semalign.models.decoder import Decoder
from semalign.models.loading import load
from semalign.signals.maps import Maps
from semalign.signals.passes import states_at
from semalign.signals.plan import read_plan
from semalign.signals.stores import Stores
from semalign.steps.attribute import attribute_all
from semalign.steps.pipeline import transfer

KINDS = ("llama", "qwen2", "gemma3_text", "phi3", "gpt2")


@pytest.fixture(scope="module")
def sample() -> Sample:
    roles = [("user", "add two and three"), ("assistant", "the answer is five")]
    row = {"messages": [{"role": r, "content": c} for r, c in roles]}
    return prepare([row], tiny_tokenizer(), max_length=64)[0]


def run_heads(decoder: Decoder, layer: int, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of all heads' contributions, and the output projection's own output without its bias."""
    outputs: list[torch.Tensor] = []
    module: Any = decoder.out_projection(layer)
    handle = module.register_forward_hook(lambda m, a, out: outputs.append(out))
    points = [Point(layer, "head", n) for n in range(1, decoder.shape.heads + 1)]
    with capture(decoder, points) as found, torch.no_grad():
        decoder.forward(ids)
    handle.remove()
    assert len(outputs) == 1, "a captured head does not run the module's hooks again"
    bias = getattr(module, "bias", None)
    return torch.stack([found[p] for p in points]).sum(0), outputs[0] - (0 if bias is None else bias)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_add_up_to_the_attention_output(kind: str, sample: Sample) -> None:
    decoder = Decoder(tiny_model(kind, layers=2, wide=True), None, kind)
    total, whole = run_heads(decoder, 2, torch.tensor([sample.input_ids]))
    torch.testing.assert_close(total, whole, rtol=1e-4, atol=1e-5)


def test_lora_on_the_output_projection_is_part_of_a_head(sample: Sample) -> None:
    decoder = Decoder(tiny_model("llama", layers=2, wide=True), None)
    get_peft_model(decoder.model, LoraConfig(r=4, target_modules=["o_proj"], init_lora_weights=False))
    total, whole = run_heads(decoder, 1, torch.tensor([sample.input_ids]))
    torch.testing.assert_close(total, whole, rtol=1e-4, atol=1e-5)


def test_one_head_is_its_columns_times_its_values(sample: Sample) -> None:
    decoder = Decoder(tiny_model("llama", layers=2, wide=True), None)
    ids = torch.tensor([sample.input_ids])
    with capture(decoder, [Point(1, "head"), Point(1, "head", 3)]) as found, torch.no_grad():
        decoder.forward(ids)
    at = slice(2 * decoder.shape.head_dim, 3 * decoder.shape.head_dim)
    weight = decoder.projections(1)["o_proj"].weight.detach()
    expected = found[Point(1, "head")][..., at] @ weight[:, at].T
    torch.testing.assert_close(found[Point(1, "head", 3)], expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match="heads 1 to 4"), capture(decoder, [Point(1, "head", 5)]):
        pass


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("aggregate", ["sum", "abs"])
def test_head_scores_agree_with_captum(kind: str, aggregate: Any, sample: Sample) -> None:
    decoder = Decoder(tiny_model(kind, layers=3, wide=True), None, kind)
    ids = torch.tensor([sample.input_ids])
    states, labels = state_mask(torch.tensor([sample.mask])), labels_of(sample)

    def loss(ids_BT: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(decoder.model(ids_BT).logits[states], labels)[None]

    scores = attribute_all(decoder, [sample], aggregate=aggregate)
    for layer in (1, 2, 3):
        method = LayerGradientXActivation(loss, decoder.out_projection(layer))
        product = method.attribute(ids, attribute_to_layer_input=True)
        product = (product if isinstance(product, torch.Tensor) else product[0]).detach()
        parts = (product.abs() if aggregate == "abs" else product).chunk(decoder.shape.heads, -1)
        assert scores.heads[layer - 1] == pytest.approx([float(p.sum()) for p in parts], rel=1e-3, abs=1e-6)


def test_signed_scores_are_those_of_the_contributions(sample: Sample) -> None:
    decoder = Decoder(tiny_model("llama", layers=2, wide=True), None)
    scores = attribute_all(decoder, [sample], aggregate="sum")
    ids, states = torch.tensor([sample.input_ids]), state_mask(torch.tensor([sample.mask]))
    output: list[torch.Tensor] = []
    handle = decoder.out_projection(2).register_forward_hook(lambda m, a, out: output.append(out))
    points = [Point(2, "head", n) for n in range(1, 5)]
    with capture(decoder, points) as found:
        logits = decoder.model(ids).logits[states]
    handle.remove()
    gradient = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels_of(sample)), output[0])[0]
    expected = [float((found[p].detach() * gradient).sum()) for p in points]
    assert scores.heads[1] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_heads_are_matched_in_order_of_score_each_to_the_most_alike_that_is_free() -> None:
    figures = torch.tensor([[0.9, 0.2, 0.1], [0.8, 0.3, 0.7], [0.1, 0.1, 0.1]])
    assert match_heads([1.0, 3.0, 2.0], figures, 3) == [(2, 1), (3, 2), (1, 3)]
    assert match_heads([1.0, 3.0, 2.0], figures, 1) == [(2, 1)]
    assert len(match_heads([1.0, 3.0, 2.0], figures, 9)) == 3


config_of = partial(
    tiny_config,
    attribution=AttributionConfig(rows=4),
    pairing=PairingConfig(num_layers=2, heads=2, rows=4),
    recipe=RecipeConfig("aligned", interface="head", layer_weight=1.0),
    train=full_weights(num_train_epochs=4, per_device_train_batch_size=4),
)


@pytest.mark.parametrize("map_name", ["ridge", "logit"])
def test_a_whole_run(tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, map_name: Any) -> None:
    recipe = RecipeConfig("aligned", interface="head", layer_weight=1.0, map=map_name)
    config = config_of(tiny_pair, rows_file, tmp_path / "run", recipe=recipe)
    run = transfer(config)
    plan, inputs = read_plan(run), load_inputs(config)
    scores = json.loads(run.scores.read_text())["heads"]
    assert len(scores) == 5 * 4 and {s["head"] for s in scores} == {1, 2, 3, 4}
    assert len(plan.heads) == 4 and {p.student for p in plan.heads} == {2, 3}
    for layer in (2, 3):
        chosen = [p for p in plan.heads if p.student == layer]
        mine = {s["head"]: s["score"] for s in scores if s["layer"] == chosen[0].teacher}
        assert [p.teacher_head for p in chosen] == sorted(mine, key=lambda n: -mine[n])[:2]

    # What lies in the cache is what the heads contribute, mapped by their own map.
    store = Stores(config, run, inputs, plan)
    maps = Maps.read(run.targets / "maps.safetensors")
    teacher, student = load(config.teacher), load(config.student)
    first = plan.heads[0]
    sides = ((teacher, first.teacher, first.teacher_head), (student, first.student, first.student_head))
    points = [Point(layer, "head", head) for _, layer, head in sides]
    raw, own = (
        states_at(model, inputs.train[:1], [point])[point]
        for (model, _, _), point in zip(sides, points, strict=True)
    )
    stored = store.student.read(0, [f"positions.own.head.{first.place}"])
    torch.testing.assert_close(stored[f"positions.own.head.{first.place}"], own, rtol=1e-4, atol=1e-5)
    key = f"positions.target.{map_name}.head.{first.place}"
    target = maps.apply(raw, map_name, "head", first.place)
    torch.testing.assert_close(store.teacher.read(0, [key])[key], target, rtol=1e-3, atol=1e-4)

    losses = [json.loads(line)["loss_layer"] for line in (run.root / "train.jsonl").read_text().splitlines()]
    assert sum(losses[-3:]) < sum(losses[:3])
    lines = json.loads(run.metrics.read_text())["alignment"]
    assert len(lines) == 4 and all({"teacher_head", "student_head"} <= line.keys() for line in lines)
    assert (run.root / "report.html").exists()


def test_the_student_head_is_the_most_alike(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_pair, rows_file, tmp_path / "run")
    plan, inputs = read_plan(transfer(config, ("attribute", "pair"))), load_inputs(config)
    first = plan.heads[0]
    states = []
    for model, layer in ((config.teacher, first.teacher), (config.student, first.student)):
        decoder = load(model)
        points = [Point(layer, "head", n) for n in range(1, 5)]
        found = states_at(decoder, inputs.train[:4], points)
        states.append([found[p] for p in points])
    figures = [linear_cka(states[0][first.teacher_head - 1], own) for own in states[1]]
    assert first.student_head == figures.index(max(figures)) + 1


@pytest.mark.parametrize(
    "recipe",
    [
        RecipeConfig(name="acl", layer_loss="cosine", interface="head"),
        RecipeConfig(name="hidden_mse", interface="head"),
    ],
    ids=["frontier", "learned projectors"],
)
def test_other_recipes_take_heads_too(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, recipe: RecipeConfig
) -> None:
    run = transfer(config_of(tiny_pair, rows_file, tmp_path / "run", recipe=recipe), STEPS)
    lines = [json.loads(line) for line in (run.root / "train.jsonl").read_text().splitlines()]
    assert len(lines) == 16 and all("loss_layer" in line for line in lines)


def test_a_plan_without_heads_names_the_option(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_pair, rows_file, tmp_path / "run", pairing=PairingConfig(num_layers=2))
    with pytest.raises(ConfigError, match=r"set pairing\.heads"):
        transfer(config, STEPS)
