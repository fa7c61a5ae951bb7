"""How configs become plain values, names and differences, and what is refused of the whole."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny import config_of

from semalign.config import (
    DataConfig,
    ModelConfig,
    PairingConfig,
    RecipeConfig,
    ServerConfig,
    TrainConfig,
    TransferConfig,
    by_name,
    completed,
    decisive,
    differences,
    plain,
    resolve_path,
    without_names,
)
from semalign.config.parsing import build_config
from semalign.config.values import LATER
from semalign.methods import Recipe
from semalign.run.files import hash_of

from .refused import assert_refused


def whole(**changes: Any) -> TransferConfig:
    """A config with nothing but what is required, and changes."""
    return TransferConfig(ModelConfig("t"), ModelConfig("s"), DataConfig("rows"), "out", **changes)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: whole(push_to_hub=True), "hub_model_id: expected ORG/NAME, since push_to_hub is true, got None"),
        (lambda: whole(push_to_hub=True, hub_model_id=""), "hub_model_id: expected ORG/NAME, since push_to_hub is true, got ''"),
        (
            lambda: replace(whole(), student=ModelConfig("s", offload="disk")),
            "student.offload: expected null, since a student that is trained has to stay in memory, got 'disk'",
        ),
        *(
            (
                lambda data=data: replace(whole(), data=DataConfig("rows", **data), teacher=ModelConfig("t", server=ServerConfig("http://h"))),
                f"data.{name}: expected {expected} with teacher.server, since a server holds the weights",
            )
            for name, expected, data in (
                ("completions", "given, teacher or student", {"completions": "speculative"}),
                ("keep", "ended or right", {"completions": "teacher", "keep": "best"}),
                ("variants_by", "words", {"variants": 1, "variants_by": "teacher"}),
            )
        ),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named_with_what_was_expected(
    make: Callable[[], object], said: str
) -> None:
    assert_refused(make, said)


@pytest.mark.parametrize(
    "make",
    [
        lambda: whole(push_to_hub=True, hub_model_id="me/student"),
        lambda: whole(
            recipe=RecipeConfig("aligned", interface="attn"), train=TrainConfig(activation_checkpointing=True)
        ),
    ],
)
def test_what_lies_just_inside_a_bound_is_taken(make: Callable[[], object]) -> None:
    make()


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


def test_an_option_that_came_later_is_known_only_where_it_is_set(tmp_path: Path) -> None:
    before, after = TrainConfig(), TrainConfig(fsdp=True)
    assert "fsdp" not in decisive(before) and decisive(after)["fsdp"] is True
    assert set(decisive(after)) == {f.name for f in dataclasses.fields(TrainConfig)}
    config = whole()
    written = plain(config)
    del written["train"]["fsdp"]
    assert differences(completed(written, config), plain(config)) == []
    changed = replace(config, train=after)
    assert differences(completed(written, changed), plain(changed)) == ["train.fsdp: False -> True"]


ALWAYS_KNOWN = "96e980d1bf4ff8d0"


def test_what_was_made_before_an_option_came_stays_valid() -> None:
    groups = {k: g for k, g in vars(whole()).items() if dataclasses.is_dataclass(g)}
    assert set(decisive(Recipe())) == set(decisive(groups["recipe"]))
    known = sorted(f"{k}.{name}" for k, g in groups.items() for name in decisive(g))
    assert hash_of(known) == ALWAYS_KNOWN, (
        "an option was added: give it metadata=LATER, so that run folders and comparisons from before stay valid where it is not set; where "
        "its default changes what is made, or where an option went, take the new hash"
    )


def test_a_recipes_field_that_came_later_is_known_only_where_it_says_something_else() -> None:
    @dataclasses.dataclass(frozen=True)
    class Later(Recipe):
        softness: float | None = dataclasses.field(default=None, metadata={"recipe": 0.5, **LATER})

    assert Later().softness == 0.5 and decisive(Later()) == decisive(Later(softness=0.5)) == decisive(
        Recipe()
    )
    assert decisive(Later(softness=0.0)) == {**decisive(Recipe()), "softness": 0.0}


def test_rows_are_known_without_the_names_of_their_files() -> None:
    one, other = (DataConfig(name, heldout_name=name, max_length=9) for name in ("here.jsonl", "there.jsonl"))
    assert without_names(one) == without_names(other) != without_names(replace(one, max_length=8))
    assert set(without_names(one)) == {f.name for f in dataclasses.fields(DataConfig)}


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
