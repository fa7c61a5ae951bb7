"""Selection within a budget, and the plan as a file a user may edit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from in_memory import config_of as in_memory_config
from in_memory import inputs_of, samples

from semalign.config import (
    AttributionConfig,
    DataConfig,
    ModelConfig,
    PairingConfig,
    RecipeConfig,
    TransferConfig,
)
from semalign.config.parsing import load_config
from semalign.data.inputs import Inputs
from semalign.errors import CacheError, ConfigError, SemAlignError
from semalign.maths.pairing import best_path
from semalign.run.files import write_json
from semalign.run.folder import RunFolder
from semalign.signals.plan import read_plan
from semalign.steps.pair import pair, pair_layers
from semalign.steps.pipeline import transfer

SCORES = [5.0, 1.0, 9.0, 2.0, 3.0, 4.0, 0.5]


def students(options: PairingConfig) -> list[int]:
    return [p.student for p in pair_layers(SCORES, 7, 4, options)]


def test_the_default_is_the_last_quarter_rounded_up() -> None:
    assert students(PairingConfig()) == [4]


def test_a_number_of_last_layers_or_all() -> None:
    assert students(PairingConfig(num_layers=3)) == [2, 3, 4]
    assert students(PairingConfig(selection="all")) == [1, 2, 3, 4]


def test_attribution_takes_the_students_of_the_highest_scores() -> None:
    # l(k) = floor(7k/4): 1, 3, 5, 7. Scores rank layers 3, 1, 6, ...; layer 6 goes to the first k with l(k) >= 6.
    assert students(PairingConfig(selection="attribution", num_layers=1)) == [2]
    assert students(PairingConfig(selection="attribution", num_layers=2)) == [1, 2]
    assert students(PairingConfig(selection="attribution", num_layers=3)) == [1, 2, 4]


def test_a_cost_counts_layers_from_the_top() -> None:
    assert students(PairingConfig(cost=2.9)) == [3, 4]
    assert students(PairingConfig(cost=99)) == [1, 2, 3, 4]


def test_more_layers_than_the_student_has() -> None:
    with pytest.raises(ConfigError, match="has 4 layers, got 5"):
        students(PairingConfig(num_layers=5))


def plan_file(run: RunFolder, **changes: object) -> None:
    plan = {
        "teacher_layers": 7,
        "student_layers": 4,
        "pairs": [{"teacher": 5, "student": 3, "fraction": 0.25}],
        "trained_layers": [4, 3],
    }
    run.pairs.write_text(json.dumps(plan | changes))


def test_an_edited_plan_is_read_as_it_stands(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    plan_file(run)
    plan = read_plan(run)
    assert plan.trained_layers == (3, 4) and plan.cut == 2 and plan.pairs[0].fraction == 0.25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": [{"teacher": 8, "student": 3}]}, "teacher layers 1 to 7"),
        ({"pairs": [{"teacher": 7, "student": 3, "fraction": 0.5}]}, "teacher layers 1 to 7"),
        ({"trained_layers": [5]}, "between 1 and 4"),
        ({"trained_layers": []}, "between 1 and 4"),
        ({"pairs": [{"teacher": 5, "student": 3}, {"teacher": 6, "student": 3}]}, "paired twice"),
        ({"pairs": [{"teecher": 5}]}, "mend or delete"),
        ({"student_layers": 10**8}, "student_layers: expected at most 1000, got 100000000"),
        ({"teacher_layers": 1e308}, "teacher_layers: expected a whole number"),
        ({"trained_layers": [True]}, "trained_layers.0: expected a whole number, got True"),
        ({"trained_layers": [4.0]}, "trained_layers.0: expected a whole number, got 4.0"),
        ({"trained_layers": [1.5]}, "trained_layers.0: expected a whole number, got 1.5"),
        ({"pairs": [{"teacher": True, "student": 3}]}, "teacher: expected a whole number, got True"),
        (
            {"pairs": [{"teacher": 5, "student": 3, "fraction": float("inf")}]},
            "fraction: expected at most 1.0, got inf",
        ),
        (
            {"pairs": [{"teacher": 5, "student": 3, "fraction": True}]},
            "fraction: expected a number, got True",
        ),
        ({"pairs": {"teacher": 5}}, "pairs: expected a list"),
        (
            {"heads": [{"teacher": 5, "student": 3, "teacher_head": 1.0, "student_head": 1}]},
            "teacher_head: expected",
        ),
    ],
)
def test_a_bad_edit_is_one_sentence(tmp_path: Path, changes: dict, message: str) -> None:
    run = RunFolder(tmp_path)
    plan_file(run, **changes)
    with pytest.raises(ConfigError, match=message):
        read_plan(run)


@pytest.mark.parametrize("text", ["1", "null", "[]", "[" * 10_000, "\xff"])
def test_a_file_that_is_no_plan_is_one_sentence(tmp_path: Path, text: str) -> None:
    run = RunFolder(tmp_path)
    run.pairs.write_bytes(text.encode("latin-1"))
    with pytest.raises((ConfigError, CacheError), match=r"pairs\.json: .*mend"):
        read_plan(run)


def test_an_edit_is_followed_for_the_same_scores_and_never_written_over(
    config_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(config_file)
    run = transfer(config, ("attribute", "pair"))
    plan = json.loads(run.pairs.read_text())
    assert plan["trained_layers"] == [3]
    edited = run.pairs.read_text().replace('"trained_layers": [\n  3', '"trained_layers": [\n  2')
    run.pairs.write_text(edited)
    transfer(config, ("attribute", "pair"))
    assert run.pairs.read_text() == edited and read_plan(run).trained_layers == (2,)
    assert "was edited since it was written" in caplog.text
    # With another option what was edited is not for it, and a plan of its own may not take its place.
    for content in (edited.replace('"interface"', '"another"'), "{", ""):
        run.pairs.write_text(content)
        with pytest.raises(SemAlignError, match=r"pairs\.json: .* delete it and run `semalign pair`"):
            transfer(config, ("attribute", "pair"))
        assert run.pairs.read_text() == content
    run.pairs.unlink()
    transfer(config, ("attribute", "pair"))
    assert read_plan(run).trained_layers == (3,)


def test_scores_for_their_own_sake_leave_an_edited_plan_as_it_is(config_file: Path) -> None:
    config = load_config(config_file)
    run = transfer(config, ("attribute", "pair"))
    edited = run.pairs.read_text().replace('"trained_layers": [\n  3', '"trained_layers": [\n  2')
    run.pairs.write_text(edited)
    transfer(config, ("attribute",))
    assert any(layer["score"] for layer in json.loads(run.scores.read_text())["layers"])
    # What of the recipe no plan depends on may change too.
    transfer(replace(config, recipe=replace(config.recipe, temperature=2.0)), ("pair",))
    assert run.pairs.read_text() == edited


def test_pairs_by_the_error_of_a_ridge_map_depend_on_its_penalty(config_file: Path) -> None:
    config = load_config(config_file)
    config = replace(config, pairing=replace(config.pairing, match="ridge_error"))
    found = []
    for penalty in (1e-4, 1e4):
        run = transfer(
            replace(config, cache=replace(config.cache, ridge_penalty=penalty)), ("attribute", "pair")
        )
        found.append(json.loads(run.pairs.read_text())["figures"])
    assert found[0] != found[1]


def of_depths(inputs: Inputs, teacher: int, student: int) -> Inputs:
    return replace(
        inputs,
        teacher=replace(inputs.teacher, layers=teacher),
        student=replace(inputs.student, layers=student),
    )


@pytest.mark.parametrize("depths", [(24, 12), (12, 24)], ids=["another teacher", "another student"])
@pytest.mark.parametrize("selection", ["last", "all"])
def test_a_plan_is_made_anew_for_models_of_other_depths(
    tmp_path: Path, depths: tuple[int, int], selection: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config = in_memory_config(tmp_path, pairing=PairingConfig(selection=selection))
    inputs, run = of_depths(inputs_of(samples(2)), 12, 12), RunFolder(tmp_path)
    write_json(run.scores, {"layers": []})
    pair(config, run, inputs)
    first = run.pairs.read_bytes()
    pair(config, run, inputs)
    assert run.pairs.read_bytes() == first and "stale" not in caplog.text, (
        "the plan of the same models is kept"
    )
    others = of_depths(inputs, *depths)
    with pytest.raises(
        ConfigError, match=r"12 teacher and 12 student layers, where the models have .*delete it"
    ):
        read_plan(run, depths)
    pair(config, run, others)
    wanted = [p.as_json() for p in pair_layers([], *depths, config.pairing)]
    plan = json.loads(run.pairs.read_text())
    assert plan["pairs"] == wanted and (plan["teacher_layers"], plan["student_layers"]) == depths
    assert read_plan(run, depths).trained_layers == tuple(p["student"] for p in wanted)


def test_an_edited_plan_for_models_of_other_depths_is_refused_and_kept(tmp_path: Path) -> None:
    config, run = in_memory_config(tmp_path), RunFolder(tmp_path)
    inputs = of_depths(inputs_of(samples(2)), 12, 12)
    write_json(run.scores, {"layers": []})
    pair(config, run, inputs)
    edited = run.pairs.read_text().replace('"teacher": 12', '"teacher": 11')
    run.pairs.write_text(edited)
    pair(config, run, inputs)
    with pytest.raises(
        ConfigError,
        match=r"pairs\.json: a plan for 12 teacher and 12 student layers, where the models have 12 and 24; delete it and run `semalign pair`",
    ):
        pair(config, run, of_depths(inputs, 12, 24))
    assert run.pairs.read_text() == edited


def test_a_pair_left_below_the_trained_layers_stops_before_the_cache(config_file: Path) -> None:
    config = load_config(config_file)
    config = replace(config, recipe=RecipeConfig("aligned"), pairing=PairingConfig(num_layers=2))
    run = transfer(config, ("attribute", "pair"))
    plan = json.loads(run.pairs.read_text()) | {"trained_layers": [3]}
    run.pairs.write_text(json.dumps(plan))
    with pytest.raises(ConfigError, match=r"got T3 → S2; add layer 2 to trained_layers or delete the pair"):
        transfer(config, ("cache", "train"))
    assert not run.manifest.exists()
    run.pairs.write_text(json.dumps(plan | {"pairs": plan["pairs"][1:]}))
    assert (transfer(config, ("cache", "train")).root / "student").is_dir()


def test_a_missing_plan_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="semalign pair"):
        read_plan(RunFolder(tmp_path))


def matched(teacher: Path, student: Path, data: Path, out: Path, **options: Any) -> dict[str, Any]:
    config = TransferConfig(
        teacher=ModelConfig(str(teacher)),
        student=ModelConfig(str(student)),
        data=DataConfig(str(data), max_length=64),
        output_dir=str(out),
        attribution=AttributionConfig(rows=2),
        pairing=PairingConfig(selection="all", **options),
    )
    run = transfer(config, ("attribute", "pair"))
    return json.loads(run.pairs.read_text())


@pytest.mark.parametrize("match", ["cka", "ridge_error", "nearest"])
def test_a_model_paired_with_itself_gives_the_diagonal(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, match: str
) -> None:
    plan = matched(tiny_pair[0], tiny_pair[0], rows_file, tmp_path / "run", match=match, rows=20)
    assert [(p["teacher"], p["student"]) for p in plan["pairs"]] == [(k, k) for k in range(1, 6)]
    assert len(plan["figures"]) == 5 and len(plan["figures"][0]) == 5
    if match != "ridge_error":
        assert all(plan["figures"][k][k] == pytest.approx(1.0) for k in range(5))


def test_a_match_follows_the_figures_in_the_plan(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    plan = matched(*tiny_pair, rows_file, tmp_path / "run", match="cka", rows=4)
    figures = torch.tensor(plan["figures"])
    assert figures.shape == (5, 3) and 0 <= float(figures.min()) <= float(figures.max()) <= 1
    assert [p["teacher"] for p in plan["pairs"]] == best_path(figures)
