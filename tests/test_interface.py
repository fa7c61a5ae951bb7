"""The public interface is written down in interface.txt, so that a change of it is seen in a diff.

`python tests/test_interface.py` writes the file again.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import semalign
from semalign.config import TransferConfig
from semalign.config.options import HELP, parser
from semalign.config.parsing import keys_of

WRITTEN = Path(__file__).with_name("interface.txt")


def _signature(value: Any) -> str:
    # A default that is a function shows where it lies in memory.
    return re.sub(r" at 0x\w+", "", str(inspect.signature(value)))


def names() -> Iterator[str]:
    """What `import semalign` offers: signatures of functions, classes and their public methods."""
    for name in semalign.__all__:
        value = getattr(semalign, name)
        if dataclasses.is_dataclass(value):
            own = [f for f in dataclasses.fields(value) if f.name in inspect.get_annotations(value)]
            yield f"semalign.{name}({', '.join(f'{f.name}: {f.type}' for f in own)})"
            continue
        is_error = inspect.isclass(value) and issubclass(value, Exception)
        yield f"semalign.{name}{'(message)' if is_error else _signature(value)}"
        if inspect.isclass(value):
            for key, member in vars(value).items():
                if not key.startswith("_") and callable(member):
                    yield f"semalign.{name}.{key}{_signature(member)}"


def fields(owner: type = TransferConfig, prefix: str = "") -> Iterator[str]:
    """Every field of the config with its type and default."""
    hints = get_type_hints(owner)
    for f in dataclasses.fields(owner):
        kind: Any = hints[f.name]
        if dataclasses.is_dataclass(kind):
            yield from fields(kind, f"{prefix}{f.name}.")  # type: ignore[arg-type]
            continue
        default = "required" if f.default is f.default_factory is dataclasses.MISSING else repr(f.default)
        if f.default_factory is not dataclasses.MISSING:
            default = repr(f.default_factory())
        shown = kind.__name__ if inspect.isclass(kind) and not hasattr(kind, "__args__") else str(kind)
        yield f"{prefix}{f.name}: {shown.replace('typing.', '')} = {default}"


def commands() -> Iterator[str]:
    """Every command with its options, those of the config apart."""
    root = parser()
    assert set(root.commands) == set(HELP)
    groups = {f.name for f in dataclasses.fields(TransferConfig)}
    for name, command in [*root.commands.items(), *root.commands["data"].commands.items()]:
        options = sorted(set(keys_of(command)))
        if groups <= set(options):
            options = [o for o in options if o.split(".")[0] not in groups]
        yield f"{name} | {command.usage} | {' '.join(options)}"


def interface() -> str:
    parts = {"Python": names(), "Config": fields(), "Command line": commands()}
    return "\n".join(
        f"# {title}\n" + "".join(f"{line}\n" for line in lines) for title, lines in parts.items()
    )


def test_the_interface_is_the_written_one() -> None:
    assert interface() == WRITTEN.read_text(encoding="utf-8"), (
        "the public interface has changed; if that is meant, run `python tests/test_interface.py` and tell users in CHANGELOG.md"
    )


if __name__ == "__main__":
    WRITTEN.write_text(interface(), encoding="utf-8")
