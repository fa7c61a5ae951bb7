"""The options of every command. Those of a config come from its dataclasses and their docstrings.

jsonargparse does the parsing: it reads frozen dataclasses with nested groups, the docstring under each field becomes its
help, and a YAML file and dotted overrides go through the same checks.
"""

from __future__ import annotations

from pathlib import Path

import jsonargparse

import semalign
from semalign.config import TransferConfig
from semalign.config.parsing import Parser, Root

STEP_HELP = {
    "generate": "let teacher or student answer the prompts, if the config asks for it",
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
    "export": "write what the teacher said about a run's rows to a Parquet file, for other students",
    "push": "list what would be uploaded to the hub, and upload it with --yes",
    "completion": "print a script that completes commands and options in your shell",
}
REGRADE = "grade the stored answers again, by the present items and checkers, without a model"
DESCRIPTION = (
    "Move knowledge from a larger language model into a smaller one through signals that are stored once."
)
DEMO = Path(__file__).parents[1] / "embedded" / "demo.yaml"


def parser(wanted: str | None = None) -> Root:
    """All commands; each config command takes CONFIG and dotted overrides.

    Args:
        wanted: the command whose options are read. The config's fields are costly to declare, and the others get none; None: all do.
    """
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
        "export": _export_parser,
        "push": _push_parser,
        "completion": _completion_parser,
    }
    root.helps = HELP
    commands = {
        name: own[name]() if name in own else _config_parser(name, has_fields=wanted in (None, name))
        for name in HELP
    }
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


def _config_parser(name: str, *, has_fields: bool) -> Parser:
    sub = _common(f"{name} CONFIG [--FIELD VALUE ...]")
    sub.add_argument("--config", action="config", help="YAML file; `semalign transfer FILE` means the same")
    if has_fields:
        sub.add_class_arguments(TransferConfig)
    if name == "evaluate":
        sub.add_argument("--regrade", action="store_true", help=REGRADE)
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
    sub.add_argument("--regrade", action="store_true", help=REGRADE)
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


def _export_parser() -> Parser:
    sub = _common("export RUN FILE")
    sub.description = (
        "Write the teacher's likeliest tokens at the supervised tokens of a run's rows, from its cache. A run with teacher.signals: FILE "
        "trains another student on them, without the teacher."
    )
    sub.add_argument("run", type=str, help="the run folder")
    sub.add_argument("file", type=str, help="the Parquet file")
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
