"""JSON Lines files, read strictly: every bad line is told by file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from semalign.data.kinds import HALF, Row, is_text
from semalign.errors import DataError
from semalign.reading import check_depth

SUFFIXES = (".jsonl", ".json-lines", ".ndjson", ".json")
GZIP = ".gz"
"""After one of SUFFIXES: the file is compressed."""


def read_jsonl(path: Path) -> Iterator[tuple[str, Row | str]]:
    """Yields (file:line, row), or (file:line, reason) for a line that is no row; blank lines are passed over.

    A byte order mark at the start is accepted. Lines end at a line feed only, because strings may hold other
    Unicode line separators.

    Raises:
        DataError: the file cannot be opened, or is one JSON array instead of one object a line.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == GZIP else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                if number == 1 and line.lstrip().startswith(b"["):
                    raise DataError(
                        f"{path}:1: expected JSON Lines (one object a line), found a JSON array; "
                        "write every element of the array on a line of its own"
                    )
                if line.strip():
                    yield f"{path}:{number}", _parse(line)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: expected a whole gzip file ({error}); compress or copy it again") from error
    except OSError as error:
        raise DataError(
            f"expected a readable file of JSON Lines at {path}: {error.strerror}; check the path"
        ) from error


def _parse(line: bytes) -> Row | str:
    """The row of a line, or the reason why it has none."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        return f"not UTF-8 (byte {byte:#04x} at column {error.start + 1}); save the file as UTF-8"
    try:
        row = json.loads(text)
        check_depth(text, row)
    except RecursionError:
        return "JSON nested too deeply"
    except json.JSONDecodeError as error:
        # An interrupted writer leaves a last line that has no line feed and stops inside the object.
        at_end = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        stops = at_end or not text.rstrip().endswith("}")
        cut = stops and not text.endswith("\n") and text.lstrip().startswith("{")
        start = "the last line is cut off" if cut else "not a JSON object on one line"
        return f"{start} ({error.msg}, column {error.colno})"
    except ValueError as error:  # too deep, or a number of thousands of digits
        return f"not a JSON object that can be used ({error})"
    if not isinstance(row, dict):
        return f"expected a JSON object, found {type(row).__name__} {row!r:.40}"
    return row if "\\ud" not in text.lower() or is_text(row) else HALF
