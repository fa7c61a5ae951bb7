"""Digests that outlive a command."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from semalign.run import digests
from semalign.run.files import replacing
from semalign.run.sums import SUMS, agrees_with_sums, read_sums, write_sums
from semalign.run.sums import digests as digests_of


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every file that is hashed, a minute after it was written and in a process that has hashed none."""
    found: list[str] = []
    hashed = hashlib.file_digest
    later = time.time() + 60
    monkeypatch.setattr(digests.time, "time", lambda: later)
    monkeypatch.setattr(
        digests.hashlib,
        "file_digest",
        lambda file, kind: found.append(Path(file.name).name) or hashed(file, kind),
    )
    monkeypatch.setattr(digests, "_hashed", {})
    return found


def test_what_did_not_change_is_not_hashed_by_the_next_command(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files, memory = [tmp_path / "a", tmp_path / "b"], tmp_path / "digests.json"
    for path in files:
        path.write_text(path.name)
    first = digests_of(files, memory)
    assert first == [hashlib.sha256(p.name.encode()).hexdigest() for p in files] and reads == ["a", "b"]
    monkeypatch.setattr(digests, "_hashed", {})
    assert digests_of(files, memory) == first and reads == ["a", "b"]
    files[1].write_text("c")
    assert digests_of(files, memory)[1] == hashlib.sha256(b"c").hexdigest() and reads == ["a", "b", "b"]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff"])
def test_a_damaged_memory_is_forgotten(tmp_path: Path, reads: list[str], content: bytes) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "digests.json").write_bytes(content)
    assert digests_of([tmp_path / "a"], tmp_path / "digests.json") == [hashlib.sha256(b"a").hexdigest()]
    assert (
        digests_of([tmp_path / "a"], tmp_path / "nowhere" / "x.json") and not (tmp_path / "nowhere").exists()
    )


def test_a_wrong_digest_in_the_memory_is_not_believed(tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "a").write_text("a")
    memory = tmp_path / "digests.json"
    first = digests_of([tmp_path / "a"], memory)
    memory.write_text(memory.read_text().replace(first[0], "0" * 64))
    assert digests_of([tmp_path / "a"], memory) == first


def test_a_folder_is_checked_by_coreutils_too(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("model.safetensors", "deep/größe.txt"):
        (tmp_path / name).write_text(name)
    write_sums(tmp_path)
    assert set(read_sums(tmp_path)) == {"model.safetensors", "deep/größe.txt"} and agrees_with_sums(tmp_path)
    command = shutil.which("sha256sum")
    if command is None:
        pytest.skip("sha256sum of coreutils is not installed")
    run = [command, "--check", "--strict", "--quiet", SUMS]
    assert subprocess.run(run, cwd=tmp_path).returncode == 0
    (tmp_path / "deep/größe.txt").write_text("other")
    assert subprocess.run(run, cwd=tmp_path, capture_output=True).returncode == 1
    assert not agrees_with_sums(tmp_path)


def test_what_another_process_is_writing_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("weights")
    with replacing(tmp_path / "README.md") as part:
        part.write_text("half of a card")
        write_sums(tmp_path)
    assert list(read_sums(tmp_path)) == ["model.safetensors"] and agrees_with_sums(tmp_path)


def test_a_known_digest_is_taken_and_not_made_from_what_lies_there_now(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("damaged")
    (tmp_path / "README.md").write_text("card")
    write_sums(tmp_path, {"model.safetensors": "0" * 64})
    found = read_sums(tmp_path)
    assert found["model.safetensors"] == "0" * 64
    assert found["README.md"] == hashlib.sha256(b"card").hexdigest() and not agrees_with_sums(tmp_path)
    (tmp_path / SUMS).unlink()
    assert read_sums(tmp_path) == {} and not agrees_with_sums(tmp_path)
