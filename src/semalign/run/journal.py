"""Values of a long piece of work, kept one by one until it is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from semalign.reading import Object, UnreadableError, check_shape, json_of
from semalign.run.files import append, say_once, write_atomic


class Journal:
    """A file of one value a line, led by what it is written for; each line has a digest of itself and of all before it.

    `values` are those that an earlier try with the same inputs wrote, up to the first line that is damaged or cut off.
    """

    def __init__(self, path: Path, wanted: Mapping[str, Any], kind: Any = Any) -> None:
        self.path = path
        lines, has_rest = read_journal(path, kind)
        if has_rest:
            say_once(
                f"{path}: line {len(lines) + 1} is damaged; what it and those after it held is made again"
            )
        is_ours = bool(lines) and lines[0] == json.loads(json.dumps(wanted))
        self.values: list[Any] = lines[1:] if is_ours else []
        self._wanted = dict(wanted)
        self._rewrite()

    def add(self, values: Iterable[Any]) -> None:
        """Write values down, and remember them."""
        values = list(values)
        with self.path.open("a", encoding="utf-8") as file:
            append(file, self._lines(values))
        self.values += values

    def keep_multiple(self, size: int, whole: int) -> None:
        """Forget the values of a last piece that was not written to its end; pieces have `size` values, and all together `whole`."""
        over = len(self.values) % size if len(self.values) < whole else 0
        if over:
            del self.values[-over:]
            self._rewrite()

    def _rewrite(self) -> None:
        self._last = ""
        write_atomic(self.path, self._lines([self._wanted, *self.values]))

    def _lines(self, values: Iterable[Any]) -> str:
        lines = ""
        for value in values:
            text = json.dumps(value)
            self._last = _chained(self._last, text)
            lines += f"{self._last} {text}\n"
        return lines


def read_journal(path: Path, kind: Any = Any) -> tuple[list[Any], bool]:
    """What it is written for, then values of a kind, up to the first line that is damaged or cut off, and whether whole lines follow."""
    # Only at line feeds: a text may hold any other character that ends a line.
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    values: list[Any] = []
    last = ""
    for line in lines:
        told, _, text = line.decode("utf-8", errors="replace").partition(" ")
        last = _chained(last, text)
        if told != last:
            return values, True
        try:
            value = json_of(text.encode())
            check_shape(kind if values else Object, value)
        except UnreadableError:
            return values, True
        values.append(value)
    return values, False


def _chained(last: str, text: str) -> str:
    return hashlib.sha256(f"{last} {text}".encode()).hexdigest()[:16]
