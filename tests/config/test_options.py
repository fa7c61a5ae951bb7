"""The commands and their options: help for all, and quickly."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from semalign.cli import main
from semalign.config.options import parser
from semalign.config.parsing import UsageError
from semalign.errors import CacheError, ConfigError, DataError, ModelError, SemAlignError


def test_help_and_mistakes_do_not_wait_for_torch() -> None:
    code = (
        "import sys; from semalign.cli import main\n"
        "for words in (['--help'], ['transfer', '--help'], ['transfer', 'none.yaml']):\n"
        "    try: main(words)\n"
        "    except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_help_fits_one_screen_and_names_every_command_and_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert len(shown.splitlines()) <= 24 and max(map(len, shown.splitlines())) <= 100
    for command in parser().commands:
        assert f"\n  {command} " in shown
    codes = {c.exit_code for c in (SemAlignError, UsageError, ConfigError, DataError, ModelError, CacheError)}
    assert all(f" {code} " in shown.split("Exit codes:")[1] for code in codes | {0, 130, 143})


def test_every_command_has_json_quiet_and_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    for command in [*([c] for c in parser().commands if c != "data"), ["data", "check"]]:
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        shown = capsys.readouterr().out
        assert all(f"--{option} " in shown for option in ("json", "quiet", "verbose")), command


def test_every_field_has_a_line_of_help() -> None:
    action: Any = parser()._subcommands_action
    for option in action._name_parser_map["transfer"]._actions:
        assert option.help, option.dest
