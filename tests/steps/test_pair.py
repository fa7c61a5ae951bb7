"""Selection within a budget, and the plan as a file a user may edit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from semalign.config import PairingConfig
from semalign.errors import CacheError, ConfigError
from semalign.folder import RunFolder
from semalign.steps.pair import pair_layers, read_plan

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
    ],
)
def test_a_bad_edit_is_one_sentence(tmp_path: Path, changes: dict, message: str) -> None:
    run = RunFolder(tmp_path)
    plan_file(run, **changes)
    with pytest.raises(ConfigError, match=message):
        read_plan(run)


def test_a_missing_plan_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="semalign pair"):
        read_plan(RunFolder(tmp_path))
