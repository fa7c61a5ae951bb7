"""Changes of a run's config by dotted name: `train.num_train_epochs: 6`."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from semalign.config import TransferConfig
from semalign.errors import ConfigError


def flatten(values: Any, where: str, fixed: typing.Collection[str] = ()) -> dict[str, Any]:
    """Dotted name -> value of nested or dotted values.

    Raises:
        ConfigError: a name that no run's config has (the sentence gives the nearest), or one that may not change here.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected fields of a run's config, got {values!r}; write {{}} for none.")
    known = list(_paths(TransferConfig))
    flat = dict(_leaves(values))
    for name in flat:
        if name not in known:
            raise ConfigError(
                f"{where}: expected fields of a run's config, got {name!r}; {nearest(name, known)}"
            )
        if any(name == f or name.startswith(f"{f}.") for f in fixed):
            raise ConfigError(f"{where}: {name} is the same for all cells of a comparison; take it out here.")
    return flat


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name != "evaluation.baselines":
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _paths(kind: type, prefix: str = "") -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    for f in dataclasses.fields(kind):
        inner = hints[f.name]
        if dataclasses.is_dataclass(inner):
            yield from _paths(typing.cast(type, inner), f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}"


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    values: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        inner = values
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = copy.deepcopy(value)
    return values


def nearest(name: object, known: typing.Collection[str]) -> str:
    """The end of a sentence about a name that is not known."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}."
