"""What the fields of every group are checked with."""

from __future__ import annotations

import re
from collections.abc import Collection

from semalign.errors import ConfigError

LATER = {"later": True}
"""Metadata of a field that came when runs without it existed; see `semalign.config.decisive`."""


def expect(condition: bool, field_name: str, expected: str, got: object) -> None:
    """Raise a ConfigError of one sentence where a field's value does not hold."""
    if not condition:
        raise ConfigError(
            f"{field_name}: expected {expected}, got {got!r}; change it in the config or on the command line."
        )


def check_labels(option: str, labels: Collection[str], reserved: Collection[str]) -> None:
    """Names that a user chooses become folders and keys of results, so they may hold neither a path nor a name that is taken.

    Raises:
        ConfigError: one of them does.
    """
    for label in labels:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", str(label)) or label in reserved:
            raise ConfigError(
                f"{option}: expected names of letters, digits, . _ and - other than {', '.join(reserved)}, got {label!r}; "
                "rename it."
            )
