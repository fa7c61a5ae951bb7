"""Command line: parse, call, print. The options stand in `semalign.config.options`."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from semalign.config import TransferConfig
from semalign.config.options import CONFIG_COMMANDS, DEMO, RESUMABLE, parser
from semalign.config.parsing import (
    UsageError,
    beside,
    check_arguments,
    folder_of,
    load_config,
    parse_config,
    read_yaml,
)
from semalign.errors import CacheError, ConfigError, RankError, SemAlignError, require
from semalign.run import ranks
from semalign.run.faults import faults
from semalign.run.signals import handled


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: see `semalign.config.parsing.EPILOG`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    with handled():
        try:
            with faults(is_told="--verbose" in arguments):
                code = _main(arguments)
            if argv is None:
                ranks.leave()
            return code
        except (SemAlignError, UsageError) as error:
            return _fail(error, error.exit_code, as_json)
        except KeyboardInterrupt as error:
            with handled(signal.SIG_IGN):
                code = getattr(error, "exit_code", 130)
                return _fail(RuntimeError(_resume(error, arguments)), code, as_json)


def _main(arguments: list[str]) -> int:
    command = arguments[0] if arguments else ""
    # CONFIG may stand without its flag, right after the command.
    if command in CONFIG_COMMANDS and len(arguments) > 1 and not arguments[1].startswith("-"):
        arguments = [command, "--config", *arguments[1:]]
    if command in CONFIG_COMMANDS:
        check_arguments(arguments[1:])
    parsed = parser(command).parse_args(arguments)
    from semalign.run.progress import quieten

    options = parsed[parsed.command]
    if "action" in options:
        options = options[options.action]
    if options.quiet and options.verbose:
        raise UsageError("expected --quiet or --verbose, got both; leave one out.")
    console = Console(stderr=True, quiet=options.quiet or not ranks.is_main())
    quieten(options.quiet, options.verbose)
    result = _run(parsed.command, options, console)
    if options.json and ranks.is_main():
        print(json.dumps(result, ensure_ascii=False))
    return int(result.get("exit_code", 0))


def _resume(error: KeyboardInterrupt, arguments: Sequence[str]) -> str:
    """What was interrupted, and the command that goes on from there."""
    if not arguments or arguments[0] not in RESUMABLE:
        return "interrupted"
    what = str(error) or "interrupted; run the same command again to go on"
    return f"{what}: {shlex.join(['semalign', *arguments])}"


def _fail(error: BaseException, code: int, as_json: bool) -> int:
    if isinstance(error, RankError) and not ranks.is_main():
        return code
    if as_json:
        print(json.dumps({"error": str(error), "exit_code": code}, ensure_ascii=False))
    Console(stderr=True, soft_wrap=True).print(
        f"[bold red]semalign:[/] {escape(str(error))}", highlight=False
    )
    return code


def _run(command: str, options: Any, console: Console) -> dict[str, Any]:
    if command in ("compare", "check") and ranks.world() > 1:
        how = "it starts its own --workers" if command == "compare" else "run it without the launcher"
        raise ConfigError(f"{command}: expected one process, got a launch of several; {how}.")
    if not ranks.is_main() and (command == "report" or command not in RESUMABLE):
        return {}
    if command in COMMANDS:
        return COMMANDS[command](options, console)
    return _transfer(command, options, console)


def _transfer(command: str, options: Any, console: Console) -> dict[str, Any]:
    """All steps, or the one that the command is named after."""
    from semalign.report.tables import final_table
    from semalign.report.words import MEND, setback
    from semalign.run.files import read_json
    from semalign.run.metrics import Metrics
    from semalign.steps.pipeline import STEPS, transfer

    if command == "demo":
        config = load_config(DEMO, output_dir=options.output_dir, seed=options.seed)
    else:
        config = _config(options)
    if command == "evaluate" and options.regrade:
        return _regrade(config, console)
    # The page shows what was measured.
    steps = STEPS if command in ("transfer", "demo") else STEPS[-2:] if command == "evaluate" else (command,)
    with faults(Path(config.output_dir), is_told=options.verbose):
        run = transfer(config, steps, lambda step: console.rule(f"[bold]{step}", align="left"))
    if "evaluate" not in steps or not ranks.is_main():
        return {"output_dir": str(run.root), "step": command}
    metrics = read_json(run.metrics, "evaluate", Metrics)
    worse = setback(metrics)
    if not options.json:
        final_table(metrics, Console())
        harm = "   (worse than before)" if worse else ""
        Console().print(
            f"report: {run.report}   student: {run.root / 'student'}{harm}", markup=False, soft_wrap=True
        )
    shown = ("accuracy_gap_closed", "kl_gap_closed", "wall_seconds", "peak_rss_bytes", "baselines")
    return {k: metrics[k] for k in shown} | ({"warning": f"{worse.sentence} {MEND}"} if worse else {})


def _check(options: Any, console: Console) -> dict[str, Any]:
    from semalign.estimate.check import check

    return check(_config(options), console)


def _regrade(config: TransferConfig, console: Console) -> dict[str, Any]:
    from semalign.report import build_report
    from semalign.report.card import write_card
    from semalign.run.folder import RunFolder
    from semalign.steps.evaluate import regrade

    run = RunFolder(Path(config.output_dir))
    with run.lock():
        changes = regrade(config, run)
        write_card(run)
        build_report(run.root)
    for line in changes or ("no verdict changed",):
        console.print(line, markup=False, soft_wrap=True)
    return {"output_dir": str(run.root), "step": "evaluate", "changes": changes}


def _compare(options: Any, console: Console) -> dict[str, Any]:
    from semalign.comparison import compare

    given = {k: options[k] for k in ("seeds", "workers", "output_dir") if options[k] is not None}
    labels = [m.strip() for m in options.methods.split(",") if m.strip()] if options.methods else None
    figures = compare(Path(options.file), labels, given, console, is_regraded=options.regrade)
    if not options.json:
        from semalign.comparison.table import table

        Console().print(table(figures))
        Console().print(f"page: {figures['output_dir']}/page.html", soft_wrap=True)
    return figures


def _report(options: Any, console: Console) -> dict[str, Any]:
    from semalign.report import build_comparison, build_report

    folders = [Path(run) for run in options.runs]
    if len(folders) == 1:
        page = build_report(folders[0], options.output and Path(options.output))
    else:
        page = build_comparison(folders, Path(options.output or "runs.html"))
    console.print(f"report: {page}", soft_wrap=True)
    if options.open:
        webbrowser.open(page.resolve().as_uri())
    return {"report": str(page)}


def _push(options: Any, console: Console) -> dict[str, Any]:
    from semalign.report.hub import push, show
    from semalign.run.files import read_sealed
    from semalign.run.folder import RunFolder

    run = RunFolder(Path(options.run))
    if run.config.is_file():
        read_sealed(run.config, "transfer")
    config = load_config(run.config)
    name = options.hub_model_id or config.hub_model_id
    if name is None:
        raise ConfigError("hub_model_id: expected ORG/NAME, got none; give --hub_model_id.")
    private = options.private or config.hub_private_repo
    found = push(run, name, private=private, is_dry=not options.yes)
    if not options.json:
        show(found, Console())
    return found


def _export(options: Any, console: Console) -> dict[str, Any]:
    from semalign.data.inputs import load_inputs
    from semalign.run.folder import RunFolder
    from semalign.signals.parquet import export
    from semalign.signals.prepared import Prepared

    run = RunFolder(Path(options.run))
    config = load_config(run.config, output_dir=options.run)
    found = export(Prepared.read(config, run, load_inputs(config, run)), Path(options.file))
    if not options.json:
        Console().print(
            f"{options.file}: {found.rows} rows, {found.tokens} supervised tokens, the teacher's {found.top_k} likeliest at each",
            soft_wrap=True,
        )
    return vars(found)


def _verify(options: Any, console: Console) -> dict[str, Any]:
    from semalign.run.verify import verify

    found = verify(Path(options.folder))
    for line in found.lines() if not options.json else ():
        Console().print(line, markup=False, highlight=False, soft_wrap=True)
    return vars(found) | {"exit_code": 0 if found.is_sound else CacheError.exit_code}


def _completion(options: Any, console: Console) -> dict[str, Any]:
    require("shtab", "completion")
    script = parser().get_completion_script(f"shtab-{options.shell}")
    if not options.json:
        print(script)
    return {"shell": options.shell, "script": script}


def _check_data(options: Any, console: Console) -> dict[str, Any]:
    from semalign.data.check import check_data
    from semalign.report.tables import show

    found = check_data(options.file, options.model, options.against, options.max_length)
    if not options.json:
        show(found, Console())
    return found


def _config(options: Any) -> TransferConfig:
    fields = {k: v for k, v in options.as_dict().items() if k in TransferConfig.__dataclass_fields__}
    # Paths on the command line count from the working directory.
    for file in [Path(str(p)) for p in reversed(options.get("config") or [])]:
        fields = beside(fields, folder_of(file), read_yaml(file))
    return parse_config(fields)


COMMANDS = {
    "check": _check,
    "compare": _compare,
    "completion": _completion,
    "data": _check_data,
    "export": _export,
    "push": _push,
    "report": _report,
    "verify": _verify,
}
"""Commands that run no step."""
