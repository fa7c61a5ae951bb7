"""Step 5: the same measurements for the untouched student, the trained one, every baseline and the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semalign.config import ModelConfig, TransferConfig, decisive
from semalign.data.drawing import task_rows
from semalign.errors import ConfigError
from semalign.evaluation.answers import answer_items, graded_again
from semalign.evaluation.harness import harness_figures
from semalign.evaluation.heldout import heldout_figures
from semalign.evaluation.summary import (
    add_answers,
    store_answers,
    stored_answers,
    student_files,
    summarise,
    trained_model,
    trainings,
)
from semalign.evaluation.tokens import token_view
from semalign.models.decoder import Decoder, share_vocabulary
from semalign.models.loading import load
from semalign.run.files import hash_of, read_json
from semalign.run.folder import RunFolder, check_files, fingerprint, is_done, save_result
from semalign.run.meter import free_memory, measured
from semalign.signals.prepared import Prepared


def evaluate(prepared: Prepared) -> None:
    """Write metrics.json, and answers.jsonl with every answer."""
    config, run = prepared.config, prepared.run
    folders = trainings(config, run)
    trained = {n: read_json(f / "train.json", "train") for n, f in folders.items()}
    wanted = fingerprint(
        inputs=prepared.inputs.fingerprint,
        evaluation=decisive(config.evaluation),
        items=hash_of(task_rows(config)),
        students={n: found["fingerprint"] for n, found in trained.items()},
        weights={n: hash_of(student_files(found)) for n, found in trained.items()},
    )
    if is_done(run.metrics, wanted, (run.answers.name,)):
        return
    for folder in folders.values():
        check_files(folder / "train.json", "train")
    models = {"before": config.student}
    models |= {n: trained_model(config.student, f) for n, f in folders.items()}
    result: dict[str, Any] = {}
    with measured(result):
        found = {
            name: _measure(name, model, prepared, wanted | {"model": name}) for name, model in models.items()
        }
        if config.evaluation.tasks or config.evaluation.harness:
            teacher = None if config.teacher.server.url else load(config.teacher, needs_layers=False)
            found["teacher"] = _outcomes(teacher, prepared, wanted | {"model": "teacher"})
    result |= summarise(prepared, found)
    answers = {name: f["answers"] for name, f in found.items() if "answers" in f}
    store_answers(run.answers, answers)
    save_result(run.metrics, wanted, result, [run.answers] if answers else [])
    for name in found:
        _part(run, name).unlink(missing_ok=True)


def regrade(config: TransferConfig, run: RunFolder) -> list[str]:
    """Grade the stored answers of a finished run again, by the present items and checkers; no model is loaded.

    Returns:
        A sentence about each model whose verdicts changed.

    Raises:
        CacheError: the run is not evaluated, or a file of it is damaged.
        DataError: its answers are to other items.
    """
    if config.evaluation.tasks is None:
        raise ConfigError(
            "evaluation.tasks: expected the items whose answers are to be graded again, got null; give their file."
        )
    metrics = check_files(run.metrics, "evaluate", [run.answers.name])
    old, new, changes = stored_answers(run.answers), {}, []
    for name, given in old.items():
        new[name] = graded_again(config, given)
        gained = sum(b["correct"] > a["correct"] for a, b in zip(given, new[name], strict=True))
        lost = sum(b["correct"] < a["correct"] for a, b in zip(given, new[name], strict=True))
        if gained or lost:
            changes.append(f"{name}: {gained} more and {lost} fewer answers are right")
    wanted = metrics.pop("fingerprint") | {"items": hash_of(task_rows(config))}
    add_answers(metrics, new)
    store_answers(run.answers, new)
    files = [run.root / name for name in metrics.pop("files")]
    save_result(run.metrics, wanted, metrics, [path for path in files if path.exists()])
    return changes


def _part(run: RunFolder, name: str) -> Path:
    """A model's answers as long as the step is not done."""
    return run.root / f"answers-{name}.part"


def _measure(name: str, model: ModelConfig, prepared: Prepared, wanted: Mapping[str, Any]) -> dict[str, Any]:
    decoder, inputs = load(model), prepared.inputs
    share_vocabulary(inputs.vocabulary, decoder)
    found: dict[str, Any] = {}
    if inputs.heldout:
        found |= heldout_figures(decoder, prepared, name)
        if name in ("before", "after"):
            found["token_view"] = token_view(decoder, prepared, name)
    found |= _outcomes(decoder, prepared, wanted)
    del decoder
    free_memory()
    return found


def _outcomes(decoder: Decoder | None, prepared: Prepared, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What a model, or the teacher's server (None), answers: to the run's own items, and in the harness."""
    found: dict[str, Any] = {}
    config = prepared.config
    if config.evaluation.tasks:
        part = _part(prepared.run, wanted["model"])
        found["answers"] = answer_items(decoder, config, part=part, wanted=wanted)
    if config.evaluation.harness and decoder is not None:
        found["harness"] = harness_figures(decoder, config.evaluation)
    return found
