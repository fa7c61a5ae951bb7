"""Bytes of files -> plain values of a declared shape. Whatever is wrong with them is one reason, `UnreadableError`.

Every reader of a file goes through here and puts the reason into a sentence with the file and what to do. A shape is any type that
pydantic knows: a subclass of `Shape`, a dataclass's annotation, `list[str]`. It is checked strictly and the value stays as it was
read, so that what a newer version added to a file is not lost.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

MOST_DEPTH = 64
"""Lists and objects inside each other."""
MOST_VALUES = 100_000
"""Values of a YAML file, those behind an alias counted as often as it is used."""
MOST_BYTES, MOST_YAML_BYTES = 1 << 30, 1 << 18
MOST_LAYERS = 1000
MOST = 10**15


class UnreadableError(ValueError):
    """What is wrong with a file's content, without the file's name."""


class Shape(BaseModel):
    """What an object in a file holds; keys beside these are left alone."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


def _in_range(value: float) -> float:
    if math.isfinite(value) and abs(value) > MOST:
        raise ValueError(f"expected a number between -{MOST:.0e} and {MOST:.0e}")
    return value


Count = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[int, Field(ge=1, le=MOST)]
Place = Annotated[int, Field(ge=1, le=MOST_LAYERS)]
"""A layer or a head, counted from 1, or how many there are."""
Figure = Annotated[float, AfterValidator(_in_range)]
"""What was measured; it may be infinite or not a number, where a loss or a model was."""
Seconds = Annotated[float, Field(ge=0, le=MOST)]
Object = dict[str, Any]


def bytes_of(path: Path, most: int = MOST_BYTES) -> bytes:
    """A file's content.

    Raises:
        OSError: it cannot be opened.
        UnreadableError: it is larger than a file of its kind can be.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UnreadableError(f"expected at most {most} bytes, got more")
    return data


def text_of(data: bytes) -> str:
    """UTF-8, with or without a byte order mark."""
    try:
        return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UnreadableError(f"not UTF-8 (byte {data[error.start]:#04x} in line {line})") from None


def json_of(data: bytes) -> Any:
    """The value of a JSON text; a key that stands twice is refused."""
    text = text_of(data)
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise UnreadableError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise UnreadableError(f"{error.msg}, line {error.lineno}, column {error.colno}") from None
    except ValueError as error:  # a number of thousands of digits, or a key that stands twice
        raise UnreadableError(str(error)) from None
    check_depth(text, value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> Object:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise UnreadableError(f"the key {shown(next(k for k in keys if keys.count(k) > 1))} stands twice")
    return found


def check_depth(text: str, value: Any) -> None:
    """Raises UnreadableError where the value of a JSON text is nested deeper than what walks over it may go."""
    if text.count("[") + text.count("{") <= MOST_DEPTH:
        return
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise UnreadableError("nested too deeply")


def _inside(value: Any) -> Iterator[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (v for v in inner if isinstance(v, dict | list))


def yaml_of(data: bytes, *, is_plain: bool = True) -> Any:
    """The value of a YAML text; if it has to be plain, it is what `plain_value` accepts. Dates stay texts."""
    try:
        value = yaml.load(text_of(data), _Loader)
        return plain_value(value) if is_plain else value
    except RecursionError:
        raise UnreadableError("nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UnreadableError(f"{error.problem or error.context}{where}") from None
    except yaml.reader.ReaderError as error:
        raise UnreadableError(f"{error.reason} {error.character!r} at position {error.position}") from None
    except UnreadableError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, LookupError, AttributeError) as error:
        # What PyYAML raises for a number or a date that only looks like one.
        raise UnreadableError(str(error) or type(error).__name__) from None


class _Loader(yaml.SafeLoader):
    """PyYAML's own, without aliases that grow or never end, and without keys that stand twice."""

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        level, seen = [node] if node else [], 0
        for _ in range(MOST_DEPTH):
            level = [inner for outer in level for inner in _nodes(outer)]
            seen += len(level)
            if seen > MOST_VALUES:
                raise UnreadableError(
                    f"expected at most {MOST_VALUES} values, got more (aliases count each time)"
                )
        if level:
            raise UnreadableError("nested too deeply")
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:timestamp"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _nodes(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return node.value
    if not isinstance(node, yaml.MappingNode):
        return []
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
            line = key.start_mark.line + 1
            raise UnreadableError(f"the key {shown(key.value)} stands twice, line {line}")
        seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
    return [inner for pair in node.value for inner in pair]


def plain_value(value: Any, where: str = "", depth: int = 0) -> Any:
    """A copy of what a config may hold; anything else is named with its place."""
    if depth > MOST_DEPTH:
        raise UnreadableError("nested too deeply")
    match value:
        case None | bool():
            return value
        case int() if abs(value) < 1 << 63:
            return value
        case float() if math.isfinite(value):
            return value
        case str() if _is_text(value):
            return value
        case list() | tuple():
            return [plain_value(v, f"{where}[{n}]", depth + 1) for n, v in enumerate(value)]
        case Mapping() if all(isinstance(key, str) and _is_text(key) for key in value):
            dot = where and f"{where}."
            return {k: plain_value(v, f"{dot}{k}", depth + 1) for k, v in value.items()}
    what = f"{where}: " if where else ""
    raise UnreadableError(f"{what}expected a text, a finite number or a boolean, got {shown(value)}")


def _is_text(value: str) -> bool:
    """Whether it is characters that have a form in UTF-8, and none is a NUL, which no path may hold."""
    try:
        return "\0" not in value and bool(value.encode("utf-8") or True)
    except UnicodeEncodeError:
        return False


def shown(value: object, most: int = 60) -> str:
    """A value for a message, cut."""
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}…"


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


EXPECTED = {
    "missing": "found nothing there",
    "greater_than_equal": "expected at least {ge}",
    "less_than_equal": "expected at most {le}",
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "string_type": "expected a text",
    "bool_type": "expected true or false",
    "list_type": "expected a list",
    "dict_type": "expected names with values",
    "model_type": "expected an object",
    "mapping_type": "expected names with values",
    "extra_forbidden": "expected no such key",
    "none_required": "expected null",
    "union_tag_invalid": "expected {discriminator} {expected_tags}",
    "union_tag_not_found": "expected an object with {discriminator}",
}


def check_shape(kind: Any, value: Any, where: str = "") -> None:
    """Compare a value with its declared shape.

    Raises:
        UnreadableError: the first place where they differ, what was expected there and what came.
    """
    try:
        _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(filter(None, [where, *map(str, first["loc"])]))
        context = first.get("ctx") or {}
        said = EXPECTED.get(first["type"], first["msg"].replace("Input should be", "expected"))
        got = "" if first["type"] == "missing" else f", got {shown(first['input'])}"
        raise UnreadableError(
            f"{place + ': ' if place else ''}{said.format(**context) if '{' in said else said}{got}"
        ) from None
