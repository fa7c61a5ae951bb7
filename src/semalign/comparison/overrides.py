"""Changes of a run's config by dotted name (`train.num_train_epochs: 6`), and which parts of two configs have to agree."""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from semalign.config import TransferConfig, decisive
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
    flat = dict(_leaves(values, known))
    for name in flat:
        if name not in known:
            raise ConfigError(
                f"{where}: expected fields of a run's config, got {name!r}; {suggestion(name, known, cutoff=CUTOFF)}"
            )
        if any(name == f or name.startswith(f"{f}.") for f in fixed):
            raise ConfigError(f"{where}: {name} is the same for all cells of a comparison; take it out here.")
    return flat


def _leaves(
    values: Mapping[str, Any], known: typing.Collection[str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Down to the fields, of which some hold mappings themselves; what is no field goes down to its ends."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and name not in known:
            yield from _leaves(value, known, f"{name}.")
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


def redrawn(config: TransferConfig, seed: int) -> TransferConfig:
    """The config of a source for a cell's seed: the same for all seeds where rows, plan and cache have nothing that is drawn."""
    data = config.data
    is_drawn = (
        data.max_rows is not None
        or data.variants > 0
        or not data.sampling.is_greedy
        or config.teacher.sees == "shots"
        or config.pairing.selection == "attribution"
    )
    if not is_drawn:
        return config
    if data.max_rows is not None:
        # Not the mixture's seed, which also says what is held out.
        data = replace(data, rows_seed=(data.rows_seed or 0) + seed)
    return replace(config, seed=config.seed + seed, data=data)


def shared(config: TransferConfig) -> dict[str, Any]:
    """What decides rows, plan and cached signals."""
    parts = ("teacher", "student", "data", "attribution", "pairing", "cache", "seed", "allow_smaller_teacher")
    values = {name: getattr(config, name) for name in parts}
    plain = {k: decisive(v) if dataclasses.is_dataclass(v) else v for k, v in values.items()}
    return plain | {"cache_prefix": config.train.cache_prefix, "live_teacher": config.train.live_teacher}


def recipe_fields(config: TransferConfig) -> dict[str, Any]:
    """The fields of the recipe that are given."""
    return {k: v for k, v in vars(config.recipe).items() if v is not None}
