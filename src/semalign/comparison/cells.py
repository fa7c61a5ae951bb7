"""One cell of a comparison in a worker process: train a student, measure it, and leave the figures.

What a cell leaves is one file, written whole: a killed comparison goes on with the cells that have none. Of a cell that was
stopped only a training that had ended and the answers after it are kept: the rest of a stopped training would pass for all of its
seconds.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from semalign.comparison.plan import TEACHER, Cell, Source
from semalign.comparison.sources import PATIENCE, inputs_of, prepared_of
from semalign.config import TransferConfig
from semalign.data.drawing import task_rows
from semalign.errors import CacheError, ConfigError, DataError
from semalign.evaluation.answers import Answer, answer_items, by_item, graded_again
from semalign.evaluation.heldout import heldout_batches
from semalign.evaluation.summary import store_answers, stored_answers, student_files, trained_model
from semalign.methods.recipe import Recipe
from semalign.models.decoder import Decoder, share_vocabulary
from semalign.models.loading import load
from semalign.reading import UnreadableError, bytes_of, check_shape, json_of
from semalign.run import results
from semalign.run.files import LOCK, read_json, write_json
from semalign.run.folder import RunFolder, check_files, is_done, save_result
from semalign.run.meter import free_memory
from semalign.steps.train import train_student

Line = dict[str, Any]
Answers = Mapping[str, Sequence[Answer]]
ANSWERS = "answers.jsonl"
WEIGHTS = ("student/", "adapter/")


@dataclass(frozen=True)
class CellJob:
    """All that a worker needs to know of a cell."""

    cell: Cell
    folder: Path
    config: TransferConfig
    """With the cell's seed."""
    references: Mapping[str, Source]
    """Task -> source that all students are measured with."""
    fingerprint: Mapping[str, Any]
    source: Source | None = None
    """None for models that are measured as they are."""
    recipe: Recipe | None = None
    targets: Source | None = None
    """Where the layers' targets come from, if not from the source."""
    retention_items: int | None = None
    same: Sequence[Path] = ()
    """Of a cell at equal time: folders of the same method's and task's cells at equal rows."""
    defaults: Sequence[Path] = ()
    """And of the default's."""


def run_cell(job: CellJob) -> None:
    """Train, measure, write cell.json, and delete the student's weights."""
    path = job.folder / "cell.json"
    with RunFolder(job.folder).lock(PATIENCE):
        if not is_done(path, job.fingerprint, ()):
            _run(job, path)


def _run(job: CellJob, path: Path) -> None:
    if not _is_trained(job):
        for part in job.folder.iterdir():
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            elif part.name != LOCK:
                part.unlink()
    cell, about = job.cell, Line()
    model = job.config.teacher if cell.method == TEACHER else job.config.student
    if job.source is not None:
        assert job.recipe is not None
        about = train(job, job.source, job.recipe)
        check_files(job.folder / "train.json", "compare")
        model = trained_model(job.config.student, job.folder)
    elif cell.task:
        about = costs_of(Path(model.model_name_or_path))
    # A teacher on a server answers there.
    answered, rows = measure(None if model.server.url else load(model, needs_layers=False), job)
    _let_go(job.folder / "train.json")
    _save(job, {"cell": key_of(cell) | about, "items": verdicts(job, answered), "rows": rows}, answered)
    for name in WEIGHTS:
        shutil.rmtree(job.folder / name, ignore_errors=True)
    for part in job.folder.glob("*.part"):
        part.unlink()
    free_memory()


def costs_of(folder: Path) -> Line:
    """What a student cost that something else has trained, as far as its folder says; see `CompareConfig.methods`.

    Raises:
        DataError: there is no such folder, or what it says cannot be read.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: expected a student that something else has trained, found no folder; put it there and run the same command again."
        )
    path = folder / "made.json"
    if not path.exists():
        return {}
    try:
        told = json_of(bytes_of(path))
        check_shape(results.MadeCosts, told)
    except UnreadableError as error:
        raise DataError(
            f"{path}: {error}; a comparison reads {', '.join(results.MadeCosts.model_fields)}."
        ) from error
    return dict(told)


def _is_trained(job: CellJob) -> bool:
    """Whether nothing is left to train: the student of an earlier try is there as it was saved, or there is none to train."""
    if job.source is None:
        return True
    try:
        return bool(student_files(check_files(job.folder / "train.json", "compare")))
    except CacheError:
        return False


def _let_go(trained: Path) -> None:
    """Take the student, which is about to be deleted, off what its training records."""
    if trained.exists():
        result = read_json(trained, "compare")
        files = {n: f for n, f in result["files"].items() if not n.startswith(WEIGHTS)}
        write_json(trained, result | {"files": files})


def key_of(cell: Cell) -> Line:
    """What names a cell in results.jsonl."""
    trained = {"trained": cell.task, "seed": cell.seed, "budget": cell.budget} if cell.task else {}
    return {"method": cell.method} | trained


def train(job: CellJob, source: Source, recipe: Recipe) -> Line:
    """Train the cell's student; its costs."""
    # The source's baselines decide what its cache holds; the cell decides how it is trained.
    config = replace(source.config, train=job.config.train, seed=job.config.seed)
    before = preparation_seconds(source, recipe)
    budget = None
    if job.cell.budget == "time":
        budget = median(line["wall_seconds"] for line in _lines(job.defaults))
        steps = steps_within(budget, before, _lines(job.same), recipe.name)
        config = replace(config, train=replace(config.train, max_steps=steps))
    targets = None if job.targets is None else prepared_of(job.targets).stores.teacher
    train_student(replace(prepared_of(source), config=config, targets=targets), recipe, job.folder)
    result = read_json(job.folder / "train.json", "compare", results.Trained)
    kept = ("steps", "train_seconds", "seconds", "peak_rss_bytes", "trained_parameters", "loss")
    return {
        **{name: result[name] for name in kept},
        "rows": len(inputs_of(source).train),
        "preparation_seconds": round(before, 3),
        "wall_seconds": round(before + result["seconds"], 3),
        "budget_seconds": budget,
    }


def preparation_seconds(source: Source, recipe: Recipe) -> float:
    """Seconds of the source's preparation that a recipe needs.

    The teacher's answers are paid by all that train on them; attribution and the cache by recipes that read the teacher
    (the shared cache in full, though other recipes' signals are in it, but without the held-out rows, which only measure);
    the student's pass alone by those that read nothing but its prefix. Attribution is also paid where it chose the layers.
    """
    run, config = source.run, source.config
    stored = read_json(run.manifest, "cache", results.Cached)
    reads_teacher = bool(recipe.reads) or recipe.layer is not None
    seconds = 0.0
    if config.data.is_generated:
        written = read_json(run.generated, "generate", results.Generated)
        seconds = written["seconds"] - written["heldout_seconds"]
    if reads_teacher or config.pairing.selection == "attribution":
        seconds += sum(
            read_json(path, "pair", may_be_edited=path == run.pairs).get("seconds", 0)
            for path in (run.scores, run.pairs)
        )
    if reads_teacher:
        return seconds + stored["seconds"] - stored["heldout_seconds"]
    reads_prefix = (
        config.train.cache_prefix and recipe.trained == "pairs" and prepared_of(source).plan.cut > 0
    )
    return seconds + (stored["student_seconds"] if reads_prefix else 0.0)


def steps_within(budget: float, preparation: float, same: Sequence[Line], label: str) -> int:
    """Optimiser steps that fit: (budget - preparation - loading and saving) / seconds per step, medians over `same`.

    Raises:
        ConfigError: not even one fits.
    """
    fixed = median(line["seconds"] - line["train_seconds"] for line in same)
    a_step = median(line["train_seconds"] / max(1, line["steps"]) for line in same)
    steps = int((budget - preparation - fixed) / a_step) if a_step else 0
    if steps < 1:
        raise ConfigError(
            f"equal_time: {label} needs {preparation + fixed:.1f} s before its first step, the default takes {budget:.1f} s in all; "
            "take it off the list."
        )
    return steps


def _lines(folders: Sequence[Path]) -> list[Line]:
    """Costs of the cells that are done."""
    lines = [
        read_json(f / "cell.json", "compare", results.Cell)["cell"]
        for f in folders
        if (f / "cell.json").exists()
    ]
    if not lines:
        raise ConfigError(
            "equal_time: no cell at equal rows is done, so its time is not known; see why it failed."
        )
    return lines


def _save(job: CellJob, result: dict[str, Any], answered: Answers) -> None:
    """Write the answers, and cell.json, which records them and the training's log."""
    store_answers(job.folder / ANSWERS, answered)
    names = ("train.json", "train.jsonl", ANSWERS)
    kept = [job.folder / name for name in names if (job.folder / name).exists()]
    save_result(job.folder / "cell.json", job.fingerprint, result, kept)


def needs_grading(job: CellJob) -> bool:
    """Whether nothing that a cell was made from has changed but its items, so that its answers may be graded by their present checks."""
    try:
        known = read_json(job.folder / "cell.json", "compare", results.Cell).get("fingerprint")
    except CacheError:
        return False
    return known != job.fingerprint and _without_items(known) == _without_items(job.fingerprint)


def _without_items(known: Any) -> Any:
    """A fingerprint without the digests of items, which stand beside what else students are measured with."""
    if not isinstance(known, Mapping):
        return known
    return {k: _without_items(v) for k, v in known.items() if k != "items" or isinstance(v, Mapping)}


def regrade_cell(job: CellJob) -> int:
    """Grade a cell's stored answers by the present items and checkers; how many verdicts changed.

    Raises:
        CacheError: a file of the cell is damaged, or it was measured before answers were stored.
        DataError: its answers are to other items.
    """
    names = [ANSWERS] if any(source.config.evaluation.tasks for source in job.references.values()) else []
    cell = check_files(job.folder / "cell.json", "compare", names)
    answered = {
        task: graded_again(measuring(job, task), given, task)
        for task, given in stored_answers(job.folder / ANSWERS).items()
    }
    items = verdicts(job, answered)
    _save(job, {"cell": cell["cell"], "items": items, "rows": cell["rows"]}, answered)
    return sum(a["correct"] != b["correct"] for a, b in zip(cell["items"], items, strict=True))


def measuring(job: CellJob, task: str) -> TransferConfig:
    """The config that a cell's student answers a task's items with: all of its own task, `retention_items` of another."""
    config = job.references[task].config
    limits = [config.evaluation.max_items, None if job.cell.task in ("", task) else job.retention_items]
    fewest = min((n for n in limits if n is not None), default=None)
    return replace(config, evaluation=replace(config.evaluation, max_items=fewest))


def measure(decoder: Decoder | None, job: CellJob) -> tuple[Answers, list[Line]]:
    """Answers to the items of every task, and closeness on its held-out rows; a teacher that only tells has no rows of its own."""
    tasks = [task for task, source in job.references.items() if source.config.evaluation.tasks is not None]
    trained = job.folder / "train.json"
    student = None if job.source is None else student_files(read_json(trained, "compare"))
    answered = {}
    for number, task in enumerate(tasks):
        part = job.folder / f"answers-{number}.part"
        wanted = {"cell": job.fingerprint, "task": task, "student": student}
        answered[task] = answer_items(decoder, measuring(job, task), task, part=part, wanted=wanted)
    if decoder is None or (job.cell.method == TEACHER and job.config.teacher.only_tells):
        return answered, []
    rows = [line for task, source in job.references.items() for line in closeness(decoder, source, task)]
    return answered, rows


def verdicts(job: CellJob, answered: Answers) -> list[Line]:
    """One line per item, with shares of its answers."""
    return [
        {
            "measured": task,
            "item": several[0]["id"],
            **{k: mean(int(answer[k]) for answer in several) for k in ("correct", "extracted", "ended")},
        }
        for task, given in answered.items()
        for several in by_item(given)
    ]


def items_of(config: TransferConfig, task: str) -> list[Line]:
    """Items of one task.

    Raises:
        DataError: there are none, or two have one id.
    """
    rows = task_rows(config, task)
    if not rows:
        raise DataError(
            f"tasks.{task}: {config.evaluation.tasks} has no items of task {task!r}; give the task the name that its items carry."
        )
    # Cells are compared item by item.
    ids = Counter(row.get("id", number) for number, row in enumerate(rows))
    name, times = ids.most_common(1)[0]
    if times > 1:
        raise DataError(
            f"{config.evaluation.tasks}: expected items of task {task!r} with an id each of its own, got {name!r} {times} times; "
            "number them, or take the ids out."
        )
    return rows


def closeness(decoder: Decoder, reference: Source, task: str) -> list[Line]:
    """One line per held-out row: its supervised tokens and their mean KL, top-1 agreement and NLL."""
    inputs = inputs_of(reference)
    if not inputs.heldout:
        return []
    share_vocabulary(inputs.vocabulary, decoder)
    lines: dict[int, Line] = {}
    for batch, _, figures, _ in heldout_batches(decoder, prepared_of(reference), task):
        counts = [inputs.heldout[n].supervised for n in batch]
        means = {
            name: [float(part.double().mean()) for part in figures[key].split(counts)]
            for name, key in (("kl", "kl"), ("top1", "top1"), ("nll", "nll_student"))
        }
        for at, number in enumerate(batch):
            values = {name: round(parts[at], 6) for name, parts in means.items()}
            lines[number] = {"measured": task, "row": number, "tokens": counts[at], **values}
    return [lines[n] for n in sorted(lines)]
