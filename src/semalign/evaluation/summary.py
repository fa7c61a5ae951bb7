"""metrics.json from what was measured of every model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from semalign.config import ModelConfig, TransferConfig
from semalign.evaluation.answers import Answer, by_item
from semalign.evaluation.statistics import interval_of_shares, mean_change
from semalign.evaluation.tokens import teacher_view
from semalign.maths.similarity import LEAST_KL, gap_closed, kl_gap_closed
from semalign.run import results
from semalign.run.files import json_line, read_json, read_lines, write_atomic
from semalign.run.folder import RunFolder, save_result
from semalign.run.metrics import Metrics
from semalign.signals.prepared import Prepared

SAMPLES_SHOWN = 3  # a task


def trainings(config: TransferConfig, run: RunFolder) -> dict[str, Path]:
    """Name -> folder of every trained student: the run's own is `after`, baselines have their names."""
    return {"after": run.training(), **{name: run.training(name) for name in config.evaluation.baselines}}


def trained_model(student: ModelConfig, folder: Path) -> ModelConfig:
    """The student that a training left in its folder, loaded as the untouched one is."""
    return ModelConfig(
        str(folder / "student"),
        dtype=student.dtype,
        attn_implementation=student.attn_implementation,
        trust_remote_code=student.trust_remote_code,
        chat_template_kwargs=student.chat_template_kwargs,
    )


def student_files(trained: Mapping[str, Any]) -> dict[str, Any]:
    """The student's files among those that its training records."""
    return {name: entry for name, entry in trained.get("files", {}).items() if name.startswith("student/")}


def summarise(prepared: Prepared, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """metrics.json without its fingerprint: headline figures, baselines, tasks, closeness, alignment, CKA, costs."""
    config = prepared.config
    near = {name: f["closeness"]["kl"] for name, f in found.items() if "closeness" in f}
    trained = {
        n: read_json(f / "train.json", "train", results.Trained)
        for n, f in trainings(config, prepared.run).items()
    }
    summary: dict[str, Any] = {"recipe": config.recipe.name} | _no_gap(prepared, found)
    for name, training in trained.items():
        entry = summary if name == "after" else summary.setdefault("baselines", {}).setdefault(name, {})
        entry["kl_gap_closed"] = kl_gap_closed(near["before"], near[name]) if near else None
        entry["train_seconds"] = training["train_seconds"]
    summary.setdefault("baselines", {})
    summary["movement"] = trained["after"]["movement"]
    summary["harness"] = _harness(found)
    add_answers(summary, {name: f["answers"] for name, f in found.items() if "answers" in f})
    if prepared.inputs.heldout:
        summary |= _closeness(prepared, found)
        summary["tokens"] = [
            {k: row[k] for k in ("id", "prompt", "expected")}
            | {"teacher": {k: row[k] for k in ("top", "p")}}
            | {name: found[name]["token_view"][n] for name in ("before", "after")}
            for n, row in enumerate(teacher_view(prepared))
        ]
    return summary


def add_answers(summary: dict[str, Any], answers: Mapping[str, Sequence[Answer]]) -> None:
    """Put what models' answers say into metrics: accuracy by model and task, shares of the gap closed, samples."""
    tasks = _tasks(answers)
    accuracy = {name: sum(task[name]["accuracy"] for task in tasks.values()) / len(tasks) for name in answers}
    # Where the teacher may be ahead by chance alone, any change could be any share of the gap.
    has_gap = bool(accuracy) and mean_change(_shares(answers["before"], answers["teacher"]))[1] > 0
    for name, entry in {"after": summary, **summary["baselines"]}.items():
        entry["accuracy_gap_closed"] = (
            gap_closed(accuracy["before"], accuracy[name], accuracy["teacher"]) if has_gap else None
        )
    summary |= {"accuracy": accuracy, "tasks": tasks, "samples": _samples(answers)}


def store_answers(path: Path, answers: Mapping[str, Sequence[Answer]]) -> None:
    """Write answers as JSON lines, each with its model's name; without any there is no file."""
    if not answers:
        path.unlink(missing_ok=True)
        return
    lines = [json_line({"model": name, **answer}) for name, given in answers.items() for answer in given]
    write_atomic(path, "".join(lines))


def stored_answers(path: Path) -> dict[str, list[Answer]]:
    """Model -> its answers, in the order of the items."""
    found: dict[str, list[Answer]] = {}
    for line in read_lines(path, "evaluate", results.Answer):
        found.setdefault(line.pop("model"), []).append(line)
    return found


def _no_gap(prepared: Prepared, found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Why the untouched student is no further from the teacher than rounding, where it is not."""
    known = prepared.inputs.fingerprint
    if "teacher" in known and known["teacher"] == known["student"]:
        return {"no_gap": "the teacher is the student"}
    before = found["before"].get("closeness")
    if before and before["kl"] < LEAST_KL:
        return {"no_gap": "the untouched student predicts as its teacher does"}
    return {}


def _shares(*models: Sequence[Answer]) -> list[list[list[float]]]:
    """For each task the models' shares of right answers, item by item."""
    tasks = sorted({answer["task"] for answer in models[0]})
    return [[_item_shares(_of(given, task)) for given in models] for task in tasks]


def _of(given: Sequence[Answer], task: str) -> list[Answer]:
    return [answer for answer in given if answer["task"] == task]


def _item_shares(given: Sequence[Answer]) -> list[float]:
    """Of the answers to each item the share that is right."""
    return [fmean(answer["correct"] for answer in several) for several in by_item(given)]


def _tasks(answers: Mapping[str, Sequence[Answer]]) -> dict[str, Any]:
    tasks: dict[str, Any] = {}
    for name, items in answers.items():
        for task in sorted({i["task"] for i in items}):
            chosen = _of(items, task)
            shares = _item_shares(chosen)
            low, high = interval_of_shares(shares, len(chosen))
            entry = tasks.setdefault(task, {"n": len(shares)})
            if len(chosen) > len(shares):
                entry["samples"] = len(chosen) // len(shares)
            failures = sum(not i["extracted"] for i in chosen) / len(chosen)
            entry[name] = {
                "accuracy": fmean(shares),
                "low": low,
                "high": high,
                "extraction_failures": failures,
                "ended": sum(i["ended"] for i in chosen) / len(chosen),
            }
    return tasks


def _harness(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry per task, metric and filter of the harness, with every model's value beside the others'."""
    entries: dict[tuple[str, str, str], dict[str, Any]] = {}
    for name, figures in found.items():
        for line in figures.get("harness", ()):
            key = line["task"], line["metric"], line["filter"]
            entry = entries.setdefault(key, {k: line[k] for k in ("task", "metric", "filter", "n")})
            entry[name] = {k: line[k] for k in ("value", "low", "high")}
    return list(entries.values())


def _closeness(prepared: Prepared, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    recipe, plan = prepared.recipe, prepared.plan
    before, after = found["before"], found["after"]
    closeness = {name: f["closeness"] for name, f in found.items() if "closeness" in f}
    alignment = [
        p.as_json()
        | {"interface": recipe.interface}
        | {"before": before["alignment"][p.place], "after": after["alignment"][p.place]}
        for p in plan.at(recipe.interface)
        if p.place in before["alignment"]
    ]
    cka = {"before": before["cka"], "after": after["cka"]} if before["cka"] else None
    counts = {
        "rows": len(prepared.inputs.heldout),
        "tokens": before["tokens"],
        "teacher": {"nll": before["teacher_nll"]},
    }
    # Of a teacher that only tells its likeliest tokens all others count as one.
    over = "told_tokens" if prepared.config.teacher.only_tells else "vocabulary"
    return {"closeness": counts | closeness, "kl_over": over, "alignment": alignment, "cka": cka}


def _samples(answers: Mapping[str, Sequence[Answer]]) -> list[dict[str, Any]]:
    """A few answers per task side by side, those that changed first."""
    if not answers:
        return []
    first = {n: [several[0] for several in by_item(answers[n])] for n in ("teacher", "before", "after")}
    rows = list(zip(*first.values(), strict=True))
    changed: Callable[[Any], tuple[bool, str]] = lambda r: (  # noqa: E731
        r[1]["correct"] == r[2]["correct"],
        hashlib.sha256(r[0]["prompt"].encode()).hexdigest(),
    )
    kept: list[dict[str, Any]] = []
    for task in sorted({r[0]["task"] for r in rows}):
        for teacher, before, after in sorted((r for r in rows if r[0]["task"] == task), key=changed)[
            :SAMPLES_SHOWN
        ]:
            three = {"teacher": teacher, "before": before, "after": after}
            kept.append(
                {k: teacher[k] for k in ("task", "prompt", "gold")}
                | {n: a["text"] for n, a in three.items()}
                | {"correct": {n: a["correct"] for n, a in three.items()}}
            )
    return kept


def add_costs(run: RunFolder, config: TransferConfig) -> dict[str, Any]:
    """Add each step's seconds and peak memory to metrics.json; the totals count every step once, baselines apart."""
    metrics = read_json(run.metrics, "evaluate", Metrics)
    generated = {"generate": run.generated} if config.data.is_generated else {}
    files = generated | {
        "attribute": run.scores,
        "pair": run.pairs,
        "cache": run.manifest,
        "train": run.root / "train.json",
    }
    files |= {f"train {n}": run.training(n) / "train.json" for n in config.evaluation.baselines} | {
        "evaluate": run.metrics
    }
    found = {
        name: read_json(path, name.split()[0], results.Costs)
        if path != run.pairs
        else read_json(path, name, may_be_edited=True)
        for name, path in files.items()
    }
    # Where the costs were added before, the peak in metrics.json is the run's, and evaluate's own stands among the steps.
    found |= {s["name"]: s for s in metrics.get("steps", ()) if s["name"] == "evaluate"}
    # A plan that was edited may no longer say what it cost.
    steps = [
        {"name": name}
        | {k: costs.get(k, 0) for k in ("seconds", "peak_rss_bytes", *({"peak_gpu_bytes"} & costs.keys()))}
        for name, costs in found.items()
    ]
    metrics["steps"] = steps
    metrics["wall_seconds"] = round(sum(s["seconds"] for s in steps), 3)
    metrics["peak_rss_bytes"] = max(s["peak_rss_bytes"] for s in steps)
    if on_gpu := [s["peak_gpu_bytes"] for s in steps if "peak_gpu_bytes" in s]:
        metrics["peak_gpu_bytes"] = max(on_gpu)
    wanted = metrics.pop("fingerprint")
    # What the figures and the report are made from; none of it makes measuring again necessary by itself.
    about = (*run.about(), run.answers, *files.values())
    made_from = [path for path in about if path != run.metrics and path.exists()]
    save_result(run.metrics, wanted, metrics, made_from)
    return metrics
