"""From a prompt back to the problem it states, in whatever words: which split a new prompt belongs to.

The splits are disjoint in their problems, not only in their prompts. Who makes new prompts from given ones has to ask here, or
a test problem comes back under another name.
"""

import re
from collections.abc import Iterator
from functools import cache

from semalign.embedded import arithmetic, function_kinds, world
from semalign.embedded.items import split_rows
from semalign.embedded.splits import Split, split_of

_FIELD = re.compile(r"\\\{(\w+)\\\}")
_FUNCTION = re.compile(
    r'def \w+\(\w+\):\n    """(?P<complete>.*)"""|Write a function \w+\(\w+\) that (?P<write>.*)\.\n.*'
)


def _pattern(template: str) -> re.Pattern[str]:
    """A template as a pattern with a group for each field; a field's second place must hold the same word."""
    seen: set[str] = set()

    def group(field: re.Match[str]) -> str:
        name = field[1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return rf"(?P<{name}>\w+)"

    return re.compile(_FIELD.sub(group, re.escape(template)))


@cache
def _patterns() -> dict[str, list[tuple[str, re.Pattern[str], str]]]:
    """Family -> (kind, pattern, its parameters in the key's order)."""
    functions = {"complete": function_kinds.COMPLETE_KINDS, "write": function_kinds.WRITE_KINDS}
    return {
        "arithmetic": [
            (kind.name, _pattern(q), "abc"[: len(kind.ranges)])
            for kind in arithmetic.KINDS
            for q in kind.questions
        ],
        **{
            family: [
                (kind.name, _pattern(d), "km"[: len(kind.params)])
                for kind in kinds
                for d in kind.descriptions
            ]
            for family, kinds in functions.items()
        },
        "knowledge": [("", _pattern(w), "") for w in world.wordings()],
    }


def _found(family: str, text: str) -> Iterator[str]:
    for kind, pattern, names in _patterns()[family]:
        if match := pattern.fullmatch(text):
            yield "|".join([kind, *(match[name] for name in names)])


def keys_of(prompt: str) -> set[str]:
    """Keys of the problem that a prompt states; empty where it states none, more than one where kinds look alike."""
    if function := _FUNCTION.fullmatch(prompt):
        family, text = next((name, text) for name, text in function.groupdict().items() if text is not None)
        return set(_found(family, text))
    question, *lines = prompt.split("\n")
    if lines and all(line.startswith("- ") for line in lines):
        options = [line.removeprefix("- ").rpartition(" ")[0] for line in lines]
        matches = [pattern.fullmatch(question) for _, pattern, _ in _patterns()["knowledge"]]
        return {"|".join([m["land"], m["relation"], *options]) for m in matches if m}
    return set(_found("arithmetic", prompt))


def splits_of(prompt: str) -> set[Split]:
    """The splits whose problems a prompt states."""
    return {split_of(key) for key in keys_of(prompt)}


def is_apart(prompt: str, splits: frozenset[Split]) -> bool:
    """Whether a new prompt has to be kept from training, because `splits` are what students are measured on.

    It has to where it states a problem of theirs, in whatever words and with its options in any order, and where what it states
    cannot be told: a word off a known form may be the same problem.
    """
    keys = keys_of(prompt)
    return (
        not keys
        or not splits.isdisjoint(map(split_of, keys))
        or not _measured(splits).isdisjoint(map(_unordered, keys))
    )


@cache
def _measured(splits: frozenset[Split]) -> frozenset[str]:
    rows = (row for split in splits for row in split_rows(split, 0))
    return frozenset(_unordered(key) for row in rows for key in keys_of(row["messages"][0]["content"]))


def _unordered(key: str) -> str:
    """A key with the options of a question, which stand behind land and relation, in one order."""
    first, second, *options = key.split("|")
    return "|".join([first, second, *sorted(options)]) if len(options) > 2 else key
