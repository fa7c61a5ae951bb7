"""Who writes: the student alone, and the student with its teacher's corrections; drawn by the seed, resumed after a stop."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from semalign.config import SamplingConfig
from semalign.errors import ModelError
from semalign.steps import writers
from semalign.steps.pipeline import transfer

from .talking import config_of, stop_at, written


def test_the_students_own_answers_are_drawn_anew_for_every_seed_and_the_same_after_a_stop(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = (talking_pair[0], talking_pair[0])  # of the two only the teacher ends its answers
    drawn = {"completions": "student", "samples": 3, "sampling": SamplingConfig(temperature=1.0, top_k=30)}
    straight = transfer(config_of(twice, rows_file, tmp_path / "a", **drawn), ("generate",))
    counts = json.loads(straight.generated.read_text())
    assert (
        counts["written"] + counts["dropped"] == 3 * 16 and counts["written"] == len(written(straight)) > 16
    )
    other = replace(config_of(twice, rows_file, tmp_path / "b", **drawn), seed=1)
    assert written(transfer(other, ("generate",))) != written(straight)
    config = config_of(twice, rows_file, tmp_path / "c", **drawn)
    stop_at(monkeypatch, [], "answers", writers, 5)
    with pytest.raises(KeyboardInterrupt):
        transfer(config, ("generate",))
    run = transfer(config, ("generate", "attribute", "pair", "cache", "train"))
    assert written(run) == written(straight)
    assert json.loads((run.root / "train.json").read_text())["steps"] == -(-len(written(run)) // 8)


def test_greedy_answers_of_the_student_are_its_own(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    teachers = transfer(
        config_of(talking_pair, rows_file, tmp_path / "a", completions="teacher"), ("generate",)
    )
    swapped = replace(
        config_of(talking_pair[::-1], rows_file, tmp_path / "b", completions="student"),
        allow_smaller_teacher=True,
    )
    assert written(teachers) == written(transfer(swapped, ("generate",)))


def test_where_one_token_is_accepted_the_corrected_answers_are_the_teachers(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = transfer(
        config_of(talking_pair, rows_file, tmp_path / "a", completions="teacher"), ("generate",)
    )
    strict = {"completions": "speculative", "accepted": 1}
    config = config_of(talking_pair, rows_file, tmp_path / "b", **strict)
    stop_at(monkeypatch, [], "corrected_answers", writers, 3)
    with pytest.raises(KeyboardInterrupt):
        transfer(config, ("generate",))
    run = transfer(config, ("generate", "attribute", "pair", "cache", "train"))
    assert written(run) == written(teachers)
    lax = config_of(talking_pair, rows_file, tmp_path / "c", **{**strict, "accepted": 40})
    assert written(transfer(lax, ("generate",))) != written(teachers)


def test_corrections_need_one_vocabulary(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(talking_pair[0], other)
    swapped = json.loads((other / "tokenizer.json").read_text())
    ids = swapped["model"]["vocab"]
    first, second = list(ids)[40:42]
    ids[first], ids[second] = ids[second], ids[first]
    (other / "tokenizer.json").write_text(json.dumps(swapped))
    config = config_of((other, talking_pair[1]), rows_file, tmp_path / "run", completions="speculative")
    with pytest.raises(ModelError, match="do not share a vocabulary: id 40 is"):
        transfer(config, ("generate",))
