"""A parser whose help fits a screen and whose errors are one sentence that names the nearest valid key."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import jsonargparse

from semalign.config_file import hint, unknown_key

EPILOG = """\
Config commands take a YAML file and dotted overrides (transfer run.yaml --train.lora_r 16).
All take --help, --json, --quiet, --verbose. A stopped command resumes when given again.
Exit codes: 0 done, 1 other error, 2 usage, 3 config, 4 data, 5 model, 6 cache, 130 interrupted."""


class UsageError(Exception):
    """The command line does not parse."""

    exit_code = 2


class Parser(jsonargparse.ArgumentParser):
    """Raises UsageError instead of printing every option of the command and ending the process."""

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


def keys_of(parser: jsonargparse.ArgumentParser) -> list[str]:
    """Dotted names of everything that a command takes as an option."""
    options = (o for action in parser._actions for o in action.option_strings)
    return [o.removeprefix("--") for o in options if o.startswith("--")]


def commands_of(parser: jsonargparse.ArgumentParser) -> Iterable[str]:
    """Names of a parser's subcommands."""
    action: Any = getattr(parser, "_subcommands_action", None)
    return list(action._name_parser_map) if action else []


def _advice(message: str, parser: jsonargparse.ArgumentParser) -> str:
    """What to write instead, where the message is about a name that there is not."""
    if command := re.search(r"invalid choice: '([^']+)' \(choose from", message):
        near = difflib.get_close_matches(command[1], commands_of(parser), n=1)
        return f"; did you mean {near[0]}?" if near else "; semalign --help lists the commands."
    if key := unknown_key(message):
        return "; " + hint(key, keys_of(parser))
    return "; see --help."
