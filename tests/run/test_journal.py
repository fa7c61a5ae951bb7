"""Values are kept one by one, and none that is not as it was written."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from semalign.run.journal import Journal, read_journal

WANTED = {"model": "größer", "rows": 3}
VALUES = [["a\u2028"], {"n": 2}, None, "text \ud800", 3.5]


def written(path: Path) -> Path:
    journal = Journal(path, WANTED)
    journal.add(VALUES[:2])
    journal.add(VALUES[2:3])
    journal.add(VALUES[4:])
    return path


def test_what_an_earlier_try_wrote_is_kept_if_its_inputs_were_the_same(tmp_path: Path) -> None:
    part, kept = written(tmp_path / "rows.part"), [*VALUES[:3], VALUES[4]]
    with part.open("a") as file:
        file.write("cut o")
    content = part.read_bytes()
    journal = Journal(part, WANTED)
    assert journal.values == kept and part.read_bytes() == content.removesuffix(b"cut o")
    journal.add([1])
    assert Journal(part, WANTED).values == [*kept, 1] == journal.values
    assert Journal(part, WANTED | {"rows": 4}).values == [] == Journal(part, WANTED).values


@pytest.mark.parametrize("content", [b"", b"{", b'{"model": "gr', b"\xff\xfe\n", b'{"rows": 3}\n["x"]\n'])
def test_of_a_file_that_is_no_journal_nothing_is_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.part").write_bytes(content)
    assert Journal(tmp_path / "rows.part", WANTED).values == []


def test_nothing_is_kept_from_a_damaged_line_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = written(tmp_path / "rows.part")
    whole, kept, draw = part.read_bytes(), [*VALUES[:3], VALUES[4]], random.Random(0)
    for _ in range(60):
        place, bit = draw.randrange(len(whole)), 1 << draw.randrange(8)
        part.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        before = max(0, whole[:place].count(b"\n") - 1)
        assert read_journal(part)[1] or whole[place : place + 2] in (b"\n", whole[-1:])
        assert Journal(part, WANTED).values == kept[:before]
    assert "is damaged; what it and those after it held is made again" in caplog.text


def test_lines_that_are_exchanged_or_of_another_journal_are_noticed(tmp_path: Path) -> None:
    first, second, *others = written(tmp_path / "a.part").read_bytes().splitlines(keepends=True)
    for lines in ([first, *others], [first, others[0], second], [second, *others]):
        (tmp_path / "b.part").write_bytes(b"".join(lines))
        assert read_journal(tmp_path / "b.part")[1]


def test_of_a_piece_that_was_not_written_to_its_end_nothing_is_kept(tmp_path: Path) -> None:
    part = tmp_path / "rows.part"
    journal = Journal(part, WANTED)
    journal.add(range(7))
    journal.keep_multiple(3, 12)
    assert journal.values == [0, 1, 2, 3, 4, 5] == Journal(part, WANTED).values
    journal.add(range(6, 8))
    journal.keep_multiple(3, 8)
    assert journal.values == list(range(8)), "the last piece may be smaller"
