"""Changes of a run's config by dotted name: `train.num_train_epochs: 6`."""

from __future__ import annotations

import copy
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from semalign.config.parsing import keys
from semalign.errors import ConfigError, suggestion

CUTOFF = 0.5  # of likeness: dotted names share their groups


def flatten(values: Any, where: str, fixed: typing.Collection[str] = ()) -> dict[str, Any]:
    """Dotted name -> value of nested or dotted values.

    Raises:
        ConfigError: a name that no run's config has (the sentence gives the nearest), or one that may not change here.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected fields of a run's config, got {values!r}; write {{}} for none.")
    known = fields()
    flat = dict(_leaves(values))
    for name in flat:
        if name not in known:
            raise ConfigError(
                f"{where}: expected fields of a run's config, got {name!r}; {suggestion(name, known, cutoff=CUTOFF)}"
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


def fields() -> list[str]:
    """Dotted names of a run's fields, without the groups that hold them."""
    names = keys()
    groups = {name.rpartition(".")[0] for name in names}
    return [name for name in names if name not in groups]


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
