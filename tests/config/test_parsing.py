"""Configs from YAML, paths beside their file, and one sentence with the nearest name where one is wrong."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from semalign.config import TransferConfig, plain
from semalign.config.parsing import (
    Parser,
    Root,
    UsageError,
    beside,
    build_config,
    check_arguments,
    hint,
    keys,
    keys_of,
    load_config,
    parse_config,
    read_yaml,
    unknown_key,
)
from semalign.errors import ConfigError

LEAST: dict[str, Any] = {
    "teacher": {"model_name_or_path": "t"},
    "student": {"model_name_or_path": "s"},
    "data": {"dataset_name": "rows"},
    "output_dir": "out",
}


def test_bad_values_in_a_file_are_config_errors(config_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"cache\.top_k"):
        load_config(config_file, cache={"top_k": 0})
    with pytest.raises(ConfigError):
        load_config(config_file, seed="many")


def test_an_unknown_key_in_a_file_is_answered_with_the_nearest_in_python_too(config_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"'lora_q'.*did you mean train\.lora_r"):
        load_config(config_file, train={"lora_q": 0})
    with pytest.raises(
        ConfigError, match=r"learning_rate.*did you mean train\.learning_rate or recipe\.learning_rate\?"
    ):
        load_config(config_file, learning_rate=1e-3)


@pytest.fixture(scope="module")
def root() -> Root:
    """Commands as those of the command line: two that take a config, and one with a subcommand."""
    root = Root(prog="semalign", description="What it does.", usage="semalign COMMAND")
    root.helps = {"transfer": "all steps", "evaluate": "one of them", "data": "look at rows"}
    commands = {name: Parser() for name in root.helps}
    for name in ("transfer", "evaluate"):
        commands[name].add_class_arguments(TransferConfig)
    check = Parser()
    check.add_argument("file", type=str)
    check.add_argument("--against", type=str)
    root.add_commands("command", commands, root.helps)
    commands["data"].add_commands("action", {"check": check}, {"check": "the form of a file"})
    return root


def leaves(value: Any, prefix: str = "") -> list[str]:
    """Dotted names in nested dataclasses, those of groups first."""
    found = []
    for f in dataclasses.fields(value):
        own = getattr(value, f.name)
        found.append(prefix + f.name)
        if dataclasses.is_dataclass(own):
            found += leaves(own, f"{prefix}{f.name}.")
    return found


def test_the_keys_are_the_dotted_names_of_all_fields_and_options_of_every_config_command(root: Root) -> None:
    config = build_config(LEAST, Path())
    assert sorted(keys()) == sorted(leaves(config)) and len(set(keys())) == len(keys())
    for command in ("transfer", "evaluate"):
        groups = {key.split(".")[0] for key in keys() if "." in key}
        assert set(keys()) - groups <= set(keys_of(root.commands[command]))


def test_what_a_file_leaves_out_has_its_default() -> None:
    config = build_config(LEAST, Path())
    required = TransferConfig(config.teacher, config.student, config.data, "out")
    assert config == required and config.seed == 0 and config.recipe.learning_rate is None


def test_a_file_s_values_become_those_of_the_fields(tmp_path: Path) -> None:
    values = {
        **LEAST,
        "pairing": {"layers": [1, 3], "cost": None},
        "recipe": {"name": "kl", "learning_rate": 1},
        "evaluation": {"baselines": ["kl", "cosine"]},
        "hub_private_repo": True,
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    config = load_config(path, output_dir="elsewhere", train={"lora_r": 4})
    assert config.pairing.layers == (1, 3) and config.evaluation.baselines == ("kl", "cosine")
    assert config.recipe.learning_rate == 1.0 and config.hub_private_repo is True
    assert (config.output_dir, config.train.lora_r) == ("elsewhere", 4), "a keyword replaces the whole field"
    assert load_config(str(path)).output_dir == "out"


def test_models_and_rows_that_lie_beside_the_file_are_taken_from_there(tmp_path: Path) -> None:
    for name in ("teacher", "student"):
        (tmp_path / name).mkdir()
    for name in ("a.jsonl", "held.jsonl", "items.jsonl"):
        (tmp_path / name).write_text("")
    values = {
        "evaluation": {"tasks": "items.jsonl", "harness_path": "teacher"},
        "teacher": {"model_name_or_path": "teacher"},
        "student": {"model_name_or_path": "student"},
        "data": {"dataset_name": {"a.jsonl": 2.0, "org/rows": 1.0}, "heldout_name": "held.jsonl"},
        "output_dir": "run",
    }
    config = build_config(values, tmp_path)
    assert config.teacher.model_name_or_path == str(tmp_path / "teacher")
    assert config.student.model_name_or_path == str(tmp_path / "student")
    assert config.data.dataset_name == {str(tmp_path / "a.jsonl"): 2.0, "org/rows": 1.0}
    assert config.data.heldout_name == str(tmp_path / "held.jsonl")
    assert config.evaluation.tasks == str(tmp_path / "items.jsonl")
    assert config.evaluation.harness_path == str(tmp_path / "teacher")
    assert config.output_dir == "run", "the run folder counts from where the command runs"
    elsewhere = build_config(values, tmp_path / "elsewhere")
    assert elsewhere.teacher.model_name_or_path == "teacher" and elsewhere.data.heldout_name == "held.jsonl"
    single = build_config({**values, "data": {"dataset_name": "a.jsonl"}}, tmp_path)
    assert single.data.dataset_name == str(tmp_path / "a.jsonl") and single.data.heldout_name is None
    assert build_config(plain(single), tmp_path) == single, "a resolved path stays"


def test_the_copy_of_a_config_that_a_run_keeps_means_what_the_config_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs/mine"
    (run / "student").mkdir(parents=True)
    for path in ("rows.jsonl", "runs/mine/rows.jsonl", "runs/mine/environment.json"):
        (tmp_path / path).write_text("{}")
    values = {
        "teacher": {"model_name_or_path": "teacher"},
        "student": {"model_name_or_path": "student"},
        "data": {"dataset_name": "rows.jsonl"},
        "output_dir": "runs/mine",
    }
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    config = load_config("runs/mine/config.yaml")
    # Not the rows that the run has written, nor the student that it has trained.
    assert (config.data.dataset_name, config.student.model_name_or_path) == ("rows.jsonl", "student")
    (run / "environment.json").unlink()
    assert load_config(run / "config.yaml").data.dataset_name == str(run / "rows.jsonl"), "any other config"


def test_what_a_file_does_not_say_does_not_count_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    said = {"data": {"dataset_name": "others.jsonl"}, "teacher": {"model_name_or_path": "rows.jsonl"}}
    given = {"data": {"dataset_name": "rows.jsonl"}, "teacher": {"model_name_or_path": "rows.jsonl"}}
    found = beside(given, tmp_path, said)
    assert found["data"]["dataset_name"] == "rows.jsonl"
    assert found["teacher"]["model_name_or_path"] == str(tmp_path / "rows.jsonl")
    assert given["teacher"]["model_name_or_path"] == "rows.jsonl", "a copy"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [1", r"cannot be read as YAML \(.*\); give a config file"),
        ("a: b: c", r"cannot be read as YAML"),
        ("- a\n- b\n", r"expected fields and values, got list; give a config file"),
        ("just words", r"expected fields and values, got str"),
        ("", r"expected fields and values, got NoneType"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=rf"(?s)run\.yaml: {said}"):
        load_config(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.yaml", tmp_path):
        with pytest.raises(ConfigError, match=rf"{path.name}: cannot be read as YAML"):
            read_yaml(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": {"lora_q": 0}}, r"'lora_q'; did you mean train\.lora_r\?$"),
        (
            {"learning_rate": 1},
            r"'learning_rate'.*; did you mean train\.learning_rate or recipe\.learning_rate\?$",
        ),
        ({"data": {"dataset_name": "x", "max_lenght": 9}}, r"'max_lenght'; did you mean data\.max_length\?$"),
        ({"batch_size": 9}, r"did you mean \w+\.batch_size or \w+\.batch_size\?$"),
        ({"qqqqqq": 9}, r"'qqqqqq'.*; no field is named like it; see --help\.$"),
        ({"seed": "many"}, r"seed.*many"),
        ({"recipe": {"map": "sematic"}}, r"recipe\.map.*semantic.*sematic"),
        ({"teacher": None}, r"teacher\.model_name_or_path"),
        ({"data": {}}, r"data\.dataset_name"),
        ({"cache": {"top_k": 0}}, r"cache\.top_k: expected a positive count, got 0"),
    ],
)
def test_a_wrong_field_or_value_is_one_line_with_its_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        build_config({**LEAST, **changes}, Path())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", sorted(LEAST))
def test_a_required_field_that_is_missing_is_named(missing: str) -> None:
    with pytest.raises(ConfigError, match=missing):
        build_config({k: v for k, v in LEAST.items() if k != missing}, Path())


KNOWN = [
    "train.lora_r",
    "recipe.lora_r",
    "train.learning_rate",
    "recipe.learning_rate",
    "data.max_length",
    "cache.batch_size",
    "seed",
]


@pytest.mark.parametrize(
    ("key", "end"),
    [
        ("learning_rate", "did you mean train.learning_rate or recipe.learning_rate?"),
        ("data.learning_rate", "did you mean train.learning_rate or recipe.learning_rate?"),
        ("train.lora_rr", "did you mean train.lora_r?"),
        ("trian.max_length", "did you mean data.max_length?"),
        ("max_lenght", "did you mean data.max_length?"),
        ("sed", "did you mean seed?"),
        ("qqqqqq", "no field is named like it; see --help."),
    ],
)
def test_a_field_without_its_group_or_in_a_wrong_one_is_found_by_its_last_part(key: str, end: str) -> None:
    assert hint(key, KNOWN) == end


def test_of_several_fields_of_the_same_last_part_the_two_nearest_are_named() -> None:
    assert hint("lora_r", KNOWN) in (
        "did you mean train.lora_r or recipe.lora_r?",
        "did you mean recipe.lora_r or train.lora_r?",
    )
    assert hint("recip.lora_r", KNOWN) == "did you mean recipe.lora_r or train.lora_r?"
    three = ["evaluation.batch_size", "attribution.batch_size", "cache.batch_size"]
    assert hint("batch_size", three).count(" or ") == 1


@settings(max_examples=30)
@given(st.sampled_from(keys()), st.data())
def test_a_key_with_one_letter_missing_is_answered_with_a_key_at_least_as_near(
    key: str, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(key) - 1))
    typed = key[:at] + key[at + 1 :]
    found = hint(typed, keys()).removeprefix("did you mean ").removesuffix("?").split(" or ")[0]
    assert found in keys()
    last = typed.rsplit(".", 1)[-1]
    if all(k.rsplit(".", 1)[-1] != last for k in keys()):
        near, meant = (difflib.SequenceMatcher(None, other, typed).ratio() for other in (found, key))
        assert near >= meant


def test_the_parser_s_own_sentences_are_understood(root: Root) -> None:
    """What jsonargparse says of an unknown key is told by its words; a new version may use others."""
    for arguments, key in (
        (["transfer", "--train.lora_rr=1"], "train.lora_rr"),
        (["evaluate", "--seeed", "1"], "seeed"),
    ):
        with pytest.raises(UsageError) as caught:
            root.parse_args(arguments)
        assert unknown_key(str(caught.value)) == key
    assert unknown_key("Expected a <class 'int'>. Got value: many") is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trasnfer", "x.yaml"], r"'trasnfer'.*; did you mean transfer\?$"),
        (["xyzzy"], r"'xyzzy'.*; semalign --help lists the commands\.$"),
        (["data", "chek", "x.jsonl"], r"'chek'.*; did you mean check\?$"),
        (["data", "check", "x.jsonl", "--agianst=x"], r"--agianst=x; did you mean against\?$"),
        (["transfer", "--zz.q=1"], r"--zz\.q=1; no field is named like it; see --help\.$"),
        (["transfer", "--seed=x"], r"seed.*x; see --help\.$"),
        (["data", "check"], r"file; see --help\.$"),
    ],
)
def test_what_does_not_parse_is_one_line_that_ends_with_what_to_write(
    root: Root, arguments: list[str], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        root.parse_args(arguments)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_only_a_parser_with_subcommands_has_some(root: Root) -> None:
    assert Parser().commands == {} and root.commands["transfer"].commands == {}
    assert list(root.commands) == list(root.helps) and list(root.commands["data"].commands) == ["check"]


def test_help_has_a_line_for_each_command_in_order(root: Root) -> None:
    lines = root.format_help().splitlines()
    assert lines[0] == f"usage: {root.usage}" and root.description in lines
    places = [lines.index(next(x for x in lines if x.split()[:1] == [name])) for name in root.helps]
    assert places == list(range(places[0], places[0] + len(root.helps)))
    columns = {line.index(text) for line, text in zip(lines[places[0] :], root.helps.values(), strict=False)}
    assert len(columns) == 1, "the texts stand below each other"


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module on Python's path that leaves a mark when it is imported."""
    mark = tmp_path / "imported"
    (tmp_path / "trapmodule.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass X: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return mark


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher": "trapmodule.X"},
        {"teacher": {"class_path": "trapmodule.X"}},
        {"teacher": {"class_path": "trapmodule.X", "init_args": {}}},
        {"evaluation": "trapmodule.X"},
        {"train": ["trapmodule.X"]},
        {"teacher.class_path": "trapmodule.X"},
        {"evaluation": {"baselines": {"kl": {"class_path": "trapmodule.X"}}}},
        {"evaluation": {"harness": {"x": {"f": {"class_path": "trapmodule.X"}}}}},
        {"evaluation": {"harness": {"x": {"f": [{"class_path": "trapmodule.X"}]}}}},
        {"__path__": "trapmodule.X"},
        {"config": "other.yaml"},
    ],
    ids=str,
)
def test_no_config_imports_code_or_reads_another_file(trap: Path, changes: dict[str, Any]) -> None:
    path = trap.with_name("run.yaml")
    path.write_text(yaml.safe_dump({**LEAST, **changes}))
    (key,) = changes
    for read in (lambda: load_config(path), lambda: check_arguments(["--config", str(path)])):
        with pytest.raises(ConfigError, match=key.split(".")[0]):
            read()
    assert not trap.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--teacher", "trapmodule.X"],
        ["--teacher=trapmodule.X"],
        ["--train", "other.yaml"],
        ["--evaluation", '{"class_path": "trapmodule.X"}'],
        ["--evaluation.harness", '{"x": {"f": {"class_path": "trapmodule.X"}}}'],
        ["--evaluation.harness.x", '{"f": {"class\\u005fpath": "trapmodule.X"}}'],
    ],
    ids=str,
)
def test_no_argument_imports_code_or_reads_another_file(trap: Path, arguments: list[str]) -> None:
    with pytest.raises(UsageError, match=arguments[0].split("=")[0]):
        check_arguments(arguments)
    assert not trap.exists()


def test_arguments_for_single_fields_are_left_to_the_parser(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(LEAST))
    check_arguments(
        [
            "--config",
            str(path),
            "--train.lora_r",
            "8",
            "--evaluation.baselines=[kl]",
            "--json",
            "--output_dir",
            "x: [",
        ]
    )


def test_a_config_leaves_what_it_was_made_of_alone() -> None:
    values = {**LEAST, "data": {"dataset_name": {"a": 1}}, "evaluation": {"harness": {"x": {"f": 1}}}}
    before = repr(values)
    build_config(values, Path())
    assert repr(values) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "a\0b", "\ud800", 10**400, {1: 2}, b"x"])
def test_what_no_file_can_say_is_refused_from_python_too(value: Any) -> None:
    with pytest.raises(ConfigError, match="expected a text, a finite number or a boolean"):
        build_config({**LEAST, "seed": value}, Path())


def typed_leaves(
    group: type = TransferConfig, prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every field of a config that is no group, with its type."""
    for name, kind in get_type_hints(group).items():
        if dataclasses.is_dataclass(kind):
            yield from typed_leaves(kind, (*prefix, name))  # type: ignore[arg-type]
        else:
            yield (*prefix, name), kind


@pytest.mark.parametrize(
    ("path", "kind"), typed_leaves(), ids=lambda x: ".".join(x) if isinstance(x, tuple) else ""
)
def test_null_is_a_value_only_where_the_field_says_so(path: tuple[str, ...], kind: Any) -> None:
    values: dict[str, Any] = {
        "teacher": {"model_name_or_path": "a"},
        "student": {"model_name_or_path": "b"},
        "data": {"dataset_name": "rows.jsonl"},
        "output_dir": "x",
    }
    group = values
    for name in path[:-1]:
        group = group.setdefault(name, {})
    group[path[-1]] = None
    if type(None) in get_args(kind):
        found: Any = parse_config(values)
        for name in path:
            found = getattr(found, name)
        assert found is None
    else:
        with pytest.raises(ConfigError, match=rf"{re.escape('.'.join(path))}: expected a value, got null"):
            parse_config(values)
