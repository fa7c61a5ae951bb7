"""A folder has one owner, for as long as the owner lives, whatever its lock file says."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from semalign.errors import CacheError
from semalign.run.lock import locked

# Owns a folder, says so, and waits to be told to end.
OWNER = """
import sys
sys.argv = ["/bin/semalign", "transfer", "run.yaml", "--cache.folder=memory://user:SECRET@host", "more"]
from pathlib import Path
from semalign.run.lock import locked
with locked(Path({folder!r})):
    print("owned", flush=True)
    sys.stdin.read()
"""


@contextmanager
def owner(folder: Path) -> Iterator[subprocess.Popen]:
    """Another process that owns the folder."""
    command = [sys.executable, "-c", OWNER.format(folder=str(folder))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "owned\n"
        yield process
        process.kill()
        process.communicate()


def refusal(folder: Path) -> str:
    with pytest.raises(CacheError) as caught, locked(folder):
        pytest.fail("two own the folder")
    said = str(caught.value)
    assert len(said) < 400 + len(str(folder)) and "\n" not in said
    return said


def test_a_living_owner_is_named_whatever_its_file_says_and_a_killed_one_never_blocks(tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        said = refusal(tmp_path)
        about = json.loads((tmp_path / ".lock").read_text())
        assert said == (
            f"{tmp_path}: in use by process {process.pid} on {os.uname().nodename} (semalign transfer run.yaml) since "
            f"{about['since']}; wait for it, stop it, or choose another output_dir."
        )
        odd = [b"", b"\x00\xff" * 9, b"4" * 10**7, b"[" * 4000, b"null", b"[1]", b'{"pid": 1}', b"1" * 4000]
        for content in odd:
            # In the same file: another one of that name would be another lock.
            (tmp_path / ".lock").write_bytes(content)
            assert "in use by another process; wait" in refusal(tmp_path), content[:20]
        names = {"pid": "9\n" * 300, "host": ["x"] * 50, "command": "\x1b[31m" + "y" * 900, "since": None}
        (tmp_path / ".lock").write_text(json.dumps(names))
        assert "in use by process 9999" in refusal(tmp_path)
        threading.Timer(0.2, process.kill).start()
        with locked(tmp_path, patience=60):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    "content", [b"", str(os.getppid()).encode(), b"1", b"\xff\x00", b"9" * 5000, b'{"pid": 1, "host": "far"}']
)
def test_a_file_that_nobody_holds_is_nobodys_lock(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".lock").write_bytes(content)
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    (tmp_path / ".lock").write_bytes(content)
    with locked(tmp_path):
        pass


def test_the_same_thread_owns_it_twice_and_gives_it_back_at_the_outer_end(tmp_path: Path) -> None:
    said = []

    def other() -> None:
        said.append(refusal(tmp_path))

    def take() -> None:
        with locked(tmp_path):
            said.append("taken")

    with locked(tmp_path):
        for spelled in (tmp_path, tmp_path / "x" / ".."):
            (tmp_path / "x").mkdir(exist_ok=True)
            with locked(spelled):
                pass
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
    assert len(said) == 2 and all(f"in use by process {os.getpid()} " in sentence for sentence in said)
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError("the work failed")
    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    assert said[2:] == ["taken"]


def test_a_program_that_is_started_meanwhile_keeps_nothing_locked(tmp_path: Path) -> None:
    with locked(tmp_path):
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
        )
    with locked(tmp_path):
        pass
    with child:
        child.kill()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    said = rf"has no file locks, so two runs could write there at once \({os.strerror(number)}\); choose another output_dir\."
    with pytest.raises(CacheError, match=said), locked(tmp_path):
        pytest.fail("the folder is owned")
    monkeypatch.undo()
    with locked(tmp_path):
        pass


def test_what_cannot_be_a_lock_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder" / ".lock").mkdir(parents=True)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / ".lock").symlink_to(tmp_path / "elsewhere")
    for name in ("folder", "link"):
        with (
            pytest.raises(
                CacheError, match=rf"{name}: cannot be written \(.+\); choose another output_dir\."
            ),
            locked(tmp_path / name),
        ):
            pytest.fail("the folder is owned")
    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_without_room_for_its_owners_name_holds_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, data: bytes, at: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with locked(tmp_path):
        thread = threading.Thread(target=lambda: said.append(refusal(tmp_path)))
        said: list[str] = []
        thread.start()
        thread.join()
    assert "in use by another process; wait" in said[0]
