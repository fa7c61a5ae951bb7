"""What an item of a task must hold so that answers to it can be graded: checked when items are read, before any model is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from semalign.data.chat import asked, conversation
from semalign.data.kinds import CONVERSATIONS, Row, row_kind
from semalign.errors import DataError
from semalign.jail.inside.checker import NO_PYTHON
from semalign.reading import Shape, UnreadableError, check_shape


def _number(value: float | str) -> float | str:
    try:
        is_one = math.isfinite(float(value))
    except (ValueError, OverflowError):
        is_one = False
    if not is_one:
        raise ValueError("expected a number")
    return value


def _source(text: str) -> str:
    try:
        compile(text, "check", "exec", dont_inherit=True)
    except NO_PYTHON as error:
        raise ValueError(f"expected Python ({error})") from None
    return text


def _name(text: str) -> str:
    if not text.isidentifier():
        raise ValueError("expected the name of a function")
    return text


class LetterCheck(Shape):
    """A multiple choice: the answer is the letter of one of the options."""

    kind: Literal["letter"]
    answer: Annotated[str, Field(pattern="^[A-Z]$")]
    options: Annotated[list[Any] | str, Field(min_length=1, max_length=26)] = "ABCD"


class NumberCheck(Shape):
    """A final number."""

    kind: Literal["number"]
    answer: Annotated[float | str, AfterValidator(_number)]


class PythonCheck(Shape):
    """Code that defines `entry` and passes the asserts."""

    kind: Literal["python"]
    entry: Annotated[str, AfterValidator(_name)]
    asserts: Annotated[list[Annotated[str, AfterValidator(_source)]], Field(min_length=1)]
    prefix: str = ""


class Checked(Shape):
    """A row whose answers are graded."""

    check: Annotated[LetterCheck | NumberCheck | PythonCheck, Field(discriminator="kind")]


class Item(Checked):
    """A row that is answered and graded."""

    id: str | int | None = None
    task: Annotated[str, Field(min_length=1)]


def with_check(row: Row, place: str, shape: type[Checked] = Checked) -> Row:
    """A row whose check can grade answers, without the nulls that Parquet has where a row lacks what others have.

    Raises:
        DataError: it cannot; the sentence says which field is not as `docs` have it.
    """
    given = row.get("check")
    if isinstance(given, Mapping):
        row = row | {"check": {k: v for k, v in given.items() if v is not None}}
    try:
        check_shape(shape, row)
        check = row["check"]
        if check["kind"] == "letter" and ord(check["answer"]) - ord("A") >= len(check.get("options", "ABCD")):
            raise UnreadableError(f"check.answer: expected the letter of an option, got {check['answer']!r}")
    except UnreadableError as error:
        wanted = "an item with task, messages and check" if shape is Item else "a check of its answers"
        raise DataError(f"{place}: expected {wanted}, but {error}; mend it, see the docs on tasks.") from None
    return row


def as_item(row: Row, place: str) -> Row:
    """A row that can be answered and graded, as a conversation in `messages`.

    Raises:
        DataError: it cannot; the sentence says which field is not as `docs` have it.
    """
    row = with_check(row, place, Item)
    try:
        kind = row_kind(row)
        messages = conversation(row, kind) if kind in CONVERSATIONS else []
        if not asked(messages):
            raise UnreadableError(f"expected messages, or prompt and completion as message lists, got {kind}")
    except (UnreadableError, DataError) as error:
        raise DataError(
            f"{place}: expected an item with task, messages and check, but {error}; mend it, see the docs on tasks."
        ) from None
    # Parquet has a null where a row lacks what others have.
    left_out = {"prompt", "completion", *(["id"] if row.get("id") is None else [])}
    return {k: v for k, v in row.items() if k not in left_out} | {"messages": messages}
