"""Errors a user can meet. Each message says what was expected, what came and what to do.

Every class carries the exit code that the command line returns for it.
"""

import difflib
from collections.abc import Collection
from importlib import import_module
from types import ModuleType

LONGEST = 400
"""Characters of a message."""


def sentence(text: object, most: int = LONGEST) -> str:
    """One line that every terminal can print: no control characters, and the middle of a long text left out.

    The ends of a message say where the fault is and what to do; what is long in it is a value that stands between.
    """
    words = str(text)
    if len(words) > 4 * most:  # so that a value of megabytes costs nothing
        words = f"{words[: 2 * most]} {words[-2 * most :]}"
    line = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    if len(line) <= most:
        return line
    head = (most - 3) // 2
    return f"{line[:head]} … {line[head + 3 - most :]}"


class SemAlignError(ValueError):
    """Any mistake that the user can mend; its message is one `sentence`, whoever raises it."""

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(sentence(message))


class ConfigError(SemAlignError):
    """The configuration, or an edited plan, asks for something impossible."""

    exit_code = 3


class DataError(SemAlignError):
    """Rows cannot be read, rendered or supervised."""

    exit_code = 4


class ModelError(SemAlignError):
    """A model cannot be loaded, or the two models do not go together."""

    exit_code = 5


class RankError(SemAlignError):
    """Another process of the same launch has stopped."""


class CacheError(SemAlignError):
    """Cached signals are missing, stale or damaged."""

    exit_code = 6


def require(package: str, extra: str) -> ModuleType:
    """An optional package, imported where it is needed.

    Args:
        package: name of the module.
        extra: the extra of SemAlign that installs it.

    Raises:
        SemAlignError: it is not installed; the sentence has the command.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.split(".")[0]:
            raise
        raise SemAlignError(
            f"{package} is needed here and is not installed; run: pip install 'semalign[{extra}]'"
        ) from error


def suggestion(
    name: object, known: Collection[str], *, cutoff: float = 0.6, otherwise: str = "choose from"
) -> str:
    """The end of a sentence about a name that is not known: the one most like it, or else all there are."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=cutoff)
    return f"did you mean {near[0]}?" if near else f"{otherwise} {', '.join(known)}."
