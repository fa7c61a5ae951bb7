"""The kinds of row that can be supervised, and what makes a row one of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

from semalign.errors import DataError

Row = dict[str, Any]


class Kind(StrEnum):
    """How a row states what the model reads and what it should answer."""

    IDS = "input_ids"
    MESSAGES = "messages"
    CHAT_PAIR = "prompt + completion (message lists)"
    STRING_PAIR = "prompt + completion (strings)"
    TEXT = "text"


ACCEPTED = "messages, prompt + completion, text, or input_ids (with labels or completion_mask)"
CONVERSATIONS = (Kind.MESSAGES, Kind.CHAT_PAIR)
TRAINED = {
    Kind.IDS: ("input_ids", "labels", "completion_mask"),
    Kind.MESSAGES: ("messages", "tools"),
    Kind.CHAT_PAIR: ("prompt", "completion", "tools"),
    Kind.STRING_PAIR: ("prompt", "completion"),
    Kind.TEXT: ("text",),
}
"""The columns that tokens are made of; what other columns hold is of no matter."""
READ = frozenset(column for columns in TRAINED.values() for column in columns)


def row_kind(row: Row) -> Kind:
    """The kind of a row.

    A value that is null where a completion, text or conversation belongs is no mistake of form: such a row
    has a kind, and `prepare` drops and counts it. Where a row has the columns of several kinds, the first of
    `input_ids`, `messages`, `prompt` + `completion`, `text` whose value is not null decides. A `prompt` alone is a pair
    whose completion is null: the teacher may answer it.

    Raises:
        DataError: the columns or the types of their values fit no kind; the message is a reason without a
            place.
    """
    groups = (("input_ids",), ("messages",), ("prompt", "completion"), ("text",), ("prompt",))
    present = [group for group in groups if all(column in row for column in group)]
    if not present:
        raise DataError(f"found columns {sorted(map(str, row))}, expected {ACCEPTED}")
    group = next((g for g in present if row[g[0]] is not None), present[0])
    match group[0]:
        case "input_ids":
            return _ids_kind(row)
        case "messages":
            check_messages(row["messages"], "messages")
            return Kind.MESSAGES
        case "prompt":
            return _pair_kind(row)
        case _:
            if not isinstance(row["text"], str | None):
                raise DataError(f"text is {_type(row['text'])}, expected a string")
            return Kind.TEXT


def checked_kind(row: Row) -> Kind:
    """As `row_kind`, and the columns that are trained on hold text and JSON values alone.

    Raises:
        DataError: they do not, such as a timestamp or half a surrogate pair in a message.
    """
    kind = row_kind(row)
    if kind is Kind.IDS:
        return kind
    if kind in CONVERSATIONS:
        tools_of(row)
    try:
        if not is_text([row.get(column) for column in TRAINED[kind]]):
            raise DataError(HALF)
    except DataError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        columns = ", ".join(column for column in TRAINED[kind] if row.get(column) is not None)
        raise DataError(
            f"{columns}: expected strings, numbers, booleans, null, lists and objects, got another value ({error}); convert it"
        ) from None
    return kind


HALF = "a string holds half of a surrogate pair, which is no character"


def is_text(value: Any) -> bool:
    """Whether all strings of a JSON value are text: half of a surrogate pair is no character."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def plain_columns(row: Mapping[str, Any]) -> Row:
    """The row, JSON values alone in the columns that it is not trained on: dates as ISO text, arrays as lists, null for what has no such form.

    A column that nobody reads must stop no run, and an id or a task may be a date or a number of numpy.
    """
    return {str(k): v if k in READ else _plain(v) for k, v in row.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value) if isinstance(value, (Decimal, UUID)) else None


def without_nulls(value: Any) -> Any:
    """The value without the null entries of its objects: Arrow gives every object of a column the keys of all, so null and absent are one."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def tools_of(row: Row) -> list[dict[str, Any]] | None:
    """The tools that a conversation's model may call: column `tools`, a list of JSON Schema objects or the JSON of one; nulls as absent.

    Raises:
        DataError: the column holds something else.
    """
    given = row.get("tools")
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else None
        except (ValueError, RecursionError):
            given = row["tools"]
    if given is None or given == []:
        return None
    if not isinstance(given, list) or not all(isinstance(tool, dict) for tool in given):
        raise DataError(
            f"tools is {_type(given)}, expected a list of JSON Schema objects, or such a list as JSON"
        )
    return without_nulls(given)


def check_messages(messages: Any, column: str) -> None:
    """Raises DataError unless the value is null or a list of messages, content a string or null, tool_calls a list of objects."""
    if messages is None:
        return
    if not isinstance(messages, list):
        raise DataError(f"{column} is {_type(messages)}, expected a list of messages")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(
                f"{column}, message {number}: expected an object with role and content, got {message!r:.60}"
            )
        if not isinstance(message.get("content"), str | None):
            raise DataError(
                f"{column}, message {number}: content is {_type(message['content'])}, expected a string"
            )
        calls = message.get("tool_calls")
        if calls is not None and not (isinstance(calls, list) and all(isinstance(c, dict) for c in calls)):
            raise DataError(
                f"{column}, message {number}: tool_calls is {_type(calls)}, expected a list of objects"
            )


def _pair_kind(row: Row) -> Kind:
    prompt, completion = row["prompt"], row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str | None):
        return Kind.STRING_PAIR
    if isinstance(prompt, list) and isinstance(completion, list | None):
        check_messages(prompt, "prompt")
        check_messages(completion, "completion")
        return Kind.CHAT_PAIR
    raise DataError(
        f"prompt is {_type(prompt)} and completion is {_type(completion)}, expected two strings or two "
        "message lists"
    )


def _ids_kind(row: Row) -> Kind:
    ids = row["input_ids"]
    if ids is None:
        return Kind.IDS
    if not _integers(ids) or not all(0 <= i < 1 << 31 for i in ids):
        raise DataError("input_ids is not a list of token ids, integers from 0 on")
    for column in ("labels", "completion_mask"):
        values = row.get(column)
        if values is not None and not (_integers(values, or_bools=True) and len(values) == len(ids)):
            raise DataError(f"{column} is not a list of {len(ids)} integers, one for each of input_ids")
    labels = row.get("labels")
    for t, label in enumerate([] if labels is None else labels):
        if label not in (-100, ids[t]):
            raise DataError(
                f"labels[{t}] is {label}, expected -100 or input_ids[{t}] = {ids[t]} (labels are not shifted)"
            )
    return Kind.IDS


def supervised_ids(row: Row) -> list[bool]:
    """Which of a row's input_ids its labels or completion_mask supervise; without either, all."""
    labels, completion = row.get("labels"), row.get("completion_mask")
    if row["input_ids"] is None:
        return []
    if labels is not None:
        return [label != -100 for label in labels]
    return [True] * len(row["input_ids"]) if completion is None else [bool(c) for c in completion]


def _integers(values: Any, or_bools: bool = False) -> bool:
    accepted = (lambda v: isinstance(v, int)) if or_bools else (lambda v: type(v) is int)
    return isinstance(values, list) and all(map(accepted, values))


def _type(value: Any) -> str:
    names = {
        str: "a string",
        list: "a list",
        dict: "an object",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
