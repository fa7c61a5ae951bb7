"""SIGKILL at a change of a file drawn by a seed: the next start goes on to the very same result, and leaves nothing behind."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from .commands import Commands, Strike
from .counts import count
from .runs import assert_equal, leftovers, timeless


def test_a_transfer_that_is_killed_again_and_again_ends_as_if_it_never_was(
    ready: Commands, config: Path, straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["transfer", config, "--output_dir", run]
    changes = int((straight.parent / "changes").read_text())
    assert changes > 100
    for seed in range(count(1, 30)):
        shutil.rmtree(run, ignore_errors=True)
        chance, left = random.Random(seed), changes
        # Killed twice: the second time on the way from where the first left it.
        for _ in range(2):
            ended = ready.run(words, Strike(run, chance.randrange(1, max(2, left // 2))))
            assert ended.struck and ended.code == -9, (seed, ended)
        ended = ready.run(words)
        assert ended.code == 0, (seed, ended)
        assert_equal(run, straight)


def test_what_a_kill_leaves_is_swept_at_the_next_start_and_nothing_else(
    ready: Commands, config: Path, straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["transfer", config, "--output_dir", run]
    # The student's folder, the last thing before it is moved into place.
    ended = ready.run(words, Strike(run, 1, str(run / "student")))
    assert ended.struck and ended.code == -9
    assert any((path / "model.safetensors").is_file() for path in leftovers(run)), (
        "a whole student, under another name"
    )
    kept = [run / ".mine", run / "targets" / ".semalign-notes", tmp_path / "elsewhere" / ".semalign-abcd1234"]
    for path in kept:
        path.parent.mkdir(exist_ok=True)
        path.write_text("a user's")
    (run / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert ready.run(words).code == 0
    assert [path.read_text() for path in kept] == ["a user's"] * 3
    for path in kept:
        path.unlink()
    assert_equal(run, straight)


COMPARISON = {
    "output_dir": "out",
    "seeds": 1,
    "default": "aligned",
    "workers": 1,
    "base": {
        "data": {"heldout_rows": 4, "max_length": 64, "max_rows": 8},
        "pairing": {"num_layers": 1},
        "train": {"num_train_epochs": 2, "per_device_train_batch_size": 8},
    },
    "methods": {"aligned": {}, "cross_entropy": {}},
}


def results(out: Path) -> list:
    return [timeless(json.loads(line)) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("who", ["main", "worker"])
def test_a_comparison_that_is_killed_goes_on_cell_by_cell(
    ready: Commands, tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, who: str
) -> None:
    if count(0, 1) == 0:
        pytest.skip("takes half a minute, most of it for starting workers; `make attack` has it")
    out, straight = tmp_path / "out", tmp_path / "straight"
    models = {
        role: {"model_name_or_path": str(path)}
        for role, path in zip(("teacher", "student"), tiny_pair, strict=True)
    }
    base = COMPARISON["base"] | models  # type: ignore[operator]
    path = tmp_path / "compare.yaml"
    tasks = {"sums": {"data.dataset_name": str(rows_file)}}
    path.write_text(json.dumps(COMPARISON | {"base": base, "tasks": tasks}))
    words = ["compare", path, "--output_dir"]
    ended = ready.run([*words, straight], Strike(straight, 0, who=who))
    assert ended.code == 0, ended
    changes = int((tmp_path / "changes").read_text())
    for seed in range(count(1, 30)):
        shutil.rmtree(out, ignore_errors=True)
        ended = ready.run([*words, out], Strike(out, random.Random(seed).randrange(1, changes), who=who))
        assert ended.struck and (ended.code == -9 if who == "main" else ended.code == 1), (seed, ended)
        assert "Traceback" not in ended.said
        ended = ready.run([*words, out])
        assert ended.code == 0, (seed, ended)
        assert results(out) == results(straight)
        assert not leftovers(out)
