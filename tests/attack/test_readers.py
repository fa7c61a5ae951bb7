"""Every reader of a file, fed with what nobody writes: a value of its kind or one sentence, never anything else.

`SEMALIGN_ATTACK=1` tries 10,000 inputs a reader.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from attack.counts import count
from attack.mutants import mutant
from comparison.small import write as write_comparison
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report.conftest import write_run
from rich.console import Console
from tiny import save_model, tiny_model

from semalign.comparison.plan import read_comparison
from semalign.config import DataConfig, EvaluationConfig, ModelConfig, TransferConfig
from semalign.config.parsing import load_config
from semalign.data.drawing import task_rows
from semalign.data.rows import load_rows
from semalign.errors import LONGEST, SemAlignError
from semalign.models.finding import load_shape, load_tokenizer
from semalign.models.origin import origin
from semalign.report import build_report
from semalign.report.card import render_card
from semalign.report.tables import final_table
from semalign.run import results
from semalign.run.digests import sealed
from semalign.run.files import find_json, read_json, read_lines, write_json, write_yaml
from semalign.run.folder import RunFolder
from semalign.run.journal import Journal
from semalign.run.metrics import Metrics
from semalign.signals.plan import read_plan
from semalign.signals.shards import ShardStore

Read = Callable[[Path], object]
LEAST: dict[str, Any] = {
    "teacher": {"model_name_or_path": "t", "dtype": "float32"},
    "student": {"model_name_or_path": "s"},
    "data": {"dataset_name": {"a": 1.0, "b": 2}, "heldout_rows": 4},
    "output_dir": "out",
    "pairing": {"layers": [1, 3]},
    "train": {"num_train_epochs": 1, "lora_target_modules": ["q"], "cache_prefix": True},
    "evaluation": {"tasks": "x.jsonl", "baselines": {"kl": {"learning_rate": 0.1}}, "harness": ["gsm8k"], "max_items": None},
}  # fmt: skip
ASKED = {"role": "user", "content": "1 and 2"}
ITEMS = [
    {
        "task": "sum",
        "messages": [ASKED, {"role": "assistant", "content": "3"}],
        "check": {"kind": "number", "answer": 3},
    },
    {
        "task": "pick",
        "messages": [ASKED],
        "check": {"kind": "letter", "answer": "B", "options": ["x", "y"]},
    },
    {
        "task": "code",
        "messages": [ASKED],
        "check": {"kind": "python", "entry": "f", "asserts": ["assert f() == 1"]},
    },
]
PAIR = {k: v for k, v in ITEMS[0].items() if k != "messages"} | {"prompt": [ASKED], "completion": []}
CELL = {
    "fingerprint": {"a": 1},
    "cell": {"method": "kl", "seconds": 1.0, "train_seconds": 0.5, "steps": 3, "wall_seconds": 2.0},
    "items": [{"measured": "t", "item": 1, "correct": 1, "extracted": 1}],
    "rows": [{"measured": "t", "row": 0, "tokens": 3, "kl": 0.1, "top1": 1.0, "nll": 0.3}],
}


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


def attack(seed: int, path: Path, valid: list[bytes], read: Callable[[], object]) -> None:
    """The file's content changed, read, and given back."""
    kept = path.read_bytes() if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    data = mutant(seed, valid)
    # What no seal vouches for is refused for that alone; a shape has to be looked at too.
    is_result = path.suffix == ".json" and path.parent.name not in ("model", "teacher", "student")
    is_result |= path.name == "config.yaml"
    path.write_bytes(sealed(data, path.suffix) if is_result and seed % 4 else data)
    try:
        read()
    except SemAlignError as error:
        message = str(error)
        assert message.isprintable() and 0 < len(message) <= LONGEST, message
    finally:
        path.unlink() if kept is None else path.write_bytes(kept)


def test_what_the_mutants_are_made_of_is_read(tmp_path: Path, evaluated: Path, model: Path) -> None:
    for name, valid, read in TEXTS.values():
        for data in valid:
            (tmp_path / name).write_bytes(sealed(data, ".json") if name == "cell.json" else data)
            read(tmp_path / name)
    (tmp_path / "pairs.json").write_bytes(as_bytes(PLAN))
    assert read_plan(RunFolder(tmp_path)).heads
    assert len(read_comparison(write_comparison(tmp_path)).configs) == 4
    build_report(evaluated)
    render_card(RunFolder(evaluated))
    final_table(find_json(evaluated / "metrics.json", Metrics), Console(file=StringIO()))
    config = ModelConfig(str(model))
    assert load_shape(config).layers == 2 and load_tokenizer(config).chat_template
    assert origin(config)["license_name"] == "mine"


def tasks_of(path: Path) -> TransferConfig:
    models = ModelConfig("t"), ModelConfig("s")
    return TransferConfig(*models, DataConfig("x"), "out", evaluation=EvaluationConfig(tasks=str(path)))


def read_items(path: Path) -> object:
    return task_rows(tasks_of(path))


TEXTS: dict[str, tuple[str, list[bytes], Read]] = {
    "config": ("run.yaml", [yaml.safe_dump(LEAST).encode(), as_bytes(LEAST)], load_config),
    "rows": ("rows.jsonl", [lines(ITEMS), lines([{"input_ids": [1, 2], "labels": [-100, 2]}] * 2)], lambda p: load_rows(str(p))),
    "items": ("items.jsonl", [lines(ITEMS), lines([PAIR] * 2)], read_items),
    "log": ("train.jsonl", [lines([{"step": 1, "loss": 0.1, "epoch": 1}] * 3)], lambda p: read_lines(p, "train", results.LogLine)),
    "cell": ("cell.json", [as_bytes(CELL)], lambda p: read_json(p, "compare", results.Cell)),
    "part": ("rows.part", [lines([{"a": 1}, "x", None])], lambda p: Journal(p, {"a": 1}, str | None).values),
}  # fmt: skip
MANY = settings(
    max_examples=count(200, 10_000),
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FEWER = settings(MANY, max_examples=count(60, 10_000))
"""For those that read a whole config each time."""
seeds = st.integers(0, 2**48)


@pytest.mark.parametrize("kind", sorted(TEXTS))
@MANY
@given(seed=seeds)
def test_a_text_is_a_value_or_one_sentence(tmp_path: Path, kind: str, seed: int) -> None:
    name, valid, read = TEXTS[kind]
    attack(seed, tmp_path / name, valid, lambda: read(tmp_path / name))


@FEWER
@given(seed=seeds)
def test_a_comparison_is_a_plan_or_one_sentence(tmp_path: Path, seed: int) -> None:
    path = write_comparison(tmp_path, tasks={"knowledge": {}}, methods={"aligned": {"data.variants": 1}})
    whole = path.read_bytes()
    attack(seed, path, [whole, as_bytes(yaml.safe_load(whole))], lambda: read_comparison(path))


PLAN = {
    "teacher_layers": 7,
    "student_layers": 4,
    "pairs": [{"teacher": 5, "student": 3, "fraction": 0.25}],
    "heads": [{"teacher": 5, "student": 3, "teacher_head": 1, "student_head": 2}],
    "trained_layers": [4, 3],
}


@MANY
@given(seed=seeds)
def test_a_plan_is_one_or_one_sentence(tmp_path: Path, seed: int) -> None:
    run = RunFolder(tmp_path)
    attack(seed, run.pairs, [as_bytes(PLAN)], lambda: read_plan(run))


@pytest.mark.parametrize("name", ["index.json", "shard-00000.json"])
@MANY
@given(seed=seeds)
def test_shards_are_there_or_made_again(tmp_path: Path, name: str, seed: int) -> None:
    wanted = {"rows": {"a": [1, 2]}, "n": 3}
    entry = {"bytes": 3, "sha256": "0", "made_from": "x", "process": 0}
    valid = {"index.json": {"fingerprint": wanted, "shards": {"0": entry}}, "shard-00000.json": entry}
    for file, value in valid.items():
        (tmp_path / file).write_bytes(as_bytes(value))

    def read() -> object:
        store = ShardStore(tmp_path, wanted, [[0, 1]])
        return store.stale_fields(), store.missing(verify=True), store.bytes

    attack(seed, tmp_path / name, [as_bytes(valid[name])], read)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with every file that page, card and table read."""
    folder = write_run(tmp_path_factory.mktemp("odd") / "run", teacher_layers=4, student_layers=3, steps=4)
    origin_of = dict.fromkeys(("license", "license_name", "license_text", "hub_id"), "mit") | {"name": "m"}
    given = {"weight": 1.0, "available": 4, "train": 2, "heldout": 2}
    more = {
        "models.json": {"teacher": origin_of, "student": origin_of},
        "data.json": {"training_rows": 2, "supervised_tokens": 4, "heldout_rows": 2, "sources": {"x": given}},
        "train.json": {"seconds": 1.0, "train_seconds": 0.5, "peak_rss_bytes": 10, "movement": [{"layer": 3, "relative_change": 0.1}]},
    }  # fmt: skip
    for name, value in more.items():
        write_json(folder / name, find_json(folder / name) | value)
    write_yaml(folder / "config.yaml", {**LEAST, "output_dir": str(folder)})
    return folder


DRAWN = (
    *["metrics.json"] * 3,
    *("pairs.json", "scores.json", "environment.json", "targets/manifest.json"),
    *("train.jsonl", "baselines/cosine/train.jsonl", "config.yaml"),
)


@MANY
@given(seed=seeds, name=st.sampled_from(DRAWN))
def test_a_page_is_drawn_or_one_sentence(evaluated: Path, seed: int, name: str) -> None:
    attack(seed, evaluated / name, [(evaluated / name).read_bytes()], lambda: build_report(evaluated))


WRITTEN = (
    "metrics.json",
    "pairs.json",
    "environment.json",
    "models.json",
    "data.json",
    "train.json",
    "config.yaml",
)


@FEWER
@given(seed=seeds, name=st.sampled_from(WRITTEN))
def test_a_card_is_written_or_one_sentence(evaluated: Path, seed: int, name: str) -> None:
    attack(
        seed, evaluated / name, [(evaluated / name).read_bytes()], lambda: render_card(RunFolder(evaluated))
    )


@MANY
@given(seed=seeds)
def test_a_table_is_shown_or_one_sentence(evaluated: Path, seed: int) -> None:
    path = evaluated / "metrics.json"
    show = lambda: final_table(find_json(path, Metrics), Console(file=StringIO()))  # noqa: E731
    attack(seed, path, [path.read_bytes()], show)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A saved model with a card."""
    folder = save_model(
        tiny_model("llama", layers=2, wide=False, seed=1), tmp_path_factory.mktemp("odd") / "model"
    )
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: mine\ntags: [a, b]\ndate: 2024-01-01\n---\ntext\n"
    )
    yield folder
    shutil.rmtree(folder)


READ = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "README.md",
    "chat_template.jinja",
)


@MANY
@given(seed=seeds, name=st.sampled_from(READ))
def test_a_model_folder_is_read_or_one_sentence(model: Path, seed: int, name: str) -> None:
    config = ModelConfig(str(model))

    def read() -> object:
        return load_shape(config), load_tokenizer(config), origin(config)

    path = model / name
    attack(seed, path, [path.read_bytes() if path.exists() else b"{}"], read)
