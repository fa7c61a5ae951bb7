"""LaTen on tiny models: scores as a direct logit lens has them, deltas as the merged weights have them, whole runs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import STEPS, full_weights, tiny_config, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from semalign.config import EvaluationConfig, ModelConfig, RecipeConfig
from semalign.data.batches import batch_inputs
from semalign.data.inputs import Inputs, load_inputs
from semalign.errors import ConfigError, ModelError
from semalign.methods import resolve, starts
from semalign.methods.laten import Located, added, answer_token, locate, select, vectors
from semalign.models.decoder import Decoder
from semalign.models.loading import load
from semalign.run.files import read_json
from semalign.steps.pipeline import transfer
from semalign.training.student import add_deltas

config_of = partial(
    tiny_config,
    recipe=RecipeConfig(name="laten"),
    train=full_weights(max_steps=4, per_device_train_batch_size=4),
    evaluation=EvaluationConfig(cka_rows=0),
)


@pytest.fixture(scope="module")
def inputs(tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return load_inputs(config_of(tiny_pair, rows_file, tmp_path_factory.mktemp("inputs")))


def test_the_last_answer_token_is_a_word(inputs: Inputs) -> None:
    decoder = Decoder(tiny_model("llama", layers=1, wide=False), tiny_tokenizer())
    for sample in inputs.train[:5]:
        index = answer_token(decoder, sample)
        assert sample.mask[index] and sample.input_ids[-1] == decoder.tokenizer.eos_token_id
        assert decoder.tokenizer.decode(sample.input_ids[index:-1]).strip().isalnum()


@torch.no_grad()
def direct_scores(decoder: Decoder, sample: Any, frozen: bool) -> dict[str, torch.Tensor]:
    """Neuron by neuron, each layer's whole sublayer last, from modules' own inputs, without anything of the package but the model."""
    model: Any = decoder.model
    index = answer_token(decoder, sample)
    at, token = index - 1, sample.input_ids[index]
    seen: dict[Any, torch.Tensor] = {}

    def keep(module: Any, args: tuple, kwargs: dict) -> None:
        seen[module] = (*args, *kwargs.values())[0][0, at]

    handles = [m.register_forward_pre_hook(keep, with_kwargs=True) for m in model.modules() if m is not model]
    model(torch.tensor([sample.input_ids]))
    for handle in handles:
        handle.remove()
    last = seen[model.model.norm]

    def logp(x: torch.Tensor) -> float:
        size = (last if frozen else x).square().mean().sqrt()
        return float(model.lm_head(model.model.norm.weight * x / size).log_softmax(-1)[token])

    found: dict[str, list[list[float]]] = {"mlp": [], "attn": []}
    for layer in model.model.layers:
        for kind, writer, reader in (
            ("mlp", layer.mlp.down_proj, layer.post_attention_layernorm),
            ("attn", layer.self_attn.o_proj, layer),
        ):
            before, inputs_, weight = seen[reader], seen[writer], writer.weight
            parts = [inputs_[i] * weight[:, i] for i in range(len(inputs_))] + [writer(inputs_)]
            found[kind].append([logp(before + part) - logp(before) for part in parts])
    return {kind: torch.tensor(rows) for kind, rows in found.items()}


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("frozen", [True, False])
def test_scores_are_those_of_a_direct_logit_lens(kind: str, frozen: bool, inputs: Inputs) -> None:
    decoder = Decoder(tiny_model(kind, layers=3, wide=True), tiny_tokenizer(), kind)
    samples = inputs.train[:2]
    scores = locate(decoder, samples, frozen_scale=frozen)
    both = [direct_scores(decoder, s, frozen) for s in samples]
    for name in ("mlp", "attn"):
        values = torch.cat((scores.neurons[name], scores.layers[name][:, None]), 1)
        torch.testing.assert_close(values, both[0][name] + both[1][name], rtol=1e-3, atol=1e-4)


def test_a_layer_ranks_by_its_whole_output_not_by_the_sum_of_its_neurons() -> None:
    # Neurons that cancel each other: the first layer's sum is larger, the second one's output adds more.
    neurons = {"mlp": torch.tensor([[5.0, 4.0], [3.0, 1.0], [0.0, 2.0]])}
    layers, chosen = select(Located(neurons, {"mlp": torch.tensor([0.1, 2.0, 3.0])}), 2, {"mlp": 1})
    assert layers["mlp"].tolist() == [2, 3] and chosen["mlp"].tolist() == [[0], [1]]


def test_a_channel_of_o_and_its_row_of_v_belong_together() -> None:
    # One token attends to itself alone: channel c of o_proj's input is then row ids_of(c) of v_proj times the input.
    decoder = Decoder(tiny_model("llama", layers=1, wide=True), tiny_tokenizer())
    seen = {}
    for name in ("v_proj", "o_proj"):
        decoder.projections(1)[name].register_forward_pre_hook(
            lambda m, args, name=name: seen.__setitem__(name, args[0][0, 0])
        )
    with torch.no_grad():
        decoder.forward(torch.tensor([[7]]))
    channels = torch.arange(decoder.shape.heads * decoder.shape.head_dim)
    torch.testing.assert_close(vectors(decoder, "v_proj", 1, channels) @ seen["v_proj"], seen["o_proj"])


@pytest.mark.parametrize("name", ["laten", "laten_corrected"])
def test_merged_deltas_are_those_that_were_trained(
    tiny_pair: tuple[Path, Path], rows_file: Path, inputs: Inputs, name: str
) -> None:
    config = config_of(tiny_pair, rows_file, Path("unused"), recipe=RecipeConfig(name=name))
    teacher, student = load(config.teacher), load(config.student)
    before = {n: p.detach().clone() for n, p in student.model.named_parameters()}
    tensors, facts = starts()[name].make(teacher, student, inputs.train, config, resolve(config.recipe))
    assert all(torch.equal(before[n], p) for n, p in student.model.named_parameters()), "the base is frozen"
    assert all(p.requires_grad and p.grad is None for p in student.model.parameters())
    assert len(facts["losses"]) == 4
    deltas = {}
    for key in (k for k in tensors if k.endswith(".delta")):
        layer, module, _ = key.split(".")
        ids = tensors.get(f"{layer}.{module}.rows", tensors.get(f"{layer}.{module}.columns"))
        # Enlarged so that the comparison can see them; ids of v_proj repeat.
        tensors[key] = torch.randn(tensors[key].shape, generator=torch.Generator().manual_seed(len(deltas)))
        deltas[int(layer), module] = ids, tensors[key]
    assert len(deltas) == 12
    ids, _ = batch_inputs(student, inputs.train[:2])
    with torch.no_grad(), added(student, deltas):
        expected = student.model(ids).logits
    add_deltas(student, tensors)
    with torch.no_grad():
        torch.testing.assert_close(student.model(ids).logits, expected, rtol=1e-3, atol=1e-3)


def test_alignment_follows_the_gradient_of_its_loss(
    tiny_pair: tuple[Path, Path], rows_file: Path, inputs: Inputs
) -> None:
    train = full_weights(max_steps=60)
    config = config_of(
        tiny_pair, rows_file, Path("unused"), recipe=RecipeConfig(name="laten_corrected"), train=train
    )
    teacher, student = load(config.teacher), load(config.student)
    recipe = resolve(config.recipe)
    _, facts = starts()["laten_corrected"].make(teacher, student, inputs.train, config, recipe)
    # 16 training rows: every step sees them all, so the loss must fall.
    assert facts["losses"][-1] < facts["losses"][0] - 0.05


@pytest.mark.parametrize("name", ["laten", "laten_corrected"])
def test_a_whole_run(tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, name: str) -> None:
    config = config_of(tiny_pair, rows_file, tmp_path / "run", recipe=RecipeConfig(name=name))
    run = transfer(config)
    before = AutoModelForCausalLM.from_pretrained(tiny_pair[1]).state_dict()
    after = AutoModelForCausalLM.from_pretrained(run.root / "student").state_dict()
    moved = {k.split(".")[-2] for k in before if not torch.equal(before[k], after[k])}
    assert moved == {"up_proj", "down_proj", "v_proj", "o_proj"}
    found = read_json(run.root / "train.json", "train")
    assert found["steps"] == 4 and found["start_seconds"] > 0
    lines = [json.loads(line) for line in (run.root / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert (run.root / "report.html").exists()
    made = (run.root / "start.safetensors").stat().st_mtime_ns
    (run.root / "train.json").unlink()
    transfer(config, STEPS)
    assert (run.root / "start.safetensors").stat().st_mtime_ns == made
    again = AutoModelForCausalLM.from_pretrained(run.root / "student").state_dict()
    assert all(torch.equal(after[k], again[k]) for k in after)


def test_published_deltas_are_too_small_for_half_precision_and_the_run_says_so(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(
        tiny_pair, rows_file, tmp_path / "run", student=ModelConfig(str(tiny_pair[1]), dtype="bfloat16")
    )
    with pytest.raises(ModelError, match="changed no weight"):
        transfer(config, STEPS)


def test_it_trains_on_from_there_where_asked(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    recipe = RecipeConfig(name="laten_corrected", trained="all", lora_r=4)
    run = transfer(config_of(tiny_pair, rows_file, tmp_path / "run", recipe=recipe), STEPS)
    assert read_json(run.root / "train.json", "train")["trained_parameters"] > 0


def test_what_makes_no_sense_is_refused(tmp_path: Path, inputs: Inputs) -> None:
    with pytest.raises(ConfigError, match="changes every layer"):
        resolve(RecipeConfig(name="laten", trained="pairs"))
    with pytest.raises(ConfigError, match="leaves the student as it starts"):
        resolve(RecipeConfig(name="cross_entropy", trained="none"))
    decoder = Decoder(tiny_model("gemma2", layers=2, wide=True), tiny_tokenizer(), "gemma")
    with pytest.raises(ModelError, match="gemma: laten adds single neurons"):
        locate(decoder, inputs.train[:1], frozen_scale=True)
