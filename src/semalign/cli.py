"""Command line: parse, call, print. Options come from the config's dataclasses and their docstrings.

jsonargparse does the parsing: it reads frozen dataclasses with nested groups, the docstring under each field becomes its
help, and a YAML file and dotted overrides go through the same checks.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
from rich.console import Console
from rich.markup import escape

import semalign
from semalign.config import TransferConfig
from semalign.errors import CacheError, ConfigError, RankError, SemAlignError, require
from semalign.parsing import Parser, Root, UsageError, build_config, check_arguments, load_config
from semalign.report.tables import final_table
from semalign.report.words import MEND, setback
from semalign.run import ranks
from semalign.run.faults import faults
from semalign.run.signals import handled

STEP_HELP = {
    "generate": "let the teacher answer the prompts, if the config asks for it",
    "attribute": "score the teacher's layers on a few rows",
    "pair": "choose layers and pair them; writes a plan that you may edit",
    "cache": "run both models once and store what training needs",
    "train": "train the student, and one student for each baseline",
    "evaluate": "measure the untouched and the trained student, the baselines and the teacher",
    "report": "write the page from the files of a run folder",
}
CONFIG_COMMANDS = ("transfer", "check", *(step for step in STEP_HELP if step != "report"))
RESUMABLE = ("demo", "compare", *(command for command in CONFIG_COMMANDS if command != "check"))
HELP = {
    "transfer": "run all steps; the same command continues a stopped run",
    "check": "check models and rows, and estimate memory, disk and time, before anything expensive",
    **STEP_HELP,
    "compare": "train and compare methods on several tasks with several seeds, with intervals",
    "demo": "transfer between the two models that ship with the package, with baselines",
    "data": "check a file of rows: form, lengths, masks, duplicates and overlap",
    "verify": "say which files of a run, a comparison or a student are damaged or missing",
    "push": "list what would be uploaded to the hub, and upload it with --yes",
    "completion": "print a script that completes commands and options in your shell",
}
DESCRIPTION = "Move knowledge from a larger language model into a smaller one by aligning layer outputs."
DEMO = Path(__file__).parent / "embedded" / "demo.yaml"


def parser() -> Root:
    """All commands; each config command takes CONFIG and dotted overrides."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    root = Root(
        prog="semalign",
        description=DESCRIPTION,
        usage="semalign COMMAND [CONFIG] [OPTIONS] | semalign --version",
        version=semalign.__version__,
    )
    own = {
        "report": _report_parser,
        "compare": _compare_parser,
        "demo": _demo_parser,
        "data": lambda: Parser(usage="semalign data check FILE [OPTIONS]"),
        "verify": _verify_parser,
        "push": _push_parser,
        "completion": _completion_parser,
    }
    root.helps = HELP
    commands = {name: own[name]() if name in own else _config_parser(name) for name in HELP}
    root.add_commands("command", commands, HELP)
    inner = {"check": "report what a run would meet in a file of rows"}
    commands["data"].add_commands("action", {"check": _data_check_parser()}, inner)
    return root


def _common(usage: str) -> Parser:
    sub = Parser(usage=f"semalign {usage} [--json] [--quiet] [--verbose]")
    sub.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    sub.add_argument("--quiet", action="store_true", help="show no progress bars, and print warnings only")
    sub.add_argument("--verbose", action="store_true", help="also print what the libraries log")
    return sub


def _config_parser(name: str) -> Parser:
    sub = _common(f"{name} CONFIG [--FIELD VALUE ...]")
    sub.add_argument("--config", action="config", help="YAML file; `semalign transfer FILE` means the same")
    sub.add_class_arguments(TransferConfig)
    return sub


def _demo_parser() -> Parser:
    sub = _common("demo [--output_dir DIR] [--seed N]")
    sub.add_argument("--output_dir", type=str, default="runs/demo", help="the run folder")
    sub.add_argument("--seed", type=int, default=0, help="seed of row order and initialisation")
    return sub


def _compare_parser() -> Parser:
    sub = _common("compare FILE [OPTIONS]")
    sub.description = "Train and measure every method of a YAML file on every task with every seed. The same command continues a stopped run."
    sub.add_argument(
        "file", type=str, help="YAML file of a comparison, such as examples/compare-embedded.yaml"
    )
    sub.add_argument(
        "--seeds", type=int, help="trainings of each method on each task, instead of the number in the file"
    )
    sub.add_argument(
        "--methods",
        type=str,
        help="labels of the methods to run, separated by commas; the default method always runs",
    )
    sub.add_argument("--workers", type=int, help="worker processes, instead of the number in the file")
    sub.add_argument("--output_dir", type=str, help="folder, instead of the one in the file")
    return sub


def _report_parser() -> Parser:
    sub = _common("report RUN [RUN ...] [--open]")
    sub.description = (
        "Write the page of one run from the files in its folder, or a page that compares several runs."
    )
    sub.add_argument("runs", nargs="+", type=str, help="run folders")
    sub.add_argument(
        "--output", type=str | None, help="file of the page; the default for several runs is runs.html"
    )
    sub.add_argument("--open", action="store_true", help="show the page in the browser")
    return sub


def _data_check_parser() -> Parser:
    sub = _common("data check FILE [--model MODEL] [--against ROWS] [--max_length N]")
    sub.add_argument("file", type=str, help="a jsonl file, a saved folder, a hub id or embedded:SPLIT")
    sub.add_argument("--model", type=str | None, help="the model whose tokenizer and chat template are used")
    sub.add_argument("--against", type=str | None, help="evaluation rows that must not be trained on")
    sub.add_argument("--max_length", type=int, default=1024, help="tokens a row may have")
    return sub


def _verify_parser() -> Parser:
    sub = _common("verify FOLDER")
    sub.description = "Says which files are damaged, missing or not recorded; the exit code is 6 if any is damaged or missing."
    sub.add_argument("folder", type=str, help="a run folder, a comparison's folder, or a saved student alone")
    return sub


def _push_parser() -> Parser:
    sub = _common("push RUN [--hub_model_id ORG/NAME] [--private] [--yes]")
    sub.add_argument("run", type=str, help="the run folder")
    sub.add_argument(
        "--hub_model_id",
        type=str | None,
        help="the repository on the hub; null takes the config's hub_model_id",
    )
    sub.add_argument("--private", action="store_true", help="create a private repository")
    sub.add_argument(
        "--yes", action="store_true", help="upload; without this option nothing leaves this machine"
    )
    return sub


def _completion_parser() -> Parser:
    sub = _common("completion {bash,zsh,tcsh}")
    sub.description = "Needs the extra `completion`. For bash, put this line into ~/.bashrc: source <(semalign completion bash)"
    sub.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell that the script is for")
    return sub


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: see `semalign.parsing.EPILOG`."""
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
    parsed = parser().parse_args(arguments)
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
    if command == "compare" and ranks.world() > 1:
        raise ConfigError(
            "compare: expected one process, got a launch of several; it starts its own --workers."
        )
    if not ranks.is_main() and (command == "report" or command not in RESUMABLE):
        return {}
    if command == "report":
        return _report(options, console)
    if command == "compare":
        return _compare(options, console)
    if command == "push":
        return _push(options)
    if command == "verify":
        return _verify(options)
    if command == "completion":
        return _completion(options)
    if command == "data":
        return _check_data(options)
    if command == "demo":
        config = load_config(DEMO, output_dir=options.output_dir, seed=options.seed)
    else:
        config = _config(options)
    if command == "check":
        from semalign.estimate.check import check

        return check(config, console)
    from semalign.run.files import read_json
    from semalign.run.metrics import Metrics
    from semalign.steps.pipeline import STEPS, transfer

    steps = STEPS if command in ("transfer", "demo") else (command,)
    with faults(Path(config.output_dir), is_told=options.verbose):
        run = transfer(config, steps, lambda step: console.rule(f"[bold]{step}", align="left"))
    if "evaluate" not in steps or not ranks.is_main():
        return {"output_dir": str(run.root), "step": command}
    metrics = read_json(run.metrics, "evaluate", Metrics)
    worse = setback(metrics)
    if not options.json:
        final_table(metrics, Console())
        harm = "   (further from its teacher than it began)" if worse else ""
        Console().print(
            f"report: {run.report}   student: {run.root / 'student'}{harm}", markup=False, soft_wrap=True
        )
    shown = ("accuracy_gap_closed", "kl_gap_closed", "wall_seconds", "peak_rss_bytes", "baselines")
    return {k: metrics[k] for k in shown} | ({"warning": f"{worse.sentence} {MEND}"} if worse else {})


def _compare(options: Any, console: Console) -> dict[str, Any]:
    from semalign.comparison import compare

    given = {k: options[k] for k in ("seeds", "workers", "output_dir") if options[k] is not None}
    labels = [m.strip() for m in options.methods.split(",") if m.strip()] if options.methods else None
    figures = compare(Path(options.file), labels, given, console)
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


def _push(options: Any) -> dict[str, Any]:
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


def _verify(options: Any) -> dict[str, Any]:
    from semalign.run.verify import verify

    found = verify(Path(options.folder))
    for line in found.lines() if not options.json else ():
        Console().print(line, markup=False, highlight=False, soft_wrap=True)
    return vars(found) | {"exit_code": 0 if found.is_sound else CacheError.exit_code}


def _completion(options: Any) -> dict[str, Any]:
    require("shtab", "completion")
    script = parser().get_completion_script(f"shtab-{options.shell}")
    if not options.json:
        print(script)
    return {"shell": options.shell, "script": script}


def _check_data(options: Any) -> dict[str, Any]:
    from semalign.data.check import check_data
    from semalign.report.tables import show

    found = check_data(options.file, options.model, options.against, options.max_length)
    if not options.json:
        show(found, Console())
    return found


def _config(options: Any) -> TransferConfig:
    fields = {k: v for k, v in options.as_dict().items() if k in TransferConfig.__dataclass_fields__}
    files = [Path(str(p)) for p in options.get("config") or []]
    return build_config(fields, files[-1].parent if files else Path())
