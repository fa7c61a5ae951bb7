"""What a folder's records say of it; tests/attack/test_bytes.py damages real runs file by file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from semalign.cli import main
from semalign.errors import CacheError
from semalign.run.files import write_json, write_yaml
from semalign.run.folder import RunFolder, save_result
from semalign.run.journal import Journal
from semalign.run.sums import SUMS, write_sums
from semalign.run.verify import verify


def student(folder: Path) -> Path:
    (folder / "deep").mkdir(parents=True)
    for name in ("model.safetensors", "tokenizer.json", "deep/more.txt"):
        (folder / name).write_text(name)
    write_sums(folder)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A finished run in small: every kind of record is in it once."""
    run = RunFolder(tmp_path / "run")
    write_yaml(run.config, {"seed": 0})
    for path in (run.environment, run.data, run.models, run.scores, run.pairs):
        write_json(path, {"of": path.name})
    store = run.targets / "student"
    store.mkdir(parents=True)
    (store / "shard-00000.safetensors").write_text("rows")
    save_result(store / "shard-00000.json", {}, {}, [store / "shard-00000.safetensors"])
    write_json(store / "index.json", {})
    save_result(run.manifest, {}, {}, [store / "shard-00000.json", store / "index.json"])
    for name in (None, "kl"):
        folder = run.training(name)
        student(folder / "student")
        (folder / "train.jsonl").write_text("{}\n")
        files = [p for p in (folder / "student").rglob("*") if p.name != SUMS]
        save_result(folder / "train.json", {}, {}, [*files, folder / "train.jsonl"])
    save_result(
        run.metrics, {}, {"baselines": {"kl": {}}}, [*run.about(), run.scores, run.pairs, run.manifest]
    )
    return run


def test_a_folder_as_it_was_written_is_whole(run: RunFolder) -> None:
    found = verify(run.root)
    assert found.is_sound and not found.unknown
    assert len(found.whole) == sum(p.is_file() for p in run.root.rglob("*"))


def every(folder: Path) -> Iterator[str]:
    yield from sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_deleted_file_is_missing_whichever_it_is(run: RunFolder) -> None:
    for name in every(run.root):
        content = (run.root / name).read_bytes()
        (run.root / name).unlink()
        found = verify(run.root)
        # Without the last result it is a run that is not finished.
        assert name in found.missing or name == "metrics.json", name
        (run.root / name).write_bytes(content)
    assert verify(run.root).is_sound


def test_a_changed_file_is_damaged_whichever_it_is(run: RunFolder) -> None:
    for name in every(run.root):
        content = (run.root / name).read_bytes()
        for changed in (b"", content[:-1], content[:-3] + b"~" + content[-2:], content + b" "):
            (run.root / name).write_bytes(changed)
            assert name in verify(run.root).damaged, (name, changed)
        (run.root / name).write_bytes(content)


def test_what_no_record_speaks_of_is_not_called_whole(run: RunFolder) -> None:
    for name in (
        "notes.txt",
        "targets/raw/x.safetensors",
        ".student-x/model.safetensors",
        "checkpoint-2/optimizer.pt",
    ):
        (run.root / name).parent.mkdir(parents=True, exist_ok=True)
        (run.root / name).write_text("x")
        assert name in verify(run.root).unknown
    assert verify(run.root).missing == ["checkpoint-2/files.json"]
    assert not (verify(run.root).damaged)
    (run.root / ".lock").write_text("1")
    assert ".lock" not in verify(run.root).unknown


def test_the_parts_of_a_stopped_step_are_whole_or_damaged(run: RunFolder) -> None:
    part = run.root / "rows.part"
    Journal(part, {}).add([1, 2])
    assert "rows.part" in verify(run.root).whole
    part.write_text(part.read_text().replace(" 1\n", " 3\n"))
    assert verify(run.root).damaged == ["rows.part"]


def test_the_seconds_of_a_stopped_step_are_a_result_like_others(run: RunFolder) -> None:
    for name in ("seconds.part", "targets/seconds.part", "stage-1/fit-seconds.part"):
        (run.root / name).parent.mkdir(exist_ok=True)
        save_result(run.root / name, {}, {"seconds": 1.5})
        assert name in verify(run.root).whole
        (run.root / name).write_text((run.root / name).read_text().replace("1.5", "2.5"))
        assert verify(run.root).damaged == [name]
        (run.root / name).unlink()


def test_a_round_has_its_plan_from_the_run_and_no_scores(run: RunFolder) -> None:
    place = run.root / "rounds" / "2"
    write_json(place / "pairs.json", {"of": "run"})
    save_result(place / "targets" / "manifest.json", {}, {}, [])
    assert verify(run.root).is_sound
    (place / "pairs.json").unlink()
    assert verify(run.root).missing == ["rounds/2/pairs.json"]


def test_a_cache_in_another_folder_is_looked_at_too(run: RunFolder, tmp_path: Path) -> None:
    run.targets.rename(tmp_path / "elsewhere")
    run.targets.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert verify(run.root).is_sound
    (tmp_path / "elsewhere" / "student" / "shard-00000.safetensors").write_text("rowz")
    assert verify(run.root).damaged == ["targets/student/shard-00000.safetensors"]


def test_a_comparison_needs_what_its_figures_were_made_from(tmp_path: Path) -> None:
    cell = tmp_path / "cells" / "kl" / "rows-0" / "cell.json"
    write_json(cell, {})
    write_yaml(tmp_path / "compare.yaml", {})
    write_json(tmp_path / "environment.json", {})
    save_result(tmp_path / "figures.json", {}, {}, [cell])
    assert verify(tmp_path).is_sound
    for path in (cell, tmp_path / "compare.yaml", tmp_path / "environment.json"):
        content = path.read_bytes()
        path.unlink()
        assert verify(tmp_path).missing == [path.relative_to(tmp_path).as_posix()]
        path.write_bytes(content)


def test_a_student_alone_has_its_own_list(tmp_path: Path) -> None:
    folder = student(tmp_path / "student")
    assert verify(folder).is_sound
    (folder / "model.safetensors").write_text("other")
    (folder / "deep" / "more.txt").unlink()
    found = verify(folder)
    assert (found.damaged, found.missing) == (["SHA256SUMS", "model.safetensors"], ["deep/more.txt"])


def test_a_folder_without_any_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="found no record of any file; check the path"):
        verify(tmp_path)
    with pytest.raises(CacheError, match=r"nowhere: expected the folder of a run"):
        verify(tmp_path / "nowhere")


def test_the_command_says_it_in_lines_or_as_one_object(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(run.root)]) == 0
    assert capsys.readouterr().out.endswith(" whole, 0 damaged, 0 missing, 0 unknown\n")
    run.scores.unlink()
    (run.root / "train.jsonl").write_text("{]\n")
    assert main(["verify", str(run.root)]) == 6
    assert capsys.readouterr().out.splitlines()[:2] == ["damaged: train.jsonl", "missing: scores.json"]
    assert main(["verify", str(run.root), "--json"]) == 6
    told = json.loads(capsys.readouterr().out)
    assert (told["damaged"], told["missing"], told["exit_code"]) == (["train.jsonl"], ["scores.json"], 6)
