"""A comparison from its plan to results.jsonl, resumed cell by cell."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from semalign.comparison.cells import (
    CellJob,
    costs_of,
    items_of,
    key_of,
    needs_grading,
    regrade_cell,
    run_cell,
)
from semalign.comparison.plan import TEACHER, UNTOUCHED, Cell, Comparison, Source
from semalign.comparison.pool import Job, run_jobs
from semalign.comparison.sources import make_random_teacher, prepare
from semalign.config import (
    CacheConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    TransferConfig,
    decisive,
    to_dict,
    without_names,
)
from semalign.data.drawing import split_rows
from semalign.data.kinds import Row
from semalign.data.overlap import Prompts
from semalign.data.shown import known_view
from semalign.errors import CacheError, DataError
from semalign.evaluation.readiness import check_answering
from semalign.models.finding import identity
from semalign.run import results
from semalign.run.environment import environment
from semalign.run.files import hash_of, json_line, keep_once, read_json, write_atomic, write_yaml
from semalign.run.folder import RunFolder, fingerprint, is_done
from semalign.run.progress import bar

Line = dict[str, Any]
Say = Callable[[str], None]
NOT_GRADED = "it is not graded, since nobody has answered these items; run without --regrade"
RANDOM_TEACHER = "random weights, seed 0"


def run_comparison(
    comparison: Comparison,
    labels: Sequence[str],
    say: Say = lambda sentence: None,
    *,
    is_regraded: bool = False,
) -> list[Line]:
    """Prepare, train and measure what is not done yet; the lines of results.jsonl, which is written.

    Cells whose items have other checks than before, and the same prompts, are graded again and not trained.

    Args:
        labels: methods to compare, the default among them.
        say: called with the sentence of each piece that fails, and of each cell whose verdicts change.
        is_regraded: grade the answers of all cells that are done again, by the present checkers, and train nothing.
    """
    with RunFolder(comparison.root).lock():
        environment_of(comparison)
        write_yaml(comparison.root / "compare.yaml", json.loads(json.dumps(vars(comparison.options))))
        jobs = jobs_of(comparison, labels)
        open_cells = {n: job for n, job in jobs.items() if not _is_settled(n, job, say, is_regraded)}
        for task in comparison.options.tasks if open_cells else ():
            check_answering(comparison.reference(task).config, task)
        failures = dict.fromkeys(open_cells, NOT_GRADED) if is_regraded else _run(comparison, open_cells, say)
        lines = list(result_lines(comparison, labels, jobs, failures))
        write_atomic(comparison.root / "results.jsonl", "".join(map(json_line, lines)))
    return lines


def _check_apart(comparison: Comparison, split: Callable[[DataConfig], tuple[list[Row], list[Row]]]) -> None:
    """Refuse rows to train on that are among the held-out rows which students are measured with.

    Args:
        split: the training and held-out rows of a source.

    Raises:
        DataError: some are; each method's own held-out rows are not looked at, for nothing is measured with them.
    """
    trained = functools.cache(lambda data: Prompts(enumerate(split(data)[0])))
    heldout = {task: split(comparison.reference(task).config.data)[1] for task in comparison.options.tasks}
    sources = {source.run.root: (label, source) for (_, label, _), source in comparison.sources.items()}
    for label, source in sources.values():
        for task, rows in heldout.items():
            if shared := trained(source.config.data).shared(rows):
                raise DataError(
                    f"methods.{label}: {shared} held-out rows of task {task!r}, which all students are measured with, are among the rows that "
                    f"it trains on for {source.task!r}; take them out of {', '.join(source.config.data.weights)}."
                )


def _is_settled(name: str, job: CellJob, say: Say, is_regraded: bool) -> bool:
    """Whether a cell is done, its answers graded again where that is asked for, or where its items' checks have changed."""
    if _is_done(job, doing=None):
        if is_regraded:
            _grade(name, job, say)
        return True
    if needs_grading(job):
        # Its answers may be gone, or to other prompts: then it is not done.
        with suppress(CacheError, DataError):
            _grade(name, job, say)
            return True
    return _is_done(job, doing=NOT_GRADED if is_regraded else "it is made again")


def _grade(name: str, job: CellJob, say: Say) -> None:
    if changed := regrade_cell(job):
        say(f"{name}: {changed} verdicts changed")


def _is_done(job: CellJob, doing: str | None) -> bool:
    return is_done(job.folder / "cell.json", job.fingerprint, (), doing=doing)


def _run(comparison: Comparison, cells: Mapping[str, CellJob], say: Say) -> dict[str, str]:
    needed = {name: _sources(job) for name, job in cells.items()}
    sources = {_name(s): s for found in needed.values() for s in found}
    for source in sources.values():
        if source.has_random_teacher:
            original = comparison.reference(source.task).config.teacher
            make_random_teacher(original, Path(source.config.teacher.model_name_or_path))
    jobs: dict[str, Job] = {}
    # The teacher last: its answers cost the most, and nothing waits for them.
    for name, job in sorted(cells.items(), key=lambda item: item[1].cell.method == TEACHER):
        # What a cell needs is prepared just before it, so that an early stop leaves cells and not preparations.
        jobs |= {n: Job(prepare, s) for s in needed[name] if (n := _name(s)) not in jobs}
        after = tuple(n for n in (_of(f) for f in (*job.same, *job.defaults)) if n in cells)
        jobs[name] = Job(run_cell, job, needs=tuple(map(_name, needed[name])), after=after)
    if not jobs:
        return {}
    progress = bar(len(jobs), "comparison", "cell")

    def done(name: str, failure: str | None) -> None:
        progress.update(1)
        if failure is not None:
            say(f"{name}: {failure}")

    try:
        return run_jobs(jobs, workers(comparison), done)
    finally:
        progress.close()


def workers(comparison: Comparison) -> int:
    """Processes to use."""
    default = 1 if torch.cuda.is_available() else os.cpu_count() or 1
    return comparison.options.workers or default


def _sources(job: CellJob) -> list[Source]:
    """What a cell reads: every student is measured on the held-out rows of all tasks."""
    found = [*job.references.values(), *(s for s in (job.source, job.targets) if s is not None)]
    return list({_name(s): s for s in found}.values())


def _name(source: Source) -> str:
    return f"{source.task}/{source.run.root.name}"


def _of(folder: Path) -> str:
    """Name of the cell in a folder."""
    return "/".join(folder.parts[-3:])


def jobs_of(comparison: Comparison, labels: Sequence[str]) -> dict[str, CellJob]:
    """Every cell of the chosen labels by name: references first, equal rows before equal time."""
    timed = [m for m in labels if m in comparison.options.equal_time and m != comparison.options.default]
    cells = [
        Cell(UNTOUCHED),
        Cell(TEACHER),
        *comparison.cells(labels, "rows"),
        *comparison.cells(timed, "time"),
    ]
    known = _Fingerprints(comparison)
    _check_apart(comparison, known.split)
    return {cell.place: _job(comparison, cell, known) for cell in cells}


def _job(comparison: Comparison, cell: Cell, known: _Fingerprints) -> CellJob:
    options, where = comparison.options, comparison.root / "cells"
    references = {task: comparison.reference(task) for task in options.tasks}
    job = CellJob(
        cell,
        where / cell.place,
        references[next(iter(references))].config,
        references,
        known.of(cell),
        retention_items=options.retention_items,
    )
    if not cell.task:
        return job
    key = (cell.task, cell.method)
    if student := comparison.made.get((*key, cell.seed)):
        return replace(job, config=replace(job.config, student=student))
    config = comparison.configs[key]
    job = replace(
        job,
        config=replace(config, seed=config.seed + cell.seed),
        source=comparison.sources[(*key, cell.seed)],
        recipe=comparison.recipes[key],
        targets=comparison.targets.get((*key, cell.seed)),
    )
    if cell.budget == "rows":
        return job
    same = [where / Cell(cell.method, cell.task, s).place for s in range(options.seeds)]
    defaults = [where / Cell(options.default, cell.task, s).place for s in range(options.seeds)]
    return replace(job, same=same, defaults=defaults)


class _Fingerprints:
    """What each cell's result depends on, without the steps at equal time, which are fixed when it starts."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        memory = RunFolder(comparison.root).digests
        self.identity = functools.cache(lambda model: identity(model, memory))
        self.split = functools.cache(split_rows)
        self.rows = functools.cache(lambda data: hash_of([list(part) for part in self.split(data)]))
        references = {t: comparison.reference(t).config for t in comparison.options.tasks}
        self.measured = {
            task: {
                "rows": self.rows(config.data),
                "data": without_names(config.data),
                "items": config.evaluation.tasks and hash_of(items_of(config, task)),
                "max_new_tokens": config.evaluation.max_new_tokens,
                **_drawn(config.evaluation),
                **_told(config),
            }
            for task, config in references.items()
        }

    def of(self, cell: Cell) -> dict[str, Any]:
        """The fingerprint of one."""
        comparison = self.comparison
        tasks = comparison.options.tasks
        first = comparison.reference(next(iter(tasks))).config
        measured = {
            "rows": "of every task",
            "items": self.measured,
            "retention_items": comparison.options.retention_items,
            "teacher": self.identity(first.teacher),
            "student": self.identity(first.student),
        }
        if not cell.task:
            return fingerprint(measured=measured)
        key = (cell.task, cell.method)
        if student := comparison.made.get((*key, cell.seed)):
            return fingerprint(measured=measured, made=self._made(student))
        config, source = comparison.configs[key], comparison.sources[(*key, cell.seed)]
        teacher = RANDOM_TEACHER if source.has_random_teacher else self.identity(config.teacher)
        return fingerprint(
            measured=measured,
            teacher=teacher,
            **({"targets": RANDOM_TEACHER} if (*key, cell.seed) in comparison.targets else {}),
            rows=self.rows(source.config.data),
            **{
                name: decisive(getattr(config, name)) for name in ("attribution", "pairing", "cache", "train")
            },
            data=without_names(source.config.data),
            **known_view(config.teacher),
            recipe=decisive(comparison.recipes[key]),
            **comparison.recipes[key].code,
            seed=[config.seed, cell.seed],
            # At equal time the default's seconds decide.
            budget=self.of(Cell(comparison.options.default, cell.task)) if cell.budget == "time" else None,
        )

    def _made(self, student: ModelConfig) -> list[Any] | None:
        """A student that something else has trained, and its costs; None as long as it has not."""
        folder = Path(student.model_name_or_path)
        return [self.identity(student), costs_of(folder)] if folder.is_dir() else None


def _drawn(options: EvaluationConfig) -> dict[str, Any]:
    """How answers are drawn; where they are not it is left out, so that cells from before this could be chosen stay valid."""
    if options.sampling.is_greedy:
        return {}
    return {"samples": options.samples, "sampling": to_dict(options.sampling)}


def _told(config: TransferConfig) -> dict[str, Any]:
    """What of a teacher's distribution closeness is measured by, where that is not all of it; the default is left out, as above."""
    is_default = config.cache.top_k == CacheConfig().top_k
    return {} if is_default or not config.teacher.only_tells else {"top_k": config.cache.top_k}


def result_lines(
    comparison: Comparison, labels: Sequence[str], jobs: Mapping[str, CellJob], failures: Mapping[str, str]
) -> Iterator[Line]:
    """results.jsonl: a line about the comparison, then for each cell its costs, its items and its held-out rows."""
    options = comparison.options
    first = comparison.reference(next(iter(options.tasks))).config
    yield {
        "kind": "comparison",
        "teacher": _short(first.teacher),
        "student": _short(first.student),
        "default": options.default,
        "methods": list(labels),
        "tasks": list(options.tasks),
        "measured_only": list(options.measured_only),
        "seeds": options.seeds,
        "equal_time": [m for m in labels if m in options.equal_time],
    }
    for name, job in jobs.items():
        if not _is_done(job, doing=None):
            yield {"kind": "failed", **key_of(job.cell), "error": failures.get(name, "was not run")}
            continue
        result = read_json(job.folder / "cell.json", "compare", results.Cell)
        yield {"kind": "cell", **result["cell"]}
        yield from ({"kind": "item", **key_of(job.cell), **line} for line in result["items"])
        yield from ({"kind": "row", **key_of(job.cell), **line} for line in result["rows"])


def environment_of(comparison: Comparison) -> dict[str, Any]:
    """Versions and machine, as they were when the comparison began."""
    path = RunFolder(comparison.root).environment
    keep_once(path, environment)
    return read_json(path, "compare", results.Environment)


def made_from(comparison: Comparison) -> list[Path]:
    """The records and results that figures are made from, of this and of earlier calls."""
    root = comparison.root
    names = ("sources/*/*.json", "sources/*/targets/manifest.json", "cells/**/cell.json")
    found = [path for name in names for path in root.glob(name) if path.name != "digests.json"]
    return [root / "results.jsonl", root / "compare.yaml", root / "environment.json", *sorted(found)]


def _short(model: ModelConfig) -> str:
    name = model.model_name_or_path
    return name.rsplit("/", 1)[-1] if name.startswith(("/", ".", "~")) else name
