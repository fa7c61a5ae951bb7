"""A run's folder is opened with the options that its steps have not used up yet, and with no others."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import config_of, full_weights

from semalign.config import CacheConfig, PairingConfig, RecipeConfig, TransferConfig
from semalign.errors import CacheError, ConfigError
from semalign.run.folder import RunFolder
from semalign.steps import pipeline
from semalign.steps.opening import changes, check_start, open_run, place_cache
from semalign.steps.pipeline import STEPS, transfer

CACHED = ("attribute", "pair", "cache")
TRAINED = (*CACHED, "train")


@pytest.fixture
def config(tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path) -> TransferConfig:
    return config_of(
        tiny_pair, rows_file, tmp_path / "run", train=full_weights(max_steps=2, per_device_train_batch_size=4)
    )


def changed(config: TransferConfig, **fields: Any) -> TransferConfig:
    """The config with other fields in its groups."""
    return replace(config, **{g: replace(getattr(config, g), **f) for g, f in fields.items()})


OTHERS: dict[str, dict[str, dict[str, Any]]] = {
    "rows": {"data": {"max_rows": 9}},
    "length": {"data": {"max_length": 50}},
    "layers": {"pairing": {"num_layers": 1}},
    "shards": {"cache": {"shard_rows": 5}},
    "recipe": {"recipe": {"name": "cross_entropy"}},
    "rate": {"train": {"learning_rate": 3e-4}},
    "batch": {"cache": {"batch_size": 3}},
}


@pytest.mark.parametrize(
    ("steps", "open_options"),
    [
        ((), set(OTHERS)),
        (("attribute", "pair"), set(OTHERS) - {"rows"}),
        (CACHED, {"recipe", "rate", "batch"}),
        (TRAINED, {"batch"}),
    ],
)
def test_an_option_may_change_until_a_step_has_used_it_up(
    config: TransferConfig, steps: tuple[str, ...], open_options: set[str]
) -> None:
    open_run(config)
    if steps:
        transfer(config, steps)
    written = RunFolder(Path(config.output_dir)).config.read_bytes()
    for name, fields in OTHERS.items():
        other = changed(config, **fields)
        if name in open_options:
            open_run(other)
            assert changes(other, RunFolder(Path(config.output_dir))) == []
            open_run(config)
        else:
            [[group, entry]] = fields.items()
            with pytest.raises(
                ConfigError, match=rf"holds a run with another config \({group}\.{next(iter(entry))}: "
            ):
                open_run(other)
        assert RunFolder(Path(config.output_dir)).config.read_bytes() == written


def test_what_a_step_refuses_is_set_right_in_the_same_folder(config: TransferConfig) -> None:
    tight = changed(config, cache={"max_bytes": 1000})
    with pytest.raises(CacheError, match="raise the limit"):
        transfer(tight, CACHED)
    run = transfer(changed(config, cache={"max_bytes": None}), CACHED)
    assert run.manifest.exists()


def test_a_file_of_somebody_s_own_in_the_place_of_the_run_s_config_is_left_alone(
    config: TransferConfig,
) -> None:
    folder = Path(config.output_dir)
    folder.mkdir()
    (folder / "config.yaml").write_text("# mine\nseed: 3\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: expected the name to be free"):
        open_run(config)
    assert [p.name for p in folder.iterdir()] == ["config.yaml"]
    assert (folder / "config.yaml").read_text() == "# mine\nseed: 3\n"


def test_a_cache_that_lies_in_the_run_does_not_move_in_silence(
    config: TransferConfig, tmp_path: Path
) -> None:
    run = transfer(config, CACHED)
    run.manifest.unlink()
    with pytest.raises(ConfigError, match=r"cache\.folder: expected null for a run whose cache lies in"):
        open_run(changed(config, cache={"folder": str(tmp_path / "big")}))
    assert open_run(config).targets.is_dir()


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_cache_folder_that_was_deleted_or_named_from_elsewhere_is_made_again(
    config: TransferConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_moved: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(config, cache=CacheConfig(folder="big"))
    run = RunFolder(Path(config.output_dir))
    place_cache(config, run)
    shutil.rmtree(tmp_path / "big")
    if is_moved:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
    place_cache(config, run)
    assert run.targets.resolve() == Path("big").absolute() and run.targets.is_dir()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"train": {"rounds": 2}, "recipe": {"name": "acl"}}, "train.rounds: expected 1 with recipe acl"),
        ({"train": {"rounds": 2}, "recipe": {"name": "pissa"}}, "train.rounds: expected 1 with recipe.start: pissa"),
        ({"train": {"report_to": "wandbb"}}, "train.report_to: expected one of none"),
    ],
)  # fmt: skip
def test_what_training_would_refuse_is_refused_before_anything_is_made(
    config: TransferConfig, fields: dict[str, dict[str, Any]], said: str
) -> None:
    recipe = RecipeConfig(fields.get("recipe", {}).get("name", "aligned"))
    wrong = replace(config, recipe=recipe, train=replace(config.train, **fields["train"]))
    with pytest.raises(ConfigError, match=said):
        check_start(wrong)
    with pytest.raises(ConfigError, match=said):
        transfer(wrong, STEPS)
    assert not Path(config.output_dir, "config.yaml").exists()


def test_a_repository_that_the_hub_would_not_take_is_refused_before_anything_is_made(
    config: TransferConfig,
) -> None:
    wrong = replace(config, push_to_hub=True, hub_model_id="a/b/c")
    with pytest.raises(ConfigError, match="hub_model_id: expected a name such as ORG/NAME, got 'a/b/c'"):
        transfer(wrong, STEPS)
    assert not Path(config.output_dir, "config.yaml").exists()


def test_a_teacher_whose_layers_nobody_may_read_is_refused_before_it_answers(
    config: TransferConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "generate", lambda *_: pytest.fail("the teacher was asked"))
    served = replace(config.teacher, server=replace(config.teacher.server, url="http://127.0.0.1:1"))
    asked = changed(replace(config, teacher=served), data={"completions": "teacher"})
    with pytest.raises(ConfigError, match="teacher: expected a model whose layers SemAlign knows for"):
        transfer(replace(asked, pairing=PairingConfig("attribution")), STEPS)


def test_of_several_processes_one_writes_the_card(
    config: TransferConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, written = transfer(config, TRAINED), []
    monkeypatch.setattr(pipeline, "write_card", written.append)
    monkeypatch.setattr(pipeline, "train", lambda *_: None)
    for is_main in (True, False):
        monkeypatch.setattr(pipeline.ranks, "is_main", lambda is_main=is_main: is_main)
        pipeline._run_step("train", config, run, None, lambda: None, is_alone=True)  # type: ignore[arg-type, return-value]
    assert written == [run]
