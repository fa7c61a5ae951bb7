"""What files outside the package add to it: methods with their losses, and architectures.

Every module of the namespace package `semalign_plugins` is read, in whichever folders of Python's path it lies. Such a
module needs no registration: it defines METHODS and LOSSES (see `semalign.methods`) or LAYOUTS (see `semalign.models.layouts`).
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from semalign.errors import ConfigError
from semalign.run.digests import digest

PACKAGE = "semalign_plugins"


@cache
def plugins() -> tuple[ModuleType, ...]:
    """The modules of `semalign_plugins`, by name.

    Raises:
        ConfigError: one of them cannot be imported.
    """
    try:
        package = importlib.import_module(PACKAGE)
    except ModuleNotFoundError:
        return ()
    names = sorted(file.name for file in pkgutil.iter_modules(package.__path__))
    return tuple(_imported(f"{PACKAGE}.{name}") for name in names)


def gathered(table: str) -> dict[str, Any]:
    """The tables of one name in all plugins, as one."""
    return {key: value for file in plugins() for key, value in getattr(file, table, {}).items()}


def code_of(*names: str | None) -> dict[str, str]:
    """Digests, by name, of the modules that define a method, a loss or a start of one of these names: results depend on their code."""
    found = {}
    for module in plugins():
        tables = (getattr(module, "METHODS", ()), getattr(module, "LOSSES", ()))
        defined = {entry.name for table in tables for entry in table} | {*getattr(module, "STARTS", {})}
        if defined & set(names):
            assert module.__file__ is not None
            found[module.__name__] = digest(Path(module.__file__))
    return found


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ConfigError(
            f"{name}: expected a module that can be imported, got {type(error).__name__}: {error}; mend the file or take it "
            "off Python's path."
        ) from error
