"""A parser whose help fits a screen and whose errors are one sentence that names the nearest valid key."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import jsonargparse

from semalign.config import TransferConfig, resolve_path
from semalign.errors import ConfigError, sentence
from semalign.reading import MOST_YAML_BYTES, UnreadableError, bytes_of, plain_value, shown, yaml_of

EPILOG = """\
Config commands take a YAML file and dotted overrides (transfer run.yaml --train.lora_r 16).
All take --help, --json, --quiet, --verbose. A stopped command continues when you run it again.
Exit codes: 0 done, 1 other, 2 usage, 3 config, 4 data, 5 model, 6 cache, 130 Ctrl-C, 143 SIGTERM."""

PATHS = (
    ("teacher", "model_name_or_path"),
    ("teacher", "signals"),
    ("student", "model_name_or_path"),
    ("data", "dataset_name"),
    ("data", "heldout_name"),
    ("evaluation", "tasks"),
    ("evaluation", "harness_path"),
)
"""Fields that may be paths of what is read."""


class UsageError(Exception):
    """The command line does not parse."""

    exit_code = 2

    def __init__(self, message: object) -> None:
        super().__init__(sentence(message))


class Parser(jsonargparse.ArgumentParser):
    """Raises UsageError instead of printing every option of the command and ending the process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.commands: dict[str, Parser] = {}
        """Its subcommands by name."""

    def add_commands(self, dest: str, commands: Mapping[str, Parser], helps: Mapping[str, str]) -> None:
        """Give it subcommands; one that has some of its own gets them after it has its place here."""
        group = self.add_subcommands(dest=dest)
        for name, command in commands.items():
            group.add_subcommand(name, command, help=helps[name])
        self.commands = dict(commands)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One sentence: what is wrong, and the nearest key or command that there is."""
        text = " ".join(message.split()).rstrip(".")
        parser = getattr(ex, "subcommand_parser", None) or self
        raise UsageError(f"{text}{_advice(text, parser)}") from ex


class Root(Parser):
    """The parser of all commands, with one line of help for each."""

    helps: Mapping[str, str] = {}

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """What fits 24 lines of 100 columns."""
        width = max(map(len, self.helps))
        lines = [f"  {name:{width}}  {text}" for name, text in self.helps.items()]
        return "\n".join([f"usage: {self.usage}", "", str(self.description), "", *lines, "", EPILOG, ""])


def _advice(message: str, parser: Parser) -> str:
    """What to write instead, where the message is about a name that there is not."""
    if command := unknown_command(message):
        near = difflib.get_close_matches(command, parser.commands, n=1)
        return f"; did you mean {near[0]}?" if near else "; semalign --help lists the commands."
    if key := unknown_key(message):
        return "; " + hint(key, keys_of(parser))
    return "; see --help."


def load_config(path: str | Path, **changes: Any) -> TransferConfig:
    """A TransferConfig from a YAML file, with top-level fields replaced by keyword.

    Paths of models, rows and signals that exist beside the file are taken from there, so that an example works from anywhere.

    Raises:
        ConfigError: the file does not parse, or a value is not what its field expects.
    """
    path = Path(path)
    return build_config({**read_yaml(path), **changes}, folder_of(path))


def folder_of(path: Path) -> Path:
    """The folder that paths in a config file count from: its own.

    The copy that a run keeps lies beside what the run has made, and its paths count from where the run was started.
    """
    is_copy = path.name == "config.yaml" and (path.parent / "environment.json").exists()
    return Path() if is_copy else path.parent


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: there is no such file, or it holds something else; parser's place and reason are told.
    """
    try:
        values = yaml_of(bytes_of(path, MOST_YAML_BYTES))
    except (OSError, UnreadableError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read as YAML ({reason}); give a config file.") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected fields and values, got {type(values).__name__}; give a config file."
        )
    return values


def check_fields(values: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """A copy of a config's values as plain ones, every name a field's, every group with its fields.

    What follows in jsonargparse would read a text in a group's place as a file or as a class to import, and a `class_path`
    anywhere likewise: no file of a user's may make this program import code.

    Raises:
        ConfigError: a value that is not plain, a name of no field, or a text in a group's place.
    """
    try:
        plain = plain_value(values)
    except UnreadableError as error:
        raise ConfigError(f"{where}: {error}.") from error
    _check_group(plain, TransferConfig, "", where)
    return plain


def _check_group(values: Mapping[str, Any], group: type, prefix: str, where: str) -> None:
    fields = get_type_hints(group)
    for name, value in values.items():
        if name not in fields and f"{prefix}{name}" not in keys():
            owner = prefix.removesuffix(".") or "a run"
            raise ConfigError(
                f"{where}: {owner} has no field {shown(name)}; {hint(f'{prefix}{name}', keys())}"
            )
        kind = fields.get(name)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            if not isinstance(value, dict):
                first = f"{prefix}{name}.{next(iter(get_type_hints(kind)))}"
                raise ConfigError(
                    f"{where}: {prefix}{name}: expected fields such as {first}, got {shown(value)}."
                )
            _check_group(value, kind, f"{prefix}{name}.", where)
        elif has_class_path(value):
            raise ConfigError(f"{where}: {prefix}{name}: expected no class_path; leave it out.")
        elif value is None and kind is not None and not _may_be_null(kind):
            # jsonargparse takes null for any field.
            raise ConfigError(
                f"{where}: {prefix}{name}: expected a value, got null; leave the field out to have its default."
            )


def _may_be_null(kind: Any) -> bool:
    return type(None) in typing.get_args(kind) or any(map(_may_be_null, typing.get_args(kind)))


def check_arguments(arguments: Sequence[str]) -> None:
    """The arguments of a config command, before jsonargparse reads them: see `check_fields`.

    Raises:
        ConfigError: of a config file, as `check_fields`.
        UsageError: a value for a whole group, or one with a `class_path`.
    """
    groups = {
        name: kind for name, kind in get_type_hints(TransferConfig).items() if dataclasses.is_dataclass(kind)
    }
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, equals, value = argument.partition("=")
        name, value = option.removeprefix("--"), value if equals else following
        if not option.startswith("--"):
            continue
        if name == "config":
            check_fields(read_yaml(Path(value)), value)
        elif name in groups:
            first = next(iter(get_type_hints(groups[name])))
            raise UsageError(
                f"{option}: expected one of its fields, such as {option}.{first}, got {shown(value)}; see --help."
            )
        elif _says_class_path(value):
            raise UsageError(
                f"{option}: expected a value without class_path, got {shown(value)}; see --help."
            )


def _says_class_path(value: str) -> bool:
    try:
        return has_class_path(yaml_of(value.encode("utf-8", errors="replace")))
    except UnreadableError:
        return False


def has_class_path(value: Any) -> bool:
    """Whether a key in a plain value would make jsonargparse import a class."""
    if isinstance(value, dict):
        return "class_path" in value or any(map(has_class_path, value.values()))
    return isinstance(value, list) and any(map(has_class_path, value))


@cache
def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TransferConfig)
    return parser


def parse_config(values: Mapping[str, Any]) -> TransferConfig:
    """A TransferConfig from nested plain values, names of models and rows as they stand.

    Raises:
        ConfigError: see `check_fields`; or a value that is not what its field expects.
    """
    built, plain = _parser(), check_fields(values)
    try:
        return TransferConfig(**vars(built.instantiate(built.parse_object(plain))))
    except jsonargparse.ArgumentError as error:
        raise ConfigError(f"config: {error}") from error


def build_config(values: Mapping[str, Any], base: Path) -> TransferConfig:
    """A TransferConfig from nested plain values; paths that exist in the folder `base` are taken from there."""
    return parse_config(beside(values, base))


def beside(values: Mapping[str, Any], base: Path, said: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Nested plain values of a config in which paths that exist in the folder `base` are taken from there.

    Args:
        said: what a config file in that folder says; paths that it does not say stay.
    """
    found = copy.deepcopy(dict(values))
    for group, name in PATHS:
        value = _within(found, group, name)
        if said is not None and value != _within(said, group, name):
            continue
        if isinstance(value, str):
            found[group][name] = resolve_path(value, base)
        elif isinstance(value, dict):
            found[group][name] = {resolve_path(str(k), base): weight for k, weight in value.items()}
    return found


def _within(values: Mapping[str, Any], group: str, name: str) -> Any:
    inner = values.get(group)
    return inner.get(name) if isinstance(inner, Mapping) else None


@cache
def keys(owner: type = TransferConfig, prefix: str = "") -> list[str]:
    """Dotted names of all fields."""
    found = []
    for name, kind in get_type_hints(owner).items():
        found.append(prefix + name)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            found += keys(kind, f"{prefix}{name}.")
    return found


def hint(key: str, known: Sequence[str]) -> str:
    """The known key that an unknown one was most likely meant to be, as the end of a sentence.

    A field given without its group, or in the wrong one, is found by its last part.

        >>> hint("max_rows", ["data.max_rows", "seed"])
        'did you mean data.max_rows?'
    """
    last = key.rsplit(".", 1)[-1]
    parts = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
    same = [k for k in known if k.rsplit(".", 1)[-1] == last]
    near = difflib.get_close_matches(key, same, n=2, cutoff=0) or difflib.get_close_matches(key, known, n=1)
    found = near or [parts[k] for k in difflib.get_close_matches(last, parts, n=1)]
    return f"did you mean {' or '.join(found)}?" if found else "no field is named like it; see --help."


# What follows is not a part of jsonargparse's public interface: the list of a parser's actions, which argparse keeps too, and the
# words of its sentences. tests/config/test_parsing.py says so where a new version has changed them.


def keys_of(parser: jsonargparse.ArgumentParser) -> list[str]:
    """Dotted names of everything that a command takes as an option."""
    options = (o for action in parser._actions for o in action.option_strings)
    return [o.removeprefix("--") for o in options if o.startswith("--")]


def unknown_command(message: str) -> str | None:
    """The command that jsonargparse's message refuses, if that is what it is about."""
    found = re.search(r"invalid choice: '([^']+)' \(choose from", message)
    return found[1] if found else None


def unknown_key(message: str) -> str | None:
    """The dotted key that jsonargparse's message refuses, if that is what it is about."""
    group = re.search(r"Group '([^']+)' does not accept option '([^']+)'", message)
    if group:
        return f"{group[1]}.{group[2]}"
    patterns = (
        r"does not accept option '([^']+)'",
        r"Option '([^']+)' is not accepted",
        r"unrecognized arguments: --([\w.]+)",
    )
    return next((found[1] for p in patterns if (found := re.search(p, message))), None)
