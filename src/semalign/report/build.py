"""Run folder -> view model -> report.html."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import jinja2

from semalign.reading import UnreadableError, yaml_of
from semalign.report import geometry, outcome, process, tokens, top, words
from semalign.report.blocks import Report
from semalign.report.files import RunFiles, read_run
from semalign.report.words import recipe_name
from semalign.run.digests import sealed
from semalign.run.files import write_atomic


def build_report(run_dir: Path, path: Path | None = None) -> Path:
    """Write `run_dir`/report.html (or `path`) from the files in `run_dir` alone, and return its path.

    Raises CacheError when metrics.json is missing or a file is damaged. An older report stays whole until the new
    one is complete.
    """
    page = render(view(read_run(Path(run_dir))))
    return write_page(path or Path(run_dir) / "report.html", page)


def view(files: RunFiles) -> Report:
    """The view model of a run: every number, sentence and drawing of the page."""
    metrics, environment = files.metrics, files.environment or {}
    names = model_names(files.config_text)
    harness = outcome.harness_section(metrics)
    return Report(
        name=files.name,
        teacher=names["teacher"],
        student=names["student"],
        recipe=recipe_name(str(metrics.get("recipe") or "unknown recipe")),
        started=words.moment(str(environment.get("started") or "")),
        version=str(environment.get("semalign") or ""),
        headline=top.top_line(metrics),
        notes=top.notes(metrics),
        gaps=top.gap_panels(metrics),
        tiles=top.tiles(files),
        sections=[
            outcome.tasks_section(metrics),
            *([harness] if harness is not None else []),
            outcome.closeness_section(metrics),
            geometry.layers_section(files),
            geometry.alignment_section(files),
            geometry.cka_section(files),
            process.training_section(files),
            process.cost_section(metrics),
            tokens.tokens_section(metrics),
            outcome.samples_section(metrics),
            process.setup_section(files),
        ],
    )


def render(report: Report) -> str:
    """The page. Everything but our own drawings is escaped."""
    loader = jinja2.PackageLoader("semalign.report", "")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.jinja").render(report=report)


def options_of(config_text: str | None) -> dict[str, Any]:
    """The options in a run's config; none where it is missing or damaged."""
    try:
        config = yaml_of((config_text or "").encode("utf-8", errors="replace"))
    except UnreadableError:
        return {}
    return config if isinstance(config, dict) else {}


def model_names(config_text: str | None) -> dict[str, str]:
    """Names of teacher and student from the config; of a local path only the last part."""
    config = options_of(config_text)
    try:
        found = {role: str(config[role]["model_name_or_path"]) for role in ("teacher", "student")}
    except (KeyError, TypeError):
        return {"teacher": "teacher", "student": "student"}
    local = ("/", "./", "../", "~", "\\")
    return {
        role: PurePosixPath(name).name if name.startswith(local) else name for role, name in found.items()
    }


def write_page(path: Path, page: str) -> Path:
    """The page's file, whole or not at all."""
    # A lone surrogate in a model's answer has no UTF-8 form; it becomes a question mark.
    advice = "free space, or write the page elsewhere with `semalign report RUN --output FILE`"
    write_atomic(path, sealed(page.encode("utf-8", errors="replace"), ".html"), advice)
    return path
