"""Every method through the one trainer: what it trains, in which order, towards what."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import STEPS, full_weights, save_model, tiny_config, tiny_model
from transformers import AutoModelForCausalLM

from semalign.config import (
    EvaluationConfig,
    PairingConfig,
    RecipeConfig,
    TransferConfig,
)
from semalign.errors import ConfigError, ModelError
from semalign.maths.topk import mix_labels, topk_divergence
from semalign.methods import method, methods, named, output_losses, resolve
from semalign.run.files import read_json
from semalign.run.folder import RunFolder
from semalign.steps.pipeline import transfer

LAYERS = 4


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A student deep enough for several stages above a cached prefix."""
    root = tmp_path_factory.mktemp("pair")
    teacher = save_model(tiny_model("llama", layers=6, wide=True, seed=1), root / "teacher")
    return teacher, save_model(tiny_model("llama", layers=LAYERS, wide=False, seed=2), root / "student")


config_of = partial(
    tiny_config,
    heldout_rows=0,
    pairing=PairingConfig(num_layers=3),
    train=full_weights(num_train_epochs=6, per_device_train_batch_size=5, save_steps=2),
)


@pytest.fixture(scope="module")
def everything(
    pair: tuple[Path, Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TransferConfig, RunFolder]:
    """One run with every method as a baseline: all read the same cache."""
    names = tuple(n for n in methods() if n != "aligned")
    config = config_of(
        pair,
        rows_file,
        tmp_path_factory.mktemp("methods") / "run",
        evaluation=EvaluationConfig(baselines=names),
        train=full_weights(num_train_epochs=3, per_device_train_batch_size=5),
    )
    return config, transfer(config, STEPS)


@pytest.mark.parametrize("name", [n for n in methods() if n != "aligned"])
def test_a_method_changes_the_layers_it_names_and_nothing_else(
    everything: tuple[TransferConfig, RunFolder], name: str
) -> None:
    config, run = everything
    folder = run.training(name)
    before = AutoModelForCausalLM.from_pretrained(config.student.model_name_or_path).state_dict()
    after = AutoModelForCausalLM.from_pretrained(folder / "student").state_dict()
    moved = {key.split(".")[2] for key in before if not torch.equal(before[key], after[key])}
    layers = (1, 2, 3) if method(name).trained == "pairs" else range(LAYERS)
    assert moved == {str(k) for k in layers}
    assert not list(folder.glob("stage-*")) and not list(folder.glob("checkpoint-*"))
    steps = [json.loads(line)["step"] for line in (folder / "train.jsonl").read_text().splitlines()]
    if name.startswith("laten"):
        assert steps == list(range(1, {"laten": 8, "laten_corrected": 64}[name] + 1))
    else:
        assert steps == list(range(1, 13)), (
            "every method has the same number of steps, in one stage or in three"
        )


@pytest.mark.parametrize("name", ["acl", "jsd", "hidden_mse", "pissa", "kl_all", "v2"])
def test_a_method_lowers_its_own_loss(everything: tuple[TransferConfig, RunFolder], name: str) -> None:
    _, run = everything
    log = [json.loads(line) for line in (run.training(name) / "train.jsonl").read_text().splitlines()]
    # At the output: a stage has its own layer's loss in the rest. Thirds are epochs, so the rows are the same.
    losses = [line.get("loss_output", line["loss"]) for line in log]
    epoch = len(losses) // 3
    assert sum(losses[-epoch:]) < sum(losses[:epoch])


def test_checkpoints_of_another_training_are_not_resumed(
    pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(pair, rows_file, tmp_path / "run")
    run = transfer(config, STEPS[:3])
    left = run.root / "checkpoint-2"
    left.mkdir()
    (left / "trainer_state.json").write_text("{}")
    (run.root / "training.json").write_text(json.dumps({"fingerprint": {"recipe": "another"}}))
    transfer(config, STEPS)
    assert read_json(run.root / "train.json", "train")["steps"] == 24


def test_a_mixture_of_teacher_and_label_is_that_mixture() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher_NV = torch.randn(6, 30, generator=generator).log_softmax(1)
    ids = torch.stack([torch.randperm(30, generator=generator)[:5] for _ in range(6)])
    mask = torch.rand(6, 5, generator=generator) > 0.2
    mask[:, 0] = True
    labels = torch.tensor([int(ids[0, 0]), int(ids[1, 0]), 29, 28, 27, 26])
    new_ids, logp, new_mask = mix_labels(ids, teacher_NV.gather(1, ids), mask, labels, share=0.25)
    for n in range(6):
        expected = torch.zeros(30)
        kept = ids[n][mask[n]]
        expected[kept] = 0.75 * teacher_NV[n, kept].exp()
        expected[labels[n]] += 0.25
        found = torch.zeros(30).index_add(0, new_ids[n][new_mask[n]], logp[n][new_mask[n]].exp())
        torch.testing.assert_close(found, expected)
        assert len(set(new_ids[n][new_mask[n]].tolist())) == int(new_mask[n].sum()), "no token twice"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "alinged"}, "did you mean aligned"),
        ({"name": "cross_entropy", "label_weight": 0.2}, "only output_loss topk_kl"),
        ({"name": "hidden_mse", "map": "ridge"}, "projected_mse"),
        ({"name": "aligned", "map": "none"}, "projected_mse"),
        ({"layer_weight": 0.5}, "recipe.layer_weight: .* got aligned_output .*; take recipe.name: aligned"),
        ({"name": "kl", "interface": "attn"}, "recipe.interface: .* reads no interface"),
        ({"name": "aligned", "layer_loss": "none", "map": "logit"}, "recipe.map: .* leave map out"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(RecipeConfig(**given))


REFUSED = [
    (
        "generalised_jsd",
        "beta",
        (0.0, 1.0),
        "a number from 0 to 1 other than 0 and 1, where topk_jsd is constant",
    ),
    ("generalised_jsd", "beta", (-0.1, 1.5, float("nan")), "a number from 0 to 1"),
    ("skewed", "beta", (1.0,), "a number from 0 to 1 other than 1, where topk_skewed is constant"),
    ("skewed", "beta", (-0.1, 1.1), "a number from 0 to 1"),
    ("bridge", "beta", (-0.1, 1.1), "a number from 0 to 1"),
    ("aligned_output", "label_weight", (-0.1, 1.0, 1.5), "a share of at least 0 and below 1"),
    ("aligned_output", "temperature", (0.0, -1.0, float("inf"), float("nan")), "a number above 0"),
    ("kl", "temperature", (0.0,), "a number above 0"),
    ("cross_entropy", "label_smoothing", (-0.1, 1.0), "a share of at least 0 and below 1"),
    ("cosine", "label_smoothing", (1.0,), "a share of at least 0 and below 1"),
    ("aligned", "layer_weight", (float("nan"), float("inf")), "a finite number"),
    ("aligned", "learning_rate", (0.0, -1e-3), "a rate above 0, or null"),
    ("aligned", "lora_r", (-1,), "0, a rank or null"),
]


@pytest.mark.parametrize(
    ("name", "field", "value", "expected"),
    [(name, field, value, words) for name, field, values, words in REFUSED for value in values],
)
def test_numbers_with_which_nothing_can_be_learnt_are_refused(
    name: str, field: str, value: float, expected: str
) -> None:
    with pytest.raises(ConfigError, match=rf"recipe\.{field}: expected {expected}.*got {value!r}; change it"):
        resolve(RecipeConfig(name, **{field: value}))
    with pytest.raises(ConfigError, match=rf"recipe\.{field}: expected {expected}"):
        named("mine", {"name": name, field: value}, "evaluation.baselines")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("generalised_jsd", {"beta": 0.01}),
        ("skewed", {"beta": 0.0}),
        ("bridge", {"beta": 1.0}),
        ("bridge", {"beta": 0.0}),
        ("reverse", {"temperature": 0.1, "label_weight": 0.99}),
        ("cross_entropy", {"label_smoothing": 0.99}),
        ("aligned", {"layer_weight": 0.0, "output_weight": 0.0, "lora_r": 0, "learning_rate": 1e-9}),
    ],
)
def test_the_ends_of_what_a_loss_allows_are_taken(name: str, fields: dict[str, Any]) -> None:
    recipe = resolve(RecipeConfig(name, **fields))
    assert {field: getattr(recipe, field) for field in fields} == fields


@pytest.mark.parametrize("kind", ["reverse", "jsd", "skewed", "bridge"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_divergence_is_constant_just_where_it_says_so(kind: Any, beta: float) -> None:
    draw = torch.Generator().manual_seed(0)
    slots = [torch.randn(4, 6, generator=draw) for _ in range(3)]
    mask, teacher = torch.ones(4, 6, dtype=torch.bool), slots[0].log_softmax(1)
    try:
        losses = [float(topk_divergence(logits, teacher, mask, kind, beta=beta)) for logits in slots[1:]]
    except ModelError:
        losses = [0.0, 0.0]
    assert (losses[0] == losses[1]) is (beta in output_losses()[f"topk_{kind}"].constant_at)


def test_a_baseline_may_have_a_name_and_fields_of_its_own() -> None:
    fields = {"name": "cross_entropy", "learning_rate": 2e-3}
    recipe = named("tuned", fields, "evaluation.baselines")
    assert recipe == replace(method("cross_entropy"), name="tuned", learning_rate=2e-3)
    with pytest.raises(ConfigError, match=r"evaluation\.baselines\.tuned.*did you mean learning_rate"):
        named("tuned", {"learning_rat": 1}, "evaluation.baselines")
