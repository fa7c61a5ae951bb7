"""An exception that nobody foresaw is one sentence; its traceback is in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from semalign.cli import main
from semalign.errors import ConfigError, SemAlignError
from semalign.run.faults import faults


def fail() -> None:
    raise KeyError("a key\nof two lines" + "x" * 1000)


def test_the_traceback_is_in_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(
            SemAlignError, match=r"KeyError: .*fault of SemAlign or of a library.*traceback\.txt"
        ) as caught,
        faults(tmp_path),
    ):
        fail()
    text = (tmp_path / "traceback.txt").read_text()
    assert "in fail" in text and "x" * 1000 in text
    assert caught.value.exit_code == 1 and len(str(caught.value)) <= 400 and not capsys.readouterr().err
    with pytest.raises(SemAlignError), faults(tmp_path, is_told=True):
        fail()
    assert "in fail" in capsys.readouterr().err


def test_without_a_folder_a_temporary_file_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SemAlignError, match="semalign-traceback-"), faults(tmp_path / "nothing"):
        fail()
    (file,) = tmp_path.glob("semalign-traceback-*.txt")
    assert "in fail" in file.read_text()


def test_where_nothing_can_be_written_the_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(SemAlignError, match="no file, since none can be written"), faults():
        fail()


def test_the_users_own_mistakes_and_interrupts_pass(tmp_path: Path) -> None:
    for error in (ConfigError("mine"), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)) as caught, faults(tmp_path):
            raise error
        assert caught.value is error
    assert not list(tmp_path.iterdir())


def test_a_command_ends_with_the_sentence_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("semalign.report.build_report", lambda *_: fail())
    assert main(["report", str(tmp_path), "--quiet"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("semalign: KeyError:") and "semalign-traceback-" in said
