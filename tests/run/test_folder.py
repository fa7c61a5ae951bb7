"""A run folder has one owner, a place for each file, and results that are valid for their inputs alone."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from semalign.cli import main
from semalign.errors import CacheError
from semalign.run.files import read_json
from semalign.run.folder import RunFolder, check_files, fingerprint, is_done, save_result, verified


def test_a_folder_in_use_names_the_owner(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes = []
    with RunFolder(config_file.parent / "run").lock():
        thread = threading.Thread(
            target=lambda: codes.append(main(["transfer", str(config_file), "--quiet"]))
        )
        thread.start()
        thread.join()
    assert codes == [6]
    assert f"in use by process {os.getpid()} on " in " ".join(capsys.readouterr().err.split())


def places(run: RunFolder) -> dict[str, Path]:
    """The paths that a run folder names."""
    names = [n for n, v in vars(RunFolder).items() if isinstance(v, property) and not n.startswith("_")]
    return {name: getattr(run, name) for name in names}


def test_every_file_has_a_place_of_its_own_inside_the_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    found = places(run)
    assert len(set(found.values())) == len(found) >= 12
    assert all(path.is_relative_to(run.root) and path != run.root for path in found.values())
    assert run.manifest.parent == run.targets
    assert not run.root.exists(), "asking for a place makes nothing"


def test_each_baseline_has_a_folder_and_the_run_itself_is_its_own(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    own, *others = (run.training(name) for name in (None, "kl", "cosine"))
    assert own == tmp_path and len({own, *others}) == 3
    assert all(path.is_relative_to(tmp_path) for path in others)


def test_of_several_processes_of_a_run_the_main_one_owns_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = RunFolder(tmp_path / "run")
    monkeypatch.setenv("RANK", "1")
    with run.lock():
        assert not run.root.exists()
    monkeypatch.setenv("RANK", "0")
    with run.lock():
        monkeypatch.setenv("RANK", "1")
        with run.lock():
            pass
        assert json.loads((run.root / ".lock").read_text())["pid"] == os.getpid()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CacheError, match=r"file/run: cannot be written \(.+\); choose another output_dir\."),
        RunFolder(tmp_path / "file" / "run").lock(),
    ):
        pytest.fail("the folder is owned")


def test_a_fingerprint_is_plain_json_that_equals_what_is_read_back() -> None:
    made = fingerprint(layers=(1, 2), names={"only"}, rows={"n": None, "share": 0.5})
    assert made == {"layers": [1, 2], "names": ["only"], "rows": {"n": None, "share": 0.5}}
    assert json.loads(json.dumps(made)) == made
    assert fingerprint(layers=(1, 2)) == fingerprint(layers=[1, 2]) != fingerprint(layers=(2, 1))


def test_a_result_is_done_for_the_inputs_that_it_was_made_from(tmp_path: Path) -> None:
    path, wanted = tmp_path / "scores.json", fingerprint(rows=3, layers=(1, 2))
    assert not is_done(path, wanted)
    save_result(path, wanted, {"scores": [0.5], "fingerprint": "not the result's to say"})
    assert read_json(path, "attribute") == {"scores": [0.5], "fingerprint": wanted}
    assert is_done(path, wanted)
    assert not is_done(path, wanted | {"rows": 4}) and not is_done(path, wanted | {"new": None})


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "3", '"text"', "{}", '{"scores": [1]}', '{"fingerprint": null}']
)
def test_a_result_that_is_damaged_or_of_unknown_inputs_is_not_done(tmp_path: Path, content: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(content)
    wanted: dict[str, Any] = {}
    assert not is_done(path, wanted)


def test_a_result_is_not_done_once_a_file_of_it_is_not_as_it_was_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result, wanted = tmp_path / "train.json", {"seed": 0}
    (tmp_path / "student").mkdir()
    for name in ("student/model.safetensors", "train.jsonl"):
        (tmp_path / name).write_text(name)
    save_result(result, wanted, {}, [tmp_path / "student", tmp_path / "train.jsonl"])
    assert is_done(result, wanted) and check_files(result, "train")["fingerprint"] == wanted
    assert verified(result, "train.jsonl", "train") == tmp_path / "train.jsonl"
    assert not caplog.records
    (tmp_path / "student/model.safetensors").write_text("student/model.safetensorz")
    assert not is_done(result, wanted) and is_done(result, wanted, ["train.jsonl"])
    said = "student/model.safetensors is damaged (its SHA-256 is not the one that was recorded)"
    assert [r.message for r in caplog.records] == [f"{result}: {said}; it is made again"]
    with pytest.raises(CacheError, match=r"model\.safetensors is damaged .*; run `semalign train` again"):
        check_files(result, "train")
    assert verified(result, "train.jsonl", "train"), "the others are whole"
    with pytest.raises(CacheError, match="other is not recorded; run `semalign train` again"):
        verified(result, "other", "train")


def test_why_a_stale_result_is_made_again_is_said_with_what_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_result(tmp_path / "scores.json", {"teacher": {"files": {"pytorch_model.bin": "a"}}}, {})
    assert not is_done(tmp_path / "scores.json", {"teacher": {"files": {"pytorch_model.bin": "b"}}})
    (record,) = caplog.records
    assert "stale (teacher.files.pytorch_model.bin: 'a' -> 'b'); it is made again" in record.message
