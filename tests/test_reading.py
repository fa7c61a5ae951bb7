"""Texts of files become plain values of a declared shape, or one reason."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from semalign.errors import LONGEST, SemAlignError, sentence
from semalign.reading import (
    MOST_DEPTH,
    MOST_VALUES,
    Figure,
    Shape,
    UnreadableError,
    bytes_of,
    check_shape,
    json_of,
    plain_value,
    shown,
    text_of,
    yaml_of,
)


def test_a_message_is_one_printable_line_whose_ends_stay() -> None:
    assert sentence("a\nb\t\x1b[31mc \ud800 d") == "a b [31mc d"
    for length in (LONGEST + 1, 10**6):
        long = sentence(f"run.yaml: expected this, got {'x' * length}; do that.")
        assert len(long) <= LONGEST and long.startswith("run.yaml: expected") and long.endswith("; do that.")
    error = SemAlignError("one\ntwo" + "y" * 9000)
    assert len(str(error)) <= LONGEST and "\n" not in str(error)
    assert str(SemAlignError("short; kept.")) == "short; kept."


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", r"line 1, column 2"),
        (b'{"a": 1, "a": 2}', r"the key 'a' stands twice"),
        (b'{"a":\n "\xff"}', r"not UTF-8 \(byte 0xff in line 2\)"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 100 + b"]" * 100, "nested too deeply"),
        (b"9" * 5000, "digits"),
    ],
)
def test_what_is_no_json_has_a_reason_with_its_place(data: bytes, said: str) -> None:
    with pytest.raises(UnreadableError, match=said):
        json_of(data)


def test_json_is_read_as_it_stands() -> None:
    assert json_of(b'\xef\xbb\xbf{"a": [1, 2.5, null, "\xc3\xa4"]}') == {"a": [1, 2.5, None, "ä"]}
    deep = b"[" * MOST_DEPTH + b"]" * MOST_DEPTH
    assert str(json_of(deep)).encode() == deep
    assert math.isinf(json_of(b"[Infinity]")[0])


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{','.join(['*' + a] * 10)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "line 1, column 6"),
        ("a: 1\na: 2", "the key 'a' stands twice, line 2"),
        ("a: &a [*a]", "nested too deeply"),
        ("&a {x: *a}", "nested too deeply"),
        (BOMB, f"at most {MOST_VALUES} values"),
        (MERGES, f"at most {MOST_VALUES} values"),
        ("[" * 10_000, "nested too deeply"),
        ("a: .nan", "a: expected .* a finite number"),
        ("a: {b: [.inf]}", r"a\.b\[0\]: expected"),
        ("1: a", "expected a text"),
        ('a: "x\\0"', "a: expected a text"),
        ('a: "\\ud800"', "a: expected a text"),
        ("a: !!binary aGk=", "a: expected"),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("a: 0x" + "f" * 9000, "a: expected"),
        ("a\0b", "at position"),
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_what_is_no_plain_yaml_has_a_reason(text: str, said: str) -> None:
    with pytest.raises(UnreadableError, match=said) as caught:
        yaml_of(text.encode())
    assert len(str(caught.value)) < LONGEST


def test_yaml_may_use_aliases_and_merges_and_dates_stay_texts() -> None:
    text = b"a: &a {x: 1, y: [t]}\nb: {<<: *a, x: 2}\nc: *a\nd: 2024-01-01\ne: null\n"
    both = {"x": 1, "y": ["t"]}
    assert yaml_of(text) == {"a": both, "b": both | {"x": 2}, "c": both, "d": "2024-01-01", "e": None}
    assert yaml_of(b"a: .inf", is_plain=False) == {"a": math.inf}


def test_a_plain_value_is_a_copy() -> None:
    given = {"a": ({"b": 1},)}
    copied = plain_value(given)
    assert copied == {"a": [{"b": 1}]}
    copied["a"][0]["b"] = 2
    assert given == {"a": ({"b": 1},)}


def test_a_file_has_a_largest_size(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert bytes_of(path, 5) == b"12345"
    with pytest.raises(UnreadableError, match="at most 4 bytes"):
        bytes_of(path, 4)
    with pytest.raises(OSError):
        bytes_of(tmp_path)
    assert text_of(b"\xef\xbb\xbfa") == "a"


class Example(Shape):
    count: int
    figure: Figure | None = None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "^x.count: found nothing there$"),
        ({"count": True}, "^x.count: expected a whole number, got True$"),
        ({"count": 4.0}, "whole number, got 4.0"),
        ({"count": "4"}, "whole number, got '4'"),
        ({"count": 4, "figure": 1e308}, "figure.*between"),
        ([1], r"^x: expected an object, got \[1\]$"),
    ],
)
def test_a_shape_is_strict_and_names_the_first_place(value: Any, said: str) -> None:
    with pytest.raises(UnreadableError, match=said):
        check_shape(Example, value, "x")


def test_a_shape_leaves_the_value_and_newer_keys_alone() -> None:
    value = {"count": 4, "figure": math.inf, "newer": object()}
    before = dict(value)
    check_shape(Example, value)
    assert value == before


def test_what_is_shown_of_a_value_is_short() -> None:
    assert shown("x") == "'x'" and len(shown("x" * 500)) == 61
    assert shown(16**9000) == "a very large int"
