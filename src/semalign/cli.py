"""Command line: parse, call, print. Options come from the config's dataclasses and their docstrings.

jsonargparse does the parsing: it reads frozen dataclasses with nested groups, the docstring under each field becomes its
help, and a YAML file and dotted overrides go through the same checks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
from rich.console import Console
from rich.table import Table

from semalign.config import TransferConfig
from semalign.config_file import build_config, load_config
from semalign.errors import SemAlignError

STEP_HELP = {
    "generate": "let the teacher answer the prompts, where data asks for it",
    "attribute": "score the teacher's layers on a few rows",
    "pair": "choose and pair layers; writes an editable plan",
    "cache": "run both models once and store what training needs",
    "train": "train the paired layers, and the baselines' too",
    "evaluate": "measure before, after, baselines and teacher",
    "report": "make the page from the files of a run folder",
}
DESCRIPTION = "Move knowledge from a larger language model into a smaller one by aligning layer outputs."
DEMO = Path(__file__).parent / "embedded" / "demo.yaml"


def parser() -> jsonargparse.ArgumentParser:
    """All commands; each config command takes CONFIG and dotted overrides."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    root = jsonargparse.ArgumentParser(prog="semalign", description=DESCRIPTION)
    commands = root.add_subcommands(dest="command")
    helps = {"transfer": "all steps, with resume", "check": "look before anything expensive", **STEP_HELP}
    for name, text in helps.items():
        commands.add_subcommand(name, _report_parser() if name == "report" else _config_parser(), help=text)
    commands.add_subcommand(
        "compare", _compare_parser(), help="methods x tasks x seeds on one pair, with intervals"
    )
    commands.add_subcommand("demo", _demo_parser(), help="transfer between the embedded pair, with baselines")
    return root


def _common(sub: jsonargparse.ArgumentParser) -> jsonargparse.ArgumentParser:
    sub.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    sub.add_argument("--quiet", action="store_true", help="no progress bars, warnings only")
    return sub


def _config_parser() -> jsonargparse.ArgumentParser:
    sub = _common(jsonargparse.ArgumentParser())
    sub.add_argument("--config", action="config", help="YAML file; `semalign transfer FILE` means the same")
    sub.add_class_arguments(TransferConfig)
    return sub


def _demo_parser() -> jsonargparse.ArgumentParser:
    sub = _common(jsonargparse.ArgumentParser())
    sub.add_argument("--output_dir", type=str, default="runs/demo", help="the run folder")
    sub.add_argument("--seed", type=int, default=0, help="seed of row order and initialisation")
    return sub


def _compare_parser() -> jsonargparse.ArgumentParser:
    about = "Train and measure every method of a YAML file on every task with every seed; a killed run goes on where it was."
    sub = _common(jsonargparse.ArgumentParser(description=about))
    sub.add_argument("file", type=str, help="YAML file of a comparison, see examples/compare-embedded.yaml")
    sub.add_argument("--seeds", type=int, help="trainings per method and task, in place of the file's")
    sub.add_argument(
        "--methods", type=str, help="labels to run, with commas between; the default always runs"
    )
    sub.add_argument("--workers", type=int, help="processes, in place of the file's")
    sub.add_argument("--output_dir", type=str, help="folder, in place of the file's")
    return sub


def _report_parser() -> jsonargparse.ArgumentParser:
    sub = _common(jsonargparse.ArgumentParser())
    sub.add_argument("run", type=str, help="the run folder")
    return sub


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 done, 2 usage, 3 config, 4 data, 5 model, 6 cache, 1 other errors, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # CONFIG may stand without its flag, right after the command.
    if (
        len(arguments) > 1
        and arguments[0] not in ("report", "compare", "demo")
        and not arguments[1].startswith("-")
    ):
        arguments.insert(1, "--config")
    parsed = parser().parse_args(arguments)
    from semalign.progress import quieten

    options = parsed[parsed.command]
    console = Console(stderr=True, quiet=options.quiet)
    quieten(options.quiet)
    try:
        result = _run(parsed.command, options, console)
    except SemAlignError as error:
        return _fail(error, error.exit_code, options.json)
    except KeyboardInterrupt as error:
        return _fail(
            error if error.args else RuntimeError("interrupted; run the same command again to go on"),
            130,
            options.json,
        )
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
    return 0


def _fail(error: BaseException, code: int, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": str(error), "exit_code": code}, ensure_ascii=False))
    Console(stderr=True, soft_wrap=True).print(
        f"[bold red]semalign:[/] {error}", highlight=False, markup=True
    )
    return code


def _run(command: str, options: Any, console: Console) -> dict[str, Any]:
    if command == "report":
        from semalign.report import build_report

        page = build_report(Path(options.run))
        console.print(f"report: {page}")
        return {"report": str(page)}
    if command == "compare":
        from semalign.comparison import compare

        given = {k: options[k] for k in ("seeds", "workers", "output_dir") if options[k] is not None}
        labels = [m.strip() for m in options.methods.split(",") if m.strip()] if options.methods else None
        figures = compare(Path(options.file), labels, given, console)
        if not options.json:
            from semalign.comparison.table import table

            Console().print(table(figures))
            Console().print(f"page: {figures['output_dir']}/page.html", soft_wrap=True)
        return figures
    if command == "demo":
        config = load_config(DEMO, output_dir=options.output_dir, seed=options.seed)
    else:
        config = _config(options)
    if command == "check":
        from semalign.steps.check import check

        return check(config, console)
    from semalign.run import STEPS, transfer

    steps = STEPS if command in ("transfer", "demo") else (command,)
    run = transfer(config, steps, lambda step: console.rule(f"[bold]{step}", align="left"))
    if "evaluate" not in steps:
        return {"output_dir": str(run.root), "step": command}
    metrics = json.loads(run.metrics.read_text(encoding="utf-8"))
    if not options.json:
        final_table(metrics, Console())
        Console().print(f"report: {run.report}   student: {run.root / 'student'}", soft_wrap=True)
    return {
        k: metrics[k]
        for k in ("accuracy_gap_closed", "kl_gap_closed", "wall_seconds", "peak_rss_bytes", "baselines")
    }


def _config(options: Any) -> TransferConfig:
    fields = {k: v for k, v in options.as_dict().items() if k in TransferConfig.__dataclass_fields__}
    files = [Path(str(p)) for p in options.get("config") or []]
    return build_config(fields, files[-1].parent if files else Path())


def final_table(metrics: dict[str, Any], console: Console) -> None:
    """Before, baselines, after and teacher side by side, with the shares of the gaps closed."""
    names = ["before", *metrics["baselines"], "after", "teacher"]
    table = Table(title=f"recipe {metrics['recipe']}", title_justify="left")
    for column in ("", *names):
        table.add_column(column, justify="left" if not column else "right")
    for task, entry in metrics["tasks"].items():
        table.add_row(f"{task} (n={entry['n']})", *(f"{100 * entry[n]['accuracy']:.1f}%" for n in names))
    if metrics["tasks"]:
        table.add_row(
            "average accuracy", *(f"{100 * metrics['accuracy'][n]:.1f}%" for n in names), style="bold"
        )
    near = metrics.get("closeness", {})
    for key, label in (("kl", "KL to the teacher"), ("top1_agreement", "top-1 agreement"), ("nll", "NLL")):
        if near:
            table.add_row(
                label, *(f"{near[n][key]:.3f}" if n in near and key in near[n] else "-" for n in names)
            )
    closed = {**metrics["baselines"], "after": metrics}
    for key, label in (("accuracy_gap_closed", "accuracy gap closed"), ("kl_gap_closed", "KL gap closed")):
        table.add_row(label, *(_share(closed[n][key]) if n in closed else "-" for n in names), style="bold")
    console.print(table)
    seconds, memory = metrics["wall_seconds"], metrics["peak_rss_bytes"] / 2**30
    console.print(
        f"{seconds:.0f} s in all, training {metrics['train_seconds']:.0f} s, peak memory {memory:.2f} GiB"
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"
