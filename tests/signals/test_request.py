"""What a run stores is the union of what its recipes read, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from in_memory import CACHE, HEADS, PAIRS, config_of
from tiny import full_weights

from semalign.config import CacheConfig, EvaluationConfig, RecipeConfig
from semalign.errors import ConfigError
from semalign.methods import method, methods, resolve
from semalign.methods.loss import TEACHER_OUTPUT, TOPK
from semalign.signals.plan import Plan
from semalign.signals.request import (
    PREFIX,
    PREFIX_SCALE,
    Request,
    is_of_teacher,
    own_name,
    position_name,
    recipes_of,
    request_of,
    target_name,
    teacher_name,
    wanted_keys,
)


def requested(recipe: str | RecipeConfig, plan: Plan = PAIRS, **changes: Any) -> tuple[Request, list[Any]]:
    recipe = RecipeConfig(recipe) if isinstance(recipe, str) else recipe
    return request_of(config_of(Path("run"), recipe=recipe, **changes), plan)


def baselines(*names: str) -> EvaluationConfig:
    return EvaluationConfig(baselines=names)


def test_names_of_records_differ_by_model_interface_place_and_map() -> None:
    names = {own_name(i, k) for i in ("block", "mlp") for k in ("2", "2h1")}
    names |= {teacher_name(i, k) for i in ("block", "mlp") for k in ("2", "2h1")}
    names |= {target_name(m, i, k) for m in ("ridge", "none") for i in ("block", "mlp") for k in ("2", "2h1")}
    assert len(names) == 4 + 4 + 8
    assert all(name.startswith("positions.") for name in names), (
        "a shard splits these by supervised positions"
    )


def test_only_activations_that_wait_for_their_map_are_raw() -> None:
    assert is_of_teacher(teacher_name("block", "2"))
    others = (own_name("block", "2"), target_name("ridge", "block", "2"), PREFIX)
    assert not any(map(is_of_teacher, (*others, *map(position_name, (*TOPK, *TEACHER_OUTPUT)))))


@pytest.mark.parametrize("name", sorted(methods()))
def test_a_batch_has_what_the_recipe_reads_and_one_target_a_place(name: str) -> None:
    recipe = method(name)
    keys = wanted_keys(recipe, ["2", "3"])
    targets = {"target.2", "target.3"} if recipe.layer is not None else set()
    assert set(keys.values()) == set(recipe.reads) | targets and len(keys) == len(set(keys.values()))


def test_heads_stand_in_the_layers_place_at_their_own_interface_alone() -> None:
    request = Request(pairs=HEADS.pairs, heads=HEADS.heads)
    assert request.at("head") == HEADS.heads
    assert all(request.at(i) == HEADS.pairs for i in ("block", "mlp", "output"))


def test_streams_in_eight_bits_are_read_with_their_scales() -> None:
    assert Request(pairs=()).prefix_keys == [PREFIX]
    assert Request(pairs=(), prefix_dtype="int8").prefix_keys == [PREFIX, PREFIX_SCALE]


@pytest.mark.parametrize(
    ("fields", "student", "teacher"),
    [
        ({}, False, False),
        ({"cut": 1}, True, False),
        ({"teacher_output": True}, False, True),
        ({"top_k": 4}, True, True),
        ({"interfaces": ("block",)}, True, True),
    ],
)
def test_a_model_runs_over_the_rows_only_where_something_of_it_is_read(
    fields: dict[str, Any], student: bool, teacher: bool
) -> None:
    request = Request(pairs=PAIRS.pairs, **fields)
    assert (request.needs_student, request.needs_teacher) == (student, teacher)


def test_a_run_has_its_own_recipe_and_every_baseline_by_name() -> None:
    given: dict[str, dict[str, Any]] = {"kl": {}, "tuned": {"name": "cosine", "learning_rate": 2e-3}}
    config = config_of(Path("run"), evaluation=EvaluationConfig(baselines=given))
    found = recipes_of(config)
    assert list(found) == [None, "kl", "tuned"]
    assert found[None] == resolve(config.recipe) and found["kl"] == method("kl")
    assert (found["tuned"].layer_loss, found["tuned"].learning_rate) == ("cosine", 2e-3)


def test_a_baseline_that_is_no_method_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.baselines: .*did you mean cosine"):
        recipes_of(config_of(Path("run"), evaluation=baselines("cosin")))


def test_everything_that_some_recipe_reads_is_requested_once() -> None:
    request, wanted = requested("aligned", evaluation=baselines("cosine", "kl", "hidden_mse", "fisher"))
    assert wanted == [("none", "block"), ("ridge", "block"), ("semantic", "mlp")]
    assert request.interfaces == ("block", "mlp")
    assert request.teacher_output and request.top_k == CACHE.top_k
    assert request.pairs == PAIRS.pairs and request.heads == ()


def test_a_control_without_a_teacher_requests_the_prefix_alone() -> None:
    request, wanted = requested("cross_entropy")
    assert wanted == [] and request == Request(pairs=PAIRS.pairs, cut=PAIRS.cut, dtype=torch.float32)


@pytest.mark.parametrize(
    ("recipe", "top_k", "teacher_output"), [("kl", 0, True), ("cosine", 0, False), ("aligned", 8, False)]
)
def test_outputs_are_kept_as_the_loss_at_the_output_reads_them(
    recipe: str, top_k: int, teacher_output: bool
) -> None:
    request, _ = requested(recipe)
    assert (request.top_k, request.teacher_output) == (top_k, teacher_output)


def test_a_weighted_fit_reads_the_top_k_whatever_the_loss() -> None:
    plain = RecipeConfig("cosine", map="ridge")
    assert requested(plain)[0].top_k == 0
    assert requested(RecipeConfig("cosine", map="weighted_ridge"))[0].top_k == CACHE.top_k


def test_no_prefix_is_kept_where_the_whole_student_runs() -> None:
    assert requested("aligned")[0].cut == 1
    assert requested("aligned", train=full_weights(cache_prefix=False))[0].cut is None
    whole = Plan(PAIRS.pairs, (1, 2, 3))
    assert requested("aligned", whole)[0].cut is None, "below the first layer there is nothing to keep"


def test_types_are_those_of_the_config() -> None:
    request, _ = requested("aligned", cache=CacheConfig(dtype="float16", prefix_dtype="fp8"))
    assert request.dtype == torch.float16 and request.prefix_dtype == "fp8"


def test_heads_without_pairs_of_heads_name_the_option() -> None:
    recipe = RecipeConfig("aligned", interface="head", layer_weight=1.0)
    assert requested(recipe, HEADS)[0].heads == HEADS.heads
    with pytest.raises(ConfigError, match=r"the plan has none; set pairing\.heads"):
        requested(recipe)
    with pytest.raises(ConfigError, match=r"set pairing\.heads"):
        given = {"heads": {"name": "aligned", "interface": "head"}}
        requested("aligned", evaluation=EvaluationConfig(baselines=given))


@pytest.mark.parametrize(
    ("recipe", "plan", "label"),
    [
        ("aligned", Plan(PAIRS.pairs, (3,)), "T3.5 → S2"),
        ("acl", Plan(PAIRS.pairs, (3,)), "T3.5 → S2"),
        (RecipeConfig("aligned", interface="head"), Plan(PAIRS.pairs[1:], (3,), HEADS.heads), "T3h2 → S2h1"),
    ],
)
@pytest.mark.parametrize("cache_prefix", [True, False])
def test_a_pair_below_all_that_is_trained_is_refused(
    recipe: str | RecipeConfig, plan: Plan, label: str, cache_prefix: bool
) -> None:
    train = full_weights(cache_prefix=cache_prefix)
    sentence = rf"at or above the lowest trained layer, 3,.*got {label}; add layer 2 to trained_layers or delete the pair"
    with pytest.raises(ConfigError, match=sentence):
        requested(recipe, plan, train=train)
    baseline = recipe if isinstance(recipe, str) else recipe.name
    if plan.pairs == PAIRS.pairs:
        with pytest.raises(ConfigError, match=sentence):
            requested("cross_entropy", plan, evaluation=baselines(baseline))


@pytest.mark.parametrize(
    "recipe",
    [
        "aligned_output",
        "kl",
        RecipeConfig("aligned", trained="all"),
        RecipeConfig("aligned", interface="output"),
    ],
    ids=str,
)
def test_a_pair_below_does_no_harm_where_nothing_is_read_of_its_layer_or_all_are_trained(
    recipe: str | RecipeConfig,
) -> None:
    assert requested(recipe, Plan(PAIRS.pairs, (3,)))[0].pairs == PAIRS.pairs


def test_a_paired_layer_above_a_trained_one_need_not_be_trained() -> None:
    assert requested("aligned", Plan(PAIRS.pairs, (2,)))[0].cut == 1
