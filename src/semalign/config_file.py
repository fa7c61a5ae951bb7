"""From YAML or plain values to a checked config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from semalign.config import TransferConfig, resolve_path
from semalign.errors import ConfigError


def load_config(path: str | Path, **changes: Any) -> TransferConfig:
    """A TransferConfig from a YAML file, with top-level fields replaced by keyword.

    Paths of models and rows that exist beside the file are taken from there, so that an example works from anywhere.

    Raises:
        ConfigError: the file does not parse, or a value is not what its field expects.
    """
    path = Path(path)
    return build_config({**read_yaml(path), **changes}, path.parent)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({error}); give a config file.") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected fields and values, got {type(values).__name__}; give a config file."
        )
    return values


@cache
def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TransferConfig)
    return parser


def build_config(values: Mapping[str, Any], base: Path) -> TransferConfig:
    """A TransferConfig from nested plain values."""
    built = _parser()
    try:
        config = TransferConfig(**vars(built.instantiate(built.parse_object(dict(values)))))
    except jsonargparse.ArgumentError as error:
        raise ConfigError(f"config: {error}") from error
    teacher, student, data = config.teacher, config.student, config.data
    return replace(
        config,
        teacher=replace(teacher, model_name_or_path=resolve_path(teacher.model_name_or_path, base)),
        student=replace(student, model_name_or_path=resolve_path(student.model_name_or_path, base)),
        data=replace(
            data,
            dataset_name=resolve_path(data.dataset_name, base),
            heldout_name=data.heldout_name and resolve_path(data.heldout_name, base),
        ),
    )
