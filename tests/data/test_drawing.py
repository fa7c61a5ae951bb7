"""Which rows are trained on and which are measured, read by name; what overlaps or is short stops the run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config

from semalign import embedded
from semalign.config import DataConfig, EvaluationConfig, ModelConfig, TransferConfig
from semalign.data.drawing import draw_rows, embedded_rows, rows_named, split_rows, task_rows
from semalign.embedded.splits import TASKS
from semalign.errors import DataError
from semalign.steps.pipeline import transfer

from .test_mixture import DATASETS, rows, write


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Ten rows."""
    return str(write(tmp_path / "ten.jsonl", rows("a", 10)))


def numbers(drawn: list[dict[str, Any]]) -> list[int]:
    return [int(row["prompt"].split()[1]) for row in drawn]


def test_a_mixture_with_rows_of_its_own_to_measure_on_stops_at_an_overlap(tmp_path: Path) -> None:
    files = {name: write(tmp_path / f"{name}.jsonl", DATASETS[name]) for name in DATASETS}
    kept = write(tmp_path / "kept.jsonl", rows("c", 5) + DATASETS["b"][:40])
    with pytest.raises(DataError, match="held-out prompts are among the training rows"):
        draw_rows(DataConfig({str(f): 1.0 for f in files.values()}, heldout_name=str(kept)))
    assert (
        len(
            draw_rows(
                DataConfig({str(f): 1.0 for f in files.values()}, heldout_name=str(kept), heldout_rows=5)
            ).heldout
        )
        == 5
    )


def test_held_out_rows_among_the_training_rows_are_refused(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    line = json.dumps({"prompt": "add two", "completion": " five"})
    rows.write_text("\n".join([line, line, line]))
    with pytest.raises(DataError, match="held-out prompts are among the training rows"):
        transfer(tiny_config(tiny_pair, rows, tmp_path / "run", data=DataConfig(str(rows), heldout_rows=1)))


def test_the_last_rows_are_held_out_and_the_first_are_trained_on(file: str) -> None:
    train, heldout = split_rows(DataConfig(file, heldout_rows=3, max_rows=5))
    assert numbers(train) == [0, 1, 2, 3, 4] and numbers(heldout) == [7, 8, 9]
    drawn = draw_rows(DataConfig(file, heldout_rows=3))
    assert numbers(drawn.train) == list(range(7))
    assert drawn.sources == {file: {"weight": 1.0, "available": 10, "train": 7, "heldout": 3}}


def test_without_held_out_rows_all_are_trained_on(file: str) -> None:
    train, heldout = split_rows(DataConfig(file))
    assert numbers(train) == list(range(10)) and heldout == []


@pytest.mark.parametrize("count", [10, 11])
def test_at_least_one_row_is_left_to_train_on(file: str, count: int) -> None:
    said = rf"data\.heldout_rows: expected fewer than the 10 rows of {re.escape(file)}, got {count}; lower it"
    with pytest.raises(DataError, match=said):
        split_rows(DataConfig(file, heldout_rows=count))
    assert len(split_rows(DataConfig(file, heldout_rows=9))[0]) == 1


def test_rows_of_their_own_to_measure_on_leave_the_dataset_whole(file: str, tmp_path: Path) -> None:
    own = str(write(tmp_path / "own.jsonl", rows("b", 6)))
    train, heldout = split_rows(DataConfig(file, heldout_name=own))
    assert len(train) == 10 and [row["from"] for row in heldout] == ["b"] * 6
    train, heldout = split_rows(DataConfig(file, heldout_name=own, heldout_rows=2))
    assert len(train) == 10 and numbers(heldout) == [0, 1], "the first of them are measured on"


def test_an_overlap_says_how_many_prompts_of_which_dataset(tmp_path: Path) -> None:
    twice = str(write(tmp_path / "twice.jsonl", rows("a", 5) + rows("a", 3)))
    with pytest.raises(
        DataError, match=rf"{re.escape(twice)}: 3 held-out prompts are among the training rows too"
    ):
        split_rows(DataConfig(twice, heldout_rows=3))


def test_bad_rows_stop_or_are_skipped_as_the_config_says(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", [*rows("a", 2), {"nothing": 1}])
    with pytest.raises(DataError, match=r"bad\.jsonl:3: found columns"):
        rows_named(str(path), DataConfig("x"))
    assert len(rows_named(str(path), DataConfig("x", on_bad_row="skip"))) == 2


def test_the_configuration_and_the_split_reach_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(
        "semalign.data.drawing.load_rows", lambda name, **options: asked.append((name, options))
    )
    rows_named(
        "some/thing", DataConfig("x", dataset_config="main", dataset_train_split="few", on_bad_row="skip")
    )
    assert asked == [("some/thing", {"dataset_config": "main", "split": "few", "on_bad_row": "skip"})]


def test_rows_of_a_mixture_say_where_they_come_from_unless_they_have_an_id(tmp_path: Path) -> None:
    own = [{"id": f"own {n}", **row} for n, row in enumerate(rows("b", 4))]
    files = [str(write(tmp_path / "a.jsonl", rows("a", 4))), str(write(tmp_path / "b.jsonl", own))]
    drawn = draw_rows(DataConfig(dict.fromkeys(files, 1.0), heldout_rows=2))
    found = {row["id"]: row["prompt"] for row in [*drawn.train, *drawn.heldout]}
    assert found == {f"{files[0]}:{n + 1}": f"a {n}" for n in range(4)} | {
        f"own {n}": f"b {n}" for n in range(4)
    }
    again = draw_rows(DataConfig(dict.fromkeys(files, 1.0), heldout_rows=2, mixture_seed=1))
    assert numbers(again.train) != numbers(drawn.train), "another seed draws in another order"


@pytest.mark.parametrize("split", ["transfer", "validation", "test"])
def test_the_tasks_of_an_embedded_split_are_its_rows_parted(split: str) -> None:
    whole = embedded_rows(f"embedded:{split}")
    parts = [embedded_rows(f"embedded:{split}/{task}") for task in TASKS]
    assert [row for part in parts for row in part] == sorted(whole, key=lambda row: TASKS.index(row["task"]))
    assert all({row["task"] for row in part} == {task} for part, task in zip(parts, TASKS, strict=True))
    assert whole == embedded.rows(split) == rows_named(f"embedded:{split}", DataConfig("x"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["embedded:", "embedded:pretraining", "embedded:test/cooking", "embedded:/knowledge"]
)
def test_an_embedded_split_or_task_that_is_not_there_is_answered_with_those_that_are(name: str) -> None:
    said = "expected embedded:transfer, embedded:validation or embedded:test, alone or with one of /knowledge, /arithmetic"
    with pytest.raises(DataError, match=f"^{name}: {said}"):
        rows_named(name, DataConfig("x"))


def config(tasks: str | None, max_items: int | None = None) -> TransferConfig:
    own = EvaluationConfig(tasks=tasks, max_items=max_items)
    return TransferConfig(ModelConfig("x"), ModelConfig("y"), DataConfig("z"), "unused", evaluation=own)


def test_items_are_the_first_of_each_task() -> None:
    assert task_rows(config(None)) == []
    everything = task_rows(config("embedded:test"))
    assert everything == embedded.rows("test")
    some = task_rows(config("embedded:test", 3))
    assert some == [row for task in TASKS for row in [r for r in everything if r["task"] == task][:3]]


def test_an_item_without_a_task_or_a_check_is_refused(tmp_path: Path) -> None:
    item = {
        "task": "t",
        "messages": [{"role": "user", "content": "Q"}],
        "check": {"kind": "number", "answer": 2},
    }
    for missing in ("task", "check"):
        path = write(tmp_path / "items.jsonl", [item, {k: v for k, v in item.items() if k != missing}])
        with pytest.raises(
            DataError,
            match=r"items\.jsonl: item 2: expected an item with task, messages and check, but (task|check): found nothing there",
        ):
            task_rows(config(str(path)))
