"""The fast path against literal losses, cached against live, cut against whole, one batch against two halves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import STEPS, TRAIN, config_of, losses
from torch.nn.functional import cosine_similarity, kl_div, log_softmax, one_hot
from transformers import AutoModelForCausalLM

from semalign.config import (
    EvaluationConfig,
    PairingConfig,
    RecipeConfig,
    TransferConfig,
)
from semalign.data import collate
from semalign.data.batches import candidates_of, labels_of, state_mask
from semalign.data.inputs import load_inputs
from semalign.errors import ConfigError
from semalign.models.decoder import share_vocabulary
from semalign.models.loading import load
from semalign.run.files import read_tensors
from semalign.run.folder import RunFolder
from semalign.signals.plan import read_plan
from semalign.signals.prepared import Prepared
from semalign.signals.supervision import supervision_of
from semalign.steps.pipeline import transfer
from semalign.training.collator import Collator
from semalign.training.suffix import SuffixModel


@pytest.fixture(scope="module")
def straight(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TransferConfig, RunFolder]:
    """A finished run with every recipe as baseline, so that all signals are in its cache."""
    evaluation = EvaluationConfig(baselines=("cosine", "fisher", "kl", "cross_entropy"))
    config = config_of(
        tiny_pair, rows_file, tmp_path_factory.mktemp("straight") / "run", evaluation=evaluation
    )
    return config, transfer(config, STEPS)


@torch.no_grad()
def literal(recipe: str, config: TransferConfig, run: RunFolder, numbers: list[int]) -> float:
    """The recipe's first loss from whole models and full logits, straight from the formulas."""
    inputs = load_inputs(config)
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(c.model_name_or_path) for c in (config.teacher, config.student)
    )
    samples = [inputs.train[n] for n in numbers]
    padded = collate(samples)
    states, labels = state_mask(padded["mask"]), torch.cat([labels_of(s) for s in samples])
    seen: dict[int, torch.Tensor] = {}
    for k, layer in enumerate(student.model.layers, start=1):
        module = layer.mlp if recipe == "cosine" else layer
        module.register_forward_hook(lambda m, a, out, k=k: seen.__setitem__(k, out[states].double()))
    raw: dict[int, torch.Tensor] = {}
    for k, layer in enumerate(teacher.model.layers, start=1):
        module = layer.mlp if recipe == "cosine" else layer
        module.register_forward_hook(lambda m, a, out, k=k: raw.__setitem__(k, out[states].double()))
    with torch.no_grad():
        z_T, z_S = (
            m(padded["input_ids"], padded["attention_mask"]).logits[states].double()
            for m in (teacher, student)
        )
    if recipe == "cross_entropy":
        return float(-log_softmax(z_S, -1)[range(len(labels)), labels].mean())
    if recipe == "kl":
        return float(
            kl_div(log_softmax(z_S, -1), log_softmax(z_T, -1), reduction="batchmean", log_target=True)
        )
    plan = read_plan(run)
    interpolated = {
        p.student: (1 - p.fraction) * raw[p.teacher] + p.fraction * raw.get(p.teacher + 1, raw[p.teacher])
        for p in plan.pairs
    }
    if recipe == "cosine":
        bases = [torch.linalg.pinv(m.lm_head.weight.double()) for m in (teacher, student)]
        S_T, S_S = (b / b.norm(dim=0) for b in bases)
        terms = []
        for k, h in interpolated.items():
            a = (h / h.norm(dim=1, keepdim=True)) @ S_T
            terms.append(1 - cosine_similarity(seen[k], a @ S_S.T, dim=1).mean())
        output = 1 - cosine_similarity(z_S, one_hot(labels, z_S.shape[1]).double(), dim=1).mean()
        return float(torch.stack(terms).mean() + output)
    union = [
        sorted({*t.topk(8).indices.tolist(), *s.topk(8).indices.tolist(), int(label)})
        for t, s, label in zip(z_T, z_S, labels, strict=True)
    ]
    # Everything outside a union J is one more token.
    p_T, p_S = z_T.softmax(-1), z_S.softmax(-1)

    def coarse(p: torch.Tensor, n: int) -> torch.Tensor:
        """log p on J and the rest."""
        inside = p[n, union[n]]
        return torch.cat([inside, 1 - inside.sum(0, keepdim=True)]).log()

    maps = read_tensors(run.targets / "maps.safetensors")
    targets = {
        k: h @ maps[f"ridge.block.{k}"].double().T + maps[f"ridge.block.{k}.bias"].double()
        for k, h in interpolated.items()
    }
    if recipe == "aligned":
        output = torch.stack(
            [
                kl_div(coarse(p_S, n), coarse(p_T, n), reduction="sum", log_target=True)
                for n in range(len(union))
            ]
        ).mean()
        layer = torch.stack(
            [1 - cosine_similarity(seen[k], t, dim=1).mean() for k, t in targets.items()]
        ).mean()
        return float(output + 0.1 * layer)

    def surrogate(w: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return (w * (d - (w * d).sum() / w.sum()) ** 2).sum() / 2

    output = torch.stack(
        [
            surrogate((coarse(p_T, n).exp() + coarse(p_S, n).exp()) / 2, coarse(p_S, n) - coarse(p_T, n))
            for n in range(len(union))
        ]
    ).mean()

    head, norm = student.lm_head.weight.double(), student.model.norm
    with torch.no_grad():
        lens = [
            norm(seen[k].float()).double() @ head.T - norm(t.float()).double() @ head.T
            for k, t in targets.items()
        ]
    layers = [surrogate((p_T[n, J] + p_S[n, J]) / 2, d[n, J]) for d in lens for n, J in enumerate(union)]
    return float(output + 0.1 * torch.stack(layers).mean())


@pytest.mark.parametrize("recipe", ["aligned", "cosine", "fisher", "kl", "cross_entropy"])
def test_the_first_loss_equals_the_literal_formula(
    straight: tuple[TransferConfig, RunFolder], recipe: str
) -> None:
    config, run = straight
    from semalign.methods import methods

    prepared = Prepared.read(config, run, load_inputs(config))
    inputs, plan = prepared.inputs, prepared.plan
    student = load(config.student)
    share_vocabulary(inputs.vocabulary, student)
    chosen = methods()[recipe]
    head = prepared.teacher_head if chosen.needs_teacher_head else None
    collator = Collator(inputs.train, supervision_of(prepared, chosen), prepared.stores.student)
    numbers = [0, 5, 9]
    with torch.no_grad():
        model = SuffixModel(student, plan.cut, chosen, plan.pairs, candidates_of(inputs.train), head)
        ours = float(model(**collator([{"index": n} for n in numbers]))["loss"])
    assert ours == pytest.approx(literal(recipe, config, run, numbers), rel=2e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"cache_prefix": False},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"activation_checkpointing": True},
        {"cache_prefix": False, "live_teacher": True},
    ],
    ids=["whole student", "accumulation", "checkpointing", "live teacher"],
)
def test_other_ways_to_the_same_losses(
    straight: tuple[TransferConfig, RunFolder], tmp_path: Path, changes: dict[str, Any]
) -> None:
    config, run = straight
    other = replace(config, output_dir=str(tmp_path / "run"), train=replace(TRAIN, **changes))
    assert losses(transfer(other, STEPS)) == pytest.approx(losses(run), rel=2e-3)


def test_only_the_planned_layers_change_and_the_student_loads_plainly(
    straight: tuple[TransferConfig, RunFolder],
) -> None:
    config, run = straight
    before = AutoModelForCausalLM.from_pretrained(config.student.model_name_or_path).state_dict()
    after = AutoModelForCausalLM.from_pretrained(run.root / "student").state_dict()
    assert before.keys() == after.keys()
    moved = {name.split(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {str(k - 1) for k in read_plan(run).trained_layers}


def test_training_lowers_the_loss(straight: tuple[TransferConfig, RunFolder]) -> None:
    values = losses(straight[1])
    assert values[-1] < values[0]


def test_a_teacher_equal_to_the_student_has_nothing_to_teach(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(
        (tiny_pair[1], tiny_pair[1]), rows_file, tmp_path / "run", recipe=RecipeConfig("aligned", map="logit", interface="output", layer_weight=1.0),
        pairing=PairingConfig(num_layers=1),
    )  # fmt: skip
    run = transfer(config, STEPS)
    assert losses(run)[0] == pytest.approx(0, abs=1e-4)
    aligned = json.loads(run.manifest.read_text())["alignment"]
    assert aligned[0]["cosine"] == pytest.approx(1, abs=1e-4)


def test_fisher_layers_need_the_residual_stream() -> None:
    from semalign.methods import resolve

    with pytest.raises(ConfigError, match="use block"):
        resolve(RecipeConfig(name="fisher", interface="mlp"))
    with pytest.raises(ConfigError, match="at least one loss"):
        resolve(RecipeConfig(output_loss="none", layer_loss="none"))
