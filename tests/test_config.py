"""What a config refuses by itself, and how configs become plain values, names and differences."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny import config_of
from transformers import TrainingArguments

from semalign import config as options
from semalign.config import (
    AttributionConfig,
    CacheConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimiserConfig,
    PairingConfig,
    RecipeConfig,
    RecipeFields,
    TrainConfig,
    TransferConfig,
    by_name,
    differences,
    plain,
    resolve_path,
    without_names,
)
from semalign.errors import ConfigError
from semalign.methods.recipe import Recipe
from semalign.parsing import build_config


def whole(**changes: Any) -> TransferConfig:
    """A config with nothing but what is required, and changes."""
    return TransferConfig(ModelConfig("t"), ModelConfig("s"), DataConfig("rows"), "out", **changes)


@pytest.mark.parametrize(
    ("weights", "field"),
    [({"a": 0}, "data.dataset_name.a"), ({}, "data.dataset_name"), ({"a": -1.0}, "a: expected a weight")],
)
def test_weights_are_checked(weights: dict[str, float], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        DataConfig(weights)


def test_the_live_teacher_cannot_be_combined_with_a_cached_prefix() -> None:
    with pytest.raises(ConfigError, match=r"expected false unless train\.cache_prefix is false"):
        TrainConfig(live_teacher=True)


def test_what_has_not_been_tested_is_refused(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="either offload or quantisation to 8 or 4 bits"):
        ModelConfig("x", offload="cpu", load_in_4bit=True)
    with pytest.raises(ConfigError, match="GGUF"):
        ModelConfig("x.gguf", offload="disk")
    config = config_of(tiny_pair, rows_file, tmp_path)
    with pytest.raises(ConfigError, match=r"student\.offload"):
        replace(config, student=replace(config.student, offload="cpu"))


def test_blending_goes_with_depth_alone() -> None:
    with pytest.raises(ConfigError, match="expected false unless match is depth"):
        PairingConfig(match="cka", interpolate=True)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ModelConfig(""), "model_name_or_path: expected a folder, hub id or .gguf file, got ''"),
        (lambda: ModelConfig("x", load_in_8bit=True, load_in_4bit=True), "load_in_8bit: expected either 8 or 4 bits, got 'both'"),
        (lambda: ModelConfig("x", load_in_8bit=True, offload="disk"), "offload: expected either offload or quantisation to 8 or 4 bits"),
        (lambda: ModelConfig("x.gguf", offload="cpu"), "offload: expected a checkpoint in safetensors"),
        (lambda: DataConfig(""), "data.dataset_name: expected a dataset, or several with weights, got 'none'"),
        (lambda: DataConfig({"a": float("inf")}), "data.dataset_name.a: expected a weight greater than 0, got inf"),
        (lambda: DataConfig({"a": float("nan")}), "data.dataset_name.a: expected a weight greater than 0, got nan"),
        (lambda: DataConfig("x", heldout_rows=-1), "data.heldout_rows: expected a count of rows, got -1"),
        (lambda: DataConfig("x", max_rows=0), "data.max_rows: expected a positive count or null, got 0"),
        (lambda: DataConfig("x", variants=-1), "data.variants: expected a count of prompts per row, got -1"),
        (lambda: DataConfig("x", max_new_tokens=0), "data.max_new_tokens: expected a positive count, got 0"),
        (lambda: DataConfig("x", max_length=1), "data.max_length: expected at least 2 tokens, got 1"),
        (lambda: DataConfig("x", max_dropped=1.1), "data.max_dropped: expected a share between 0 and 1, got 1.1"),
        (lambda: DataConfig("x", max_dropped=-0.1), "data.max_dropped: expected a share between 0 and 1, got -0.1"),
        (lambda: AttributionConfig(rows=0), "attribution.rows: expected a positive count, got 0"),
        (lambda: AttributionConfig(batch_size=0), "attribution.batch_size: expected a positive count, got 0"),
        (lambda: PairingConfig(num_layers=0), "pairing.num_layers: expected a positive count, got 0"),
        (lambda: PairingConfig(cost=0.9), "pairing.cost: expected at least 1, got 0.9"),
        (lambda: PairingConfig(num_layers=1, cost=2.0), "pairing.cost: expected num_layers or cost, got 'both'"),
        (lambda: PairingConfig(layers=(1,), num_layers=1), "pairing.layers: expected layers, num_layers or cost"),
        (lambda: PairingConfig(layers=(1,), cost=2.0), "pairing.layers: expected layers, num_layers or cost"),
        (lambda: PairingConfig(layers=(2, 2)), "pairing.layers: expected different layers, counted from 1, got [2, 2]"),
        (lambda: PairingConfig(layers=(0,)), "pairing.layers: expected different layers, counted from 1, got [0]"),
        (lambda: PairingConfig(rows=0), "pairing.rows: expected a positive count, got 0"),
        (lambda: PairingConfig(heads=-1), "pairing.heads: expected a count of heads, got -1"),
        (lambda: PairingConfig(interpolate=True, match="nearest"), "pairing.interpolate: expected false unless match is depth"),
        (lambda: CacheConfig(top_k=0), "cache.top_k: expected a positive count, got 0"),
        (lambda: CacheConfig(batch_size=0), "cache.batch_size: expected a positive count, got 0"),
        (lambda: CacheConfig(shard_rows=0), "cache.shard_rows: expected a positive count, got 0"),
        (lambda: CacheConfig(ridge_penalty=-1.0), "cache.ridge_penalty: expected a penalty of 0 or more, or null, got -1.0"),
        (lambda: TrainConfig(num_train_epochs=0), "train.num_train_epochs: expected more than 0, got 0"),
        (lambda: TrainConfig(lora_r=-1), "train.lora_r: expected 0 or a rank, got -1"),
        (lambda: TrainConfig(per_device_train_batch_size=0), "train.per_device_train_batch_size: expected a positive count, got 0"),
        (lambda: TrainConfig(live_teacher=True), "train.live_teacher: expected false unless train.cache_prefix is false"),
        (lambda: whole(push_to_hub=True), "hub_model_id: expected ORG/NAME, since push_to_hub is true, got None"),
        (lambda: whole(push_to_hub=True, hub_model_id=""), "hub_model_id: expected ORG/NAME, since push_to_hub is true, got ''"),
        (
            lambda: replace(whole(), student=ModelConfig("s", offload="disk")),
            "student.offload: expected null, since a student that is trained has to stay in memory, got 'disk'",
        ),
        (
            lambda: whole(recipe=RecipeConfig("aligned", interface="head"), train=TrainConfig(activation_checkpointing=True)),
            "train.activation_checkpointing: expected false with recipe.interface head",
        ),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named_with_what_was_expected(
    make: Callable[[], object], said: str
) -> None:
    with pytest.raises(ConfigError, match="^" + re.escape(said)) as caught:
        make()
    assert str(caught.value).endswith("; change it in the config or on the command line.")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ModelConfig("x", offload="disk"),
        lambda: ModelConfig("x.gguf", load_in_8bit=True),
        lambda: DataConfig("x", heldout_rows=0, max_rows=1, max_length=2, max_new_tokens=1, max_dropped=1.0),
        lambda: DataConfig({"a": 1e-9, "b": 3.0}, max_dropped=0.0),
        lambda: PairingConfig(cost=1.0),
        lambda: PairingConfig(layers=(3, 1), interpolate=True, heads=2),
        lambda: CacheConfig(top_k=1, batch_size=1, shard_rows=1, ridge_penalty=0.0),
        lambda: TrainConfig(num_train_epochs=0.01, live_teacher=True, cache_prefix=False),
        lambda: whole(push_to_hub=True, hub_model_id="me/student"),
        lambda: whole(
            recipe=RecipeConfig("aligned", interface="attn"), train=TrainConfig(activation_checkpointing=True)
        ),
    ],
)
def test_what_lies_just_inside_a_bound_is_taken(make: Callable[[], object]) -> None:
    make()


def groups(owner: type = TransferConfig) -> Iterator[type]:
    """A config dataclass and those in its fields."""
    yield owner
    for kind in get_type_hints(owner).values():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from groups(kind)


def test_no_config_can_be_changed_after_it_was_checked() -> None:
    for owner in groups():
        assert owner.__dataclass_params__.frozen, owner  # type: ignore[attr-defined]


def test_every_field_has_its_help_as_the_docstring_under_it() -> None:
    tree = ast.parse(Path(options.__file__).read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    named = [*{owner.__name__ for owner in groups()}, "RecipeFields", "OptimiserConfig"]
    for name in named:
        body = classes[name].body
        for node, following in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign):
                assert isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant), (
                    ast.dump(node)
                )


def test_optimiser_fields_are_those_of_transformers_by_name() -> None:
    theirs = {f.name for f in dataclasses.fields(TrainingArguments)}
    ours = {f.name for f in dataclasses.fields(OptimiserConfig)}
    assert ours <= theirs


def test_a_config_leaves_every_field_of_its_recipe_open_but_the_name() -> None:
    given = {f.name: getattr(RecipeConfig(), f.name) for f in dataclasses.fields(RecipeFields)}
    assert given.pop("name") == "aligned_output"
    assert set(given.values()) == {None}
    optional = {"learning_rate", "lora_r", "lora_target_modules"}
    for f in dataclasses.fields(Recipe):
        assert (getattr(Recipe("x"), f.name) is None) == (f.name in optional), f.name


def test_a_config_survives_yaml_and_json(tmp_path: Path) -> None:
    config = config_of((tmp_path / "t", tmp_path / "s"), tmp_path / "rows.jsonl", tmp_path / "run")
    config = replace(
        config,
        data=DataConfig({"a": 2.0, "b": 1.0}, max_dropped=0.25),
        pairing=PairingConfig(layers=(3, 1)),
        recipe=RecipeConfig("laten", lora_target_modules=("up_proj",), learning_rate=1e-5),
        evaluation=replace(
            config.evaluation, baselines={"kl": {"temperature": 2.0}, "cosine": {}}, harness=("gsm8k",)
        ),
        hub_private_repo=False,
    )
    values = plain(config)
    assert build_config(yaml.safe_load(yaml.safe_dump(values)), tmp_path) == config
    assert json.loads(json.dumps(values)) == values, "no tuple and no object is left"
    assert differences(values, plain(config)) == []


def test_rows_are_known_without_the_names_of_their_files() -> None:
    one, other = (DataConfig(name, heldout_name=name, max_length=9) for name in ("here.jsonl", "there.jsonl"))
    assert without_names(one) == without_names(other) != without_names(replace(one, max_length=8))
    assert set(without_names(one)) == {f.name for f in dataclasses.fields(DataConfig)}


def test_one_dataset_has_the_weight_one() -> None:
    assert DataConfig("a").weights == {"a": 1.0}
    assert DataConfig({"a": 3.0, "b": 1.0}).weights == {"a": 3.0, "b": 1.0}


@pytest.mark.parametrize(
    ("changes", "is_generated"),
    [
        ({}, False),
        ({"completions": "teacher"}, True),
        ({"variants": 1}, True),
        ({"variants_by": "teacher"}, False),
    ],
)
def test_the_teacher_writes_where_answers_or_new_prompts_are_asked_for(
    changes: dict[str, Any], is_generated: bool
) -> None:
    assert DataConfig("x", **changes).is_generated is is_generated


def test_names_may_come_with_fields_of_their_own_or_without() -> None:
    assert by_name(("a", "b")) == {"a": {}, "b": {}} and by_name(()) == {}
    given = {"a": {"x": 1}, "b": None}
    found = by_name(given)
    assert found == {"a": {"x": 1}, "b": {}}
    found["a"]["x"] = 2
    assert given["a"] == {"x": 1}, "the given fields stay as they are"


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}}, ["a.b: 1 -> 3"]),
        ({"a": 1}, {"b": "x"}, ["a: 1 -> None", "b: None -> 'x'"]),
        ({"a": {"b": {"c": None}}}, {"a": {"b": {"c": [1]}}}, ["a.b.c: None -> [1]"]),
        ({"a": {"b": 1}}, {"a": 1}, ["a: {'b': 1} -> 1"]),
    ],
)
def test_differences_have_the_dotted_path_and_both_values(
    old: dict[str, Any], new: dict[str, Any], lines: list[str]
) -> None:
    assert differences(old, new) == lines


nested = st.recursive(
    st.integers(0, 2), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=6
)
mappings = st.dictionaries(st.sampled_from("abc"), nested, max_size=3)


@given(mappings, mappings)
def test_there_are_differences_where_values_differ_and_only_there(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    assert differences(old, old) == []
    assert bool(differences(old, new)) == (old != new)
    assert len(differences(old, new)) == len(differences(new, old))


def test_a_name_is_a_path_where_it_exists_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "model").mkdir()
    assert resolve_path("rows.jsonl", tmp_path) == str(tmp_path / "rows.jsonl")
    assert resolve_path("model", tmp_path) == str(tmp_path / "model")
    for name in ("org/model", "embedded:teacher", "s3://bucket/rows", "/rows.jsonl"):
        assert resolve_path(name, tmp_path) == name


@pytest.mark.parametrize(
    "label", ["..", "../../victim", "/etc", "a/b", "", "-x", "before", "after", "teacher"]
)
def test_a_baseline_s_name_is_no_path_and_no_name_that_is_taken(label: str) -> None:
    with pytest.raises(
        ConfigError, match=r"evaluation\.baselines: expected names of letters, digits, \. _ and -"
    ):
        EvaluationConfig(baselines={label: {"name": "cross_entropy"}})
    with pytest.raises(ConfigError, match=r"evaluation\.baselines"):
        EvaluationConfig(baselines=(label,))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: EvaluationConfig(batch_size=0), "evaluation.batch_size"),
        (lambda: EvaluationConfig(max_new_tokens=0), "evaluation.max_new_tokens"),
        (lambda: EvaluationConfig(max_items=-1), "evaluation.max_items"),
        (lambda: EvaluationConfig(cka_rows=-1), "evaluation.cka_rows"),
        (lambda: CacheConfig(max_bytes=-1), "cache.max_bytes"),
        (lambda: TrainConfig(gradient_accumulation_steps=0), "train.gradient_accumulation_steps"),
        (lambda: TrainConfig(logging_steps=0), "train.logging_steps"),
        (lambda: TrainConfig(save_steps=-3), "train.save_steps"),
    ],
)
def test_counts_are_checked_before_anything_runs(make: Callable[[], object], field: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(field)):
        make()
