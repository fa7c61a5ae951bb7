"""Every method through the one trainer: what it trains, in which order, towards what; stages resume exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import STEPS, CutError, cut_at, save_model, tiny_config, tiny_model
from torch.nn.functional import kl_div, log_softmax, mse_loss, softmax
from transformers import AutoModelForCausalLM

from semalign.config import (
    EvaluationConfig,
    ModelConfig,
    PairingConfig,
    RecipeConfig,
    TrainConfig,
    TransferConfig,
)
from semalign.data.inputs import load_inputs
from semalign.errors import ConfigError
from semalign.maths.losses import geometry_loss
from semalign.maths.topk import mix_labels
from semalign.methods import method, methods, named, resolve
from semalign.methods.objective import Objective
from semalign.methods.recipe import Recipe
from semalign.models.loading import load
from semalign.run.files import read_json, read_tensors
from semalign.run.folder import RunFolder
from semalign.signals.plan import read_plan
from semalign.signals.stores import Stores
from semalign.signals.supervision import ShuffledSupervision
from semalign.steps.pipeline import transfer
from semalign.training import stages as step

LAYERS = 4
FRONTIER = RecipeConfig(name="acl")


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
    train=TrainConfig(num_train_epochs=6, per_device_train_batch_size=5, save_steps=2),
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
        train=TrainConfig(num_train_epochs=3, per_device_train_batch_size=5),
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


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return read_tensors(run.root / "student" / "model.safetensors")


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("during", [False, True], ids=["after a stage", "within a stage"])
def test_a_frontier_run_cut_off_anywhere_ends_with_the_same_weights(
    pair: tuple[Path, Path],
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: int,
    during: bool,
) -> None:
    straight = transfer(config_of(pair, rows_file, tmp_path / "straight", recipe=FRONTIER), STEPS)
    config = config_of(pair, rows_file, tmp_path / "split", recipe=FRONTIER)
    optimise = step.Training._optimise
    count = 0

    def cut(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == stage and during:
            with cut_at(monkeypatch, 5):
                return optimise(self, *arguments, **options)
        if count == stage + 1 or (count == stage == 3 and not during):
            raise CutError
        return optimise(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(step.Training, "_optimise", cut)
        with pytest.raises(CutError):
            transfer(config, STEPS)
    run = transfer(config, STEPS)
    expected, ours = weights(straight), weights(run)
    assert all(torch.equal(expected[name], ours[name]) for name in expected)
    logs = [(r.root / "train.jsonl").read_text().splitlines() for r in (straight, run)]
    values = [[(json.loads(line)["step"], json.loads(line)["loss"]) for line in lines] for lines in logs]
    assert values[0] == values[1]


def test_carrying_the_streams_on_gives_the_losses_of_whole_students(
    pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    losses = []
    for is_cached in (True, False):
        train = TrainConfig(
            num_train_epochs=6, per_device_train_batch_size=5, cache_prefix=is_cached, max_steps=24
        )
        config = config_of(pair, rows_file, tmp_path / str(is_cached), recipe=FRONTIER, train=train)
        lines = (transfer(config, STEPS).root / "train.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 24


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


def test_shuffled_signals_come_from_other_rows_and_fit_the_own_positions(
    everything: tuple[TransferConfig, RunFolder],
) -> None:
    config, run = everything
    inputs, plan = load_inputs(config), read_plan(run)
    store = Stores(config, run, inputs, plan).teacher
    counts = [s.supervised for s in inputs.train]
    supervision = ShuffledSupervision(store, method("shuffled"), ["2"], counts)
    assert sorted(supervision.other) == sorted(supervision.other.values()) == list(range(len(counts)))
    assert all(own != other for own, other in supervision.other.items())
    for sample in (0, 7):
        found = supervision.signals([sample])
        other = store.read(supervision.other[sample], ["positions.ids"])["positions.ids"]
        assert len(found["ids"]) == counts[sample]
        assert torch.equal(found["ids"][: len(other)], other[: counts[sample]])


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


def one_objective(folder: Path, recipe: Recipe, places: tuple[str, ...] = ("1",)) -> tuple[Objective, int]:
    decoder = load(ModelConfig(str(folder)))
    candidates = torch.arange(decoder.shape.vocabulary)
    return Objective(recipe, decoder, places, candidates, decoder.head()), decoder.width


def test_jsd_equals_the_literal_formula(tiny_pair: tuple[Path, Path]) -> None:
    objective, width = one_objective(tiny_pair[1], method("jsd"))
    own, theirs = torch.randn(4, width), torch.randn(4, width)
    p, q = (softmax(h @ objective.head.weight_VD.float().T, 1) for h in (theirs, own))
    m = (p + q) / 2
    expected = (kl_div(m.log(), p, reduction="batchmean") + kl_div(m.log(), q, reduction="batchmean")) / 2
    found = objective.output_loss(own, torch.zeros(4).long(), {"teacher_output": theirs})
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_geometry_is_per_sequence_and_the_projector_learns_its_share(tiny_pair: tuple[Path, Path]) -> None:
    objective, width = one_objective(tiny_pair[1], method("v2"))
    own, target = torch.randn(7, width), torch.randn(7, width)
    expected = (geometry_loss(own[:4], target[:4]) + geometry_loss(own[4:], target[4:])) / 2
    found = objective.layer_loss("1", own, [4, 3], {"target.1": target})
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    objective, _ = one_objective(tiny_pair[1], method("hidden_mse"))
    projected = objective.projectors["1"](own)
    expected = mse_loss(projected, target) / target.var(0, unbiased=False).mean()
    found = objective.layer_loss("1", own, [7], {"target.1": target})
    torch.testing.assert_close(found, expected)
    assert {p.requires_grad for p in objective.projectors.parameters()} == {True}


def test_a_decaying_layer_weight_falls_to_nothing(tiny_pair: tuple[Path, Path]) -> None:
    recipe = resolve(RecipeConfig(name="v2", layer_schedule="decay", output_loss="none"))
    objective, width = one_objective(tiny_pair[1], recipe)
    own, target = torch.randn(5, width), torch.randn(5, width)
    found = []
    for objective.progress in (0.0, 0.5, 1.0):
        losses = objective(own, {"1": own}, torch.zeros(5).long(), [5], {"target.1": target})
        found.append(float(losses["loss"]) / float(losses["loss_layer"]))
    assert found == pytest.approx([1.0, 0.5, 0.0])


def test_label_share_reaches_the_trained_distribution(tiny_pair: tuple[Path, Path]) -> None:
    objective, width = one_objective(tiny_pair[1], resolve(RecipeConfig(label_weight=0.5)))
    own = torch.randn(3, width)
    batch = {
        "ids": torch.tensor([[5, 6], [7, 8], [9, 10]]),
        "valid": torch.ones(3, 2, dtype=torch.bool),
        "teacher_logp": torch.log(torch.tensor([[0.75, 0.25]] * 3)),
        "student_logp": torch.zeros(3, 2),
        "outside": torch.full((3,), -1e30),
    }
    labels = torch.tensor([5, 8, 9])
    logits = own @ objective.head.weight_VD.float().T
    rest = logits.scatter(1, batch["ids"], -torch.inf).logsumexp(1, keepdim=True)
    logp = log_softmax(torch.cat([logits.gather(1, batch["ids"]), rest], 1), 1)
    mixed = torch.tensor([[0.875, 0.125, 0.0], [0.375, 0.625, 0.0], [0.875, 0.125, 0.0]])
    expected = kl_div(logp, mixed, reduction="batchmean")
    assert float(objective.output_loss(own, labels, batch)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "alinged"}, "did you mean aligned"),
        ({"name": "cross_entropy", "label_weight": 0.2}, "only output_loss topk_kl"),
        ({"name": "hidden_mse", "map": "ridge"}, "projected_mse"),
        ({"name": "aligned", "map": "none"}, "projected_mse"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(RecipeConfig(**given))


def test_pissa_needs_lora(pair: tuple[Path, Path], rows_file: Path, tmp_path: Path) -> None:
    config = config_of(pair, rows_file, tmp_path / "run", recipe=RecipeConfig(name="pissa", lora_r=0))
    with pytest.raises(ConfigError, match=r"set recipe\.lora_r"):
        transfer(config, STEPS)


def test_a_baseline_may_have_a_name_and_fields_of_its_own() -> None:
    fields = {"name": "cross_entropy", "learning_rate": 2e-3}
    recipe = named("tuned", fields, "evaluation.baselines")
    assert recipe == replace(method("cross_entropy"), name="tuned", learning_rate=2e-3)
    with pytest.raises(ConfigError, match=r"evaluation\.baselines\.tuned.*did you mean learning_rate"):
        named("tuned", {"learning_rat": 1}, "evaluation.baselines")
