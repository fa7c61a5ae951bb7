"""Mixtures: proportions, what happens when a dataset is short, determinism, held-out rows apart."""

from __future__ import annotations

import json
import logging
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semalign.cli import main
from semalign.config.parsing import load_config
from semalign.data import disjoint
from semalign.data.mixture import apportion, mix
from semalign.errors import DataError


def rows(name: str, count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{name} {i}", "completion": " five", "from": name} for i in range(count)]


DATASETS = {"a": rows("a", 100), "b": rows("b", 40)}


def origins(drawn: list[dict[str, Any]]) -> Counter[str]:
    return Counter(row["from"] for row in drawn)


@given(st.lists(st.fractions(min_value=Fraction(1, 100), max_value=9), min_size=1), st.integers(0, 1000))
def test_whole_numbers_add_up_and_are_within_one_of_the_share(weights: list[Fraction], total: int) -> None:
    shares = [w / sum(weights) for w in weights]
    counts = apportion(shares, total)
    assert sum(counts) == total
    assert all(abs(count - share * total) < 1 for count, share in zip(counts, shares, strict=True))


def test_weights_hold_and_the_shortest_decides_without_repeating() -> None:
    drawn = mix(DATASETS, {"a": 0.5, "b": 0.5})
    assert origins(drawn.train) == {"a": 40, "b": 40}
    assert len({row["prompt"] for row in drawn.train}) == 80
    assert drawn.sources["a"] == {"weight": 0.5, "available": 100, "train": 40, "heldout": 0}
    # A tenth is no binary fraction: 10 / 0.1 must still give all.
    assert origins(mix({"a": rows("a", 90), "b": rows("b", 10)}, {"a": 0.9, "b": 0.1}).train) == {
        "a": 90,
        "b": 10,
    }


def test_a_total_is_met_or_what_is_short_is_named(caplog: pytest.LogCaptureFixture) -> None:
    assert origins(mix(DATASETS, {"a": 3, "b": 1}, total=20).train) == {"a": 15, "b": 5}
    with caplog.at_level(logging.WARNING):
        assert len(mix(DATASETS, {"a": 1, "b": 1}, total=100).train) == 80
    assert "b is exhausted after 80" in caplog.text


def test_all_exhausted_uses_every_row_and_repeats_short_datasets_evenly() -> None:
    drawn = mix(DATASETS, {"a": 1, "b": 1}, stopping="all_exhausted")
    assert origins(drawn.train) == {"a": 100, "b": 100}
    times = Counter(row["prompt"] for row in drawn.train)
    assert len(times) == 140 and {times[f"b {i}"] for i in range(40)} == {2, 3}


def test_the_seed_alone_decides_which_rows_in_which_order() -> None:
    first, again, other = (mix(DATASETS, {"a": 1, "b": 1}, heldout=6, seed=s) for s in (1, 1, 2))
    assert first == again and first.train != other.train and first.heldout != other.heldout
    renamed = mix({"x/a": DATASETS["a"], "y/b": DATASETS["b"]}, {"x/a": 1, "y/b": 1}, heldout=6, seed=1)
    assert renamed.train == first.train
    # Shuffled: neither dataset comes in one piece.
    assert 0 < origins(first.train[:20])["a"] < 20


@pytest.mark.parametrize("stopping", ["first_exhausted", "all_exhausted"])
def test_held_out_rows_are_in_proportion_and_share_no_prompt_with_training(stopping: Any) -> None:
    doubled = {"a": DATASETS["a"] + DATASETS["a"], "b": DATASETS["b"] + DATASETS["a"][:10]}
    drawn = mix(doubled, {"a": 3, "b": 1}, heldout=20, stopping=stopping)
    assert len(drawn.heldout) == 20 and [s["heldout"] for s in drawn.sources.values()] == [15, 5]
    assert disjoint(drawn.train, drawn.heldout) == 0


def test_too_few_rows_for_the_share_of_the_held_out_ones() -> None:
    with pytest.raises(DataError, match=r"fewer than the 40 rows of b for its share, got 40"):
        mix(DATASETS, {"a": 1, "b": 1}, heldout=80)
    with pytest.raises(DataError, match="no row is left to train on"):
        mix({"a": DATASETS["a"], "b": rows("b", 1) * 9}, {"a": 1, "b": 1}, heldout=4)


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_run_takes_a_mixture_from_file_or_command_line_and_writes_its_counts(
    tiny_pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, lines in DATASETS.items():
        write(tmp_path / f"{name}.jsonl", lines)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"teacher: {{model_name_or_path: {tiny_pair[0]}}}\nstudent: {{model_name_or_path: {tiny_pair[1]}}}\n"
        f"data:\n  dataset_name: {{a.jsonl: 3, b.jsonl: 1}}\n  max_rows: 24\n  heldout_rows: 4\n  max_length: 64\n"
        f"output_dir: {tmp_path / 'run'}\n"
    )
    assert set(load_config(config).data.weights) == {str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")}
    assert main(["check", str(config), "--json"]) == 0
    printed = capsys.readouterr()
    counts = json.loads(printed.out)["sources"]
    assert [(s["train"], s["heldout"]) for s in counts.values()] == [(18, 3), (6, 1)]
    assert "0.750" in printed.err
    assert main(["attribute", str(config), "--quiet"]) == 0
    assert json.loads((tmp_path / "run" / "data.json").read_text())["sources"] == counts
    given = json.dumps({str(tmp_path / "a.jsonl"): 1, str(tmp_path / "b.jsonl"): 1})
    changed = [f"--data.dataset_name={given}", f"--output_dir={tmp_path / 'other'}"]
    assert main(["check", str(config), "--json", "--quiet", *changed]) == 0
    assert [s["train"] for s in json.loads(capsys.readouterr().out)["sources"].values()] == [12, 12]


def test_another_draw_of_the_rows_leaves_the_held_out_ones_as_they_are() -> None:
    weights = {"a": 1.0, "b": 2.0}
    drawn = [mix(DATASETS, weights, total=6, heldout=3, seed=5, rows_seed=seed) for seed in (None, 0, 1)]
    assert drawn[0].heldout == drawn[1].heldout == drawn[2].heldout
    trained = [sorted(row["prompt"] for row in one.train) for one in drawn]
    assert trained[1] != trained[2] and len(trained[1]) == len(trained[2]) == 6
    held = {row["prompt"] for row in drawn[0].heldout}
    assert all(held.isdisjoint(prompts) for prompts in trained)
    assert mix(DATASETS, weights, total=6, heldout=3, seed=5, rows_seed=1) == drawn[2]
