"""Files of a folder are damaged one by one: every damage is noticed, and what the folder gives in the end is the same.

Each file is flipped in one bit drawn by seed, truncated, deleted, and replaced by the file of the same name of another run.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import CutError, config_of, cut_at

from semalign.comparison import compare
from semalign.comparison import run as comparison_run
from semalign.config import EvaluationConfig, RecipeConfig, TransferConfig
from semalign.errors import SemAlignError
from semalign.run import files as run_files
from semalign.run.files import find_json, read_lines
from semalign.run.verify import verify
from semalign.steps.pipeline import transfer

from ..comparison.small import here, results, write
from .counts import count

KINDS = ("flip", "truncate", "delete", "foreign")
# Written anew by every call and read by none; a cache of what can be computed.
NOT_READ = ("report.html", "page.html", "digests.json")
TIMES = ("seconds", "bytes", "steps", "files", "fingerprint")


def damaged(path: Path, kind: str, draw: random.Random, other: Path) -> bool:
    """Damage a file; whether that changed anything."""
    content = path.read_bytes()
    if kind == "delete":
        path.unlink()
        return True
    if kind == "flip" and content:
        place = draw.randrange(len(content))
        changed = content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]
    elif kind == "truncate":
        changed = content[: draw.randrange(len(content))] if content else content
    else:
        changed = other.read_bytes() if other.is_file() else content
    path.write_bytes(changed)
    return changed != content


def names(folder: Path) -> list[str]:
    return sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"
    )


def damages(
    folder: Path, other: Path, copy: Path, seed: int
) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """Every file with every kind of damage, done to a copy of the folder; the last part puts the file back."""
    draw = random.Random(seed)
    shutil.copytree(folder, copy, symlinks=True)
    for name in names(folder):
        for kind in KINDS:
            if damaged(copy / name, kind, draw, other / name):
                yield name, kind, lambda name=name: shutil.copy2(folder / name, copy / name)  # type: ignore[misc]
            shutil.copy2(folder / name, copy / name)


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run gives: the student byte by byte, its losses and figures, without what a clock says."""
    metrics = find_json(folder / "metrics.json")
    figures = {k: v for k, v in metrics.items() if not k.endswith(TIMES)}
    figures["baselines"] = {
        n: {k: v for k, v in b.items() if not k.endswith(TIMES)} for n, b in metrics["baselines"].items()
    }
    students = [p for p in folder.rglob("student/*") if p.suffix not in (".md", "") and p.is_file()]
    assert students
    return {
        "figures": json.loads(json.dumps(figures)),
        "losses": read_lines(folder / "train.jsonl", "train"),
        **{p.relative_to(folder).as_posix(): p.read_bytes() for p in students if "targets" not in p.parts},
    }


@pytest.fixture(scope="module")
def run_config(tiny_pair: tuple[Path, Path], rows_file: Path) -> Callable[..., TransferConfig]:
    """A short run with a baseline; by `frontier`, in two stages."""

    def make(out: Path, *, seed: int = 0, is_frontier: bool = False) -> TransferConfig:
        config = config_of(tiny_pair, rows_file, out, seed=seed)
        evaluation = EvaluationConfig(baselines=("cross_entropy",))
        recipe = RecipeConfig("acl") if is_frontier else config.recipe
        return replace(
            config, evaluation=evaluation, recipe=recipe, train=replace(config.train, save_steps=2)
        )

    return make


@pytest.fixture(scope="module")
def finished(
    run_config: Callable[..., TransferConfig], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A run and another one, which differs in its seed."""
    root = tmp_path_factory.mktemp("finished")
    for seed, name in enumerate(("run", "other")):
        transfer(run_config(root / name, seed=seed))
    return root / "run", root / "other"


def resumed(config: TransferConfig, caplog: pytest.LogCaptureFixture) -> str | None:
    """The sentences that a resumed run says, or None where it refuses in one."""
    caplog.clear()
    run_files._said.clear()
    try:
        transfer(config)
    except SemAlignError as error:
        assert "\n" not in str(error) and len(str(error)) <= 400
        return None
    return " ".join(record.message for record in caplog.records)


def test_every_damage_of_a_finished_run_is_noticed(finished: tuple[Path, Path], tmp_path: Path) -> None:
    run, other = finished
    copy = tmp_path / "copy"
    assert verify(run).is_sound and not verify(run).unknown
    tried = 0
    for seed in range(count(1, 10)):
        for name, kind, _ in damages(run, other, tmp_path / f"copy-{seed}", seed):
            copy = tmp_path / f"copy-{seed}"
            if name in NOT_READ and kind in ("delete", "foreign"):
                continue
            assert not verify(copy).is_sound, (name, kind)
            tried += 1
        assert verify(copy).is_sound
    assert tried > 60


def test_a_student_alone_says_the_same(finished: tuple[Path, Path], tmp_path: Path) -> None:
    student, other = (folder / "student" for folder in finished)
    assert verify(student).is_sound
    for name, kind, _ in damages(student, other, tmp_path / "copy", 0):
        if name != "SHA256SUMS" or kind == "foreign":
            assert not verify(tmp_path / "copy").is_sound, (name, kind)


def test_a_finished_run_with_a_damaged_file_ends_the_same(
    finished: tuple[Path, Path],
    run_config: Callable[..., TransferConfig],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run, other = finished
    whole, draw = outcome(run), random.Random(0)
    places = [(name, kind) for name in names(run) for kind in KINDS]
    for number, (name, kind) in enumerate(draw.sample(places, min(len(places), count(5, 10_000)))):
        copy = tmp_path / str(number)
        shutil.copytree(run, copy)
        if not damaged(copy / name, kind, draw, other / name):
            continue
        said = resumed(run_config(copy), caplog)
        if said is not None:
            is_edit = name == "pairs.json" and "was edited" in said
            assert is_edit or outcome(copy) == whole, (name, kind)
            if not is_edit:
                assert verify(copy).is_sound, (name, kind, verify(copy))
        shutil.rmtree(copy)


@pytest.mark.parametrize("is_frontier", [False, True])
def test_a_training_cut_in_the_middle_ends_the_same_with_a_damaged_file(
    run_config: Callable[..., TransferConfig],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    is_frontier: bool,
) -> None:
    straight = run_config(tmp_path / "straight", is_frontier=is_frontier)
    transfer(straight)
    whole = outcome(tmp_path / "straight")
    last = len(whole["losses"]) - 1
    folders = []
    for seed, name in enumerate(("cut", "other")):
        config = run_config(tmp_path / name, seed=seed, is_frontier=is_frontier)
        with pytest.raises(CutError), cut_at(monkeypatch, last if not is_frontier else 3):
            transfer(config)
        folders.append(tmp_path / name)
    cut, other = folders
    assert list(cut.rglob("checkpoint-*"))
    draw = random.Random(1)
    places = [(name, kind) for name in names(cut) for kind in KINDS]
    of_checkpoints = [p for p in places if "checkpoint-" in p[0] or "stage-" in p[0]]
    chosen = draw.sample(of_checkpoints, count(3, len(of_checkpoints)))
    chosen += draw.sample(places, count(1, len(places)))
    for number, (name, kind) in enumerate(chosen):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(cut, copy)
        if damaged(copy / name, kind, draw, other / name):
            said = resumed(run_config(copy, is_frontier=is_frontier), caplog)
            is_edit = said is None or (name == "pairs.json" and "was edited" in said)
            assert is_edit or outcome(copy) == whole, (name, kind)
        shutil.rmtree(copy)


def test_a_comparison_with_a_damaged_file_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not count(0, 1):
        pytest.skip("takes minutes; set SEMALIGN_ATTACK")
    from rich.console import Console

    monkeypatch.setattr(comparison_run, "run_jobs", here)
    console = Console(quiet=True)
    for seed, name in enumerate(("first", "other")):
        path = write(tmp_path / name, seeds=1, methods={"aligned": {}, "cross_entropy": {}})
        path.write_text(path.read_text() + f"\n# {seed}\n")
        compare(path, None, {}, console)
    out, other = tmp_path / "first" / "out", tmp_path / "other" / "out"
    assert verify(out).is_sound
    for name, kind, _ in damages(out, other, tmp_path / "copy", 0):
        if name not in NOT_READ and kind != "foreign":
            assert not verify(tmp_path / "copy").is_sound, (name, kind)
    draw, whole = random.Random(2), untimed(out)
    places = [(name, kind) for name in names(out) for kind in KINDS[:3]]
    for name, kind in draw.sample(places, count(0, 40)):
        shutil.rmtree(tmp_path / "kept", ignore_errors=True)
        shutil.copytree(out, tmp_path / "kept")
        damaged(out / name, kind, draw, other / name)
        try:
            compare(tmp_path / "first" / "compare.yaml", None, {}, console)
            assert untimed(out) == whole, (name, kind)
        except SemAlignError as error:
            assert "\n" not in str(error) and len(str(error)) <= 400
        shutil.rmtree(out)
        shutil.copytree(tmp_path / "kept", out)


def untimed(out: Path) -> list[dict[str, Any]]:
    """Lines of results without what a clock or a memory counter says."""
    return [{k: v for k, v in line.items() if not k.endswith(("seconds", "bytes"))} for line in results(out)]
