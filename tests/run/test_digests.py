"""A file that is not as it was written is noticed, whichever byte changed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
import yaml

from semalign.run import digests
from semalign.run.digests import damage, digest, record, seal_of, sealed, unsealed

TEXTS = {
    ".json": b'{\n "a": [1, 2],\n "b": "\xc3\xbc"\n}',
    ".yaml": b"a: [1, 2]\nb: \xc3\xbc\n",
    ".html": b"<p>\xc3\xbc</p>\n",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_change_of_any_byte_breaks_the_seal(kind: str) -> None:
    whole = sealed(TEXTS[kind], kind)
    assert seal_of(whole, kind) == "whole"
    for place in range(len(whole)):
        for bit in (1, 32, 128):
            changed = whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :]
            assert seal_of(changed, kind) != "whole", place
        assert seal_of(whole[:place], kind) != "whole"
    assert seal_of(whole + b"\n", kind) == seal_of(whole + whole, kind) == "broken"


def test_a_sealed_file_is_still_what_it_was() -> None:
    value = json.loads(sealed(TEXTS[".json"], ".json"))
    assert {k: v for k, v in value.items() if k != "seal"} == json.loads(TEXTS[".json"])
    assert set(json.loads(sealed(b"{}", ".json"))) == {"seal"}
    assert yaml.safe_load(sealed(TEXTS[".yaml"], ".yaml")) == yaml.safe_load(TEXTS[".yaml"])
    for kind in (".yaml", ".html"):
        assert unsealed(sealed(TEXTS[kind], kind), kind) == TEXTS[kind]


def test_text_without_a_seal_is_told_from_text_with_a_broken_one() -> None:
    assert {seal_of(text, kind) for kind, text in TEXTS.items()} == {"none"}
    assert seal_of(b"", ".json") == "none"


def test_a_digest_is_that_of_the_whole_file(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(data)
    assert digest(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_a_file_is_read_once_as_long_as_it_does_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "x", []
    monkeypatch.setattr(
        digests.hashlib, "file_digest", lambda file, name: read.append(1) or hashlib.sha256(file.read())
    )
    path.write_bytes(b"old")
    assert digest(path) == digest(path) and len(read) == 2, "it may still change within the clock's grain"
    # The change lies back far enough.
    later = time.time() + 60
    monkeypatch.setattr(digests.time, "time", lambda: later)
    first = digest(path)
    assert digest(path) == first and len(read) == 3
    path.write_bytes(b"new")
    os.utime(path, ns=(1, 1))
    assert digest(path) == hashlib.sha256(b"new").hexdigest() and len(read) == 4


def test_the_first_file_that_is_not_as_recorded_is_named(tmp_path: Path) -> None:
    (tmp_path / "student" / "deep").mkdir(parents=True)
    for name in ("student/a", "student/deep/b", "log"):
        (tmp_path / name).write_text(name)
    found = record(tmp_path, [tmp_path / "student", tmp_path / "log"])
    assert list(found) == ["log", "student/a", "student/deep/b"]
    assert found["log"] == {"bytes": 3, "sha256": hashlib.sha256(b"log").hexdigest()}
    assert damage(tmp_path, found) is None
    (tmp_path / "student/deep/b").write_text("student/deep/c")
    assert damage(tmp_path, found) == (
        "student/deep/b is damaged (its SHA-256 is not the one that was recorded)"
    )
    (tmp_path / "student/a").write_text("")
    assert damage(tmp_path, found) == "student/a has 0 bytes instead of 9"
    (tmp_path / "log").unlink()
    assert damage(tmp_path, found) == "log is missing"
