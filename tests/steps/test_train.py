"""The train step's own files: a finished training says of its student what it recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import config_of

from semalign.run.files import find_json
from semalign.run.sums import SUMS, read_sums
from semalign.run.verify import verify
from semalign.steps.pipeline import transfer


@pytest.mark.parametrize("damage", ["foreign", "deleted", "flipped", "short"])
def test_sums_that_do_not_say_what_was_trained_are_written_again(
    tiny_pair: tuple[Path, Path],
    rows_file: Path,
    tmp_path: Path,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = config_of(tiny_pair, rows_file, tmp_path / "run")
    run = transfer(config, ("attribute", "pair", "cache", "train"))
    sums, weights = run.root / "student" / SUMS, (run.root / "student" / "model.safetensors").read_bytes()
    right = read_sums(sums.parent)
    lines = sums.read_text().splitlines(keepends=True)
    changed = {
        "foreign": [line.replace(line[:4], "0000") for line in lines],
        "flipped": [lines[0].replace("a", "b"), *lines[1:]],
        "short": lines[:2],
    }
    if damage == "deleted":
        sums.unlink()
    else:
        sums.write_text("".join(changed[damage]))
    transfer(config, ("train",))
    recorded = find_json(run.root / "train.json")["files"]
    found = read_sums(sums.parent)
    assert found == right
    assert all(
        found[n.removeprefix("student/")] == f["sha256"]
        for n, f in recorded.items()
        if n.startswith("student/")
    )
    assert verify(sums.parent).is_sound
    assert (run.root / "student" / "model.safetensors").read_bytes() == weights, "nothing is trained again"


def test_what_a_training_leaves_that_was_stopped_after_its_last_word_is_dropped(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_pair, rows_file, tmp_path / "run")
    run = transfer(config, ("attribute", "pair", "cache", "train"))
    left = [run.root / "checkpoint-4", run.root / "stage-1"]
    for folder in left:
        folder.mkdir()
    transfer(config, ("train",))
    assert not any(folder.exists() for folder in left)
