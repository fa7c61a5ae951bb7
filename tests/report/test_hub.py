"""A student is uploaded only when that is asked for, alone, and where and how it was asked."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalTokenNotFoundError

from semalign.cli import main
from semalign.config.parsing import load_config
from semalign.errors import ConfigError
from semalign.report.hub import push
from semalign.run.folder import RunFolder
from semalign.steps.pipeline import transfer


class Recorder:
    """In place of HfApi: remembers what it was asked."""

    calls: list[tuple[str, dict[str, Any]]]
    error: Exception | None = None

    def __init__(self, token: str | None = None) -> None:
        Recorder.calls = [("token", {"token": token})]

    def create_repo(self, repo_id: str, **options: Any) -> str:
        if Recorder.error:
            raise Recorder.error
        Recorder.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return f"https://hub.test/{repo_id}"

    def upload_folder(self, **options: Any) -> None:
        Recorder.calls.append(("upload_folder", options))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    Recorder.calls, Recorder.error = [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", Recorder)
    return Recorder


def test_a_dry_run_lists_files_and_card_and_opens_no_connection(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    assert main(["push", str(done), "--hub_model_id", "me/student"]) == 0
    shown = capsys.readouterr().out
    assert "nothing was uploaded" in shown and "license: mit" in shown
    for path in (done / "student").iterdir():
        assert path.name in shown and f"{path.stat().st_size:,}" in shown
    assert main(["push", str(done), "--hub_model_id", "me/student", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["uploaded"] is None


def test_with_yes_exactly_the_student_folder_is_uploaded(
    done: Path, hub: type[Recorder], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(done), "--hub_model_id", "me/student", "--private", "--yes", "--json"]) == 0
    _, made, uploaded = hub.calls
    assert made == (
        "create_repo",
        {"repo_id": "me/student", "private": True, "exist_ok": True, "repo_type": "model"},
    )
    assert uploaded[0] == "upload_folder" and uploaded[1]["folder_path"] == done / "student"
    assert uploaded[1]["repo_id"] == "me/student"
    assert json.loads(capsys.readouterr().out)["uploaded"] == "https://hub.test/me/student"


def test_token_branch_and_message_are_those_that_were_given(done: Path, hub: type[Recorder]) -> None:
    options = {"token": "hf_secret", "revision": "second", "message": "Another try"}
    push(RunFolder(done), "me/student", is_dry=False, **options)
    (_, known), _, (_, uploaded) = hub.calls
    assert known == {"token": "hf_secret"}
    assert (uploaded["revision"], uploaded["commit_message"]) == ("second", "Another try")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 3, "expected ORG/NAME, got none"),
        (["--hub_model_id", "a/b/c"], 3, "expected a name such as ORG/NAME"),
        (["--hub_model_id", "me/student", "--yes"], 1, "hf auth login"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    done: Path,
    hub: type[Recorder],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    hub.error = LocalTokenNotFoundError("Token is required")
    assert main(["push", str(done), *arguments]) == code
    assert said in " ".join(capsys.readouterr().err.split())
    assert not [call for call in hub.calls if call[0] == "upload_folder"]


def test_a_run_without_student_cannot_be_pushed(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(done / "config.yaml", tmp_path)
    assert main(["push", str(tmp_path), "--hub_model_id", "me/student"]) == 6
    assert "no trained student" in " ".join(capsys.readouterr().err.split())


def test_push_to_hub_in_the_config_uploads_at_the_end_and_only_then(done: Path, hub: type[Recorder]) -> None:
    config = load_config(done / "config.yaml")
    transfer(config)
    assert hub.calls == []
    asked = load_config(done / "config.yaml", push_to_hub=True, hub_model_id="me/student")
    transfer(asked, ("attribute",))
    transfer(asked, ("evaluate", "report"))
    assert hub.calls == []
    transfer(asked)
    assert [name for name, _ in hub.calls] == ["token", "create_repo", "upload_folder"]
    with pytest.raises(ConfigError, match="hub_model_id"):
        load_config(done / "config.yaml", push_to_hub=True, hub_model_id=None)
