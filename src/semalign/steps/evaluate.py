"""Step 5: the same measurements for the untouched student, the trained one, every baseline and the teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semalign.cache import read_json, read_tensors
from semalign.capture import Point
from semalign.config import ModelConfig, TransferConfig, to_dict
from semalign.data.chat import asked
from semalign.evaluation.generate import generate
from semalign.evaluation.harness import harness_figures
from semalign.evaluation.statistics import wilson_interval
from semalign.evaluation.tasks import check_answers
from semalign.folder import RunFolder, fingerprint, free_memory, hash_of, is_done, measured, save_result
from semalign.loading import load
from semalign.maths.similarity import gap_closed, kl_gap_closed, linear_cka, mean_cosine
from semalign.methods import resolve
from semalign.models import Decoder, share_vocabulary
from semalign.signals import layer_states
from semalign.steps.heldout import heldout_batches
from semalign.steps.inputs import Inputs, task_rows
from semalign.steps.pair import read_plan
from semalign.steps.tokens import teacher_view, token_view

SAMPLES_SHOWN = 3  # a task


def trainings(config: TransferConfig, run: RunFolder) -> dict[str, Path]:
    """Name -> folder of every trained student: the run's own is `after`, baselines have their names."""
    return {"after": run.training(), **{name: run.training(name) for name in config.evaluation.baselines}}


def trained_model(student: ModelConfig, folder: Path) -> ModelConfig:
    """The student that a training left in its folder, loaded as the untouched one is."""
    kernel = student.attn_implementation
    return ModelConfig(str(folder / "student"), dtype=student.dtype, attn_implementation=kernel)


def evaluate(config: TransferConfig, run: RunFolder, inputs: Inputs) -> None:
    """Write metrics.json."""
    folders = trainings(config, run)
    wanted = fingerprint(
        inputs=inputs.fingerprint,
        evaluation=to_dict(config.evaluation),
        items=hash_of(task_rows(config)),
        students={n: read_json(f / "train.json", "train")["fingerprint"] for n, f in folders.items()},
    )
    if is_done(run.metrics, wanted):
        return
    models = {"before": config.student}
    models |= {n: trained_model(config.student, f) for n, f in folders.items()}
    result: dict[str, Any] = {}
    with measured(result):
        measured_by_name = {
            name: _measure(name, model, config, run, inputs) for name, model in models.items()
        }
        if config.evaluation.tasks or config.evaluation.harness:
            measured_by_name["teacher"] = _outcomes(load(config.teacher), config)
    result |= summarise(config, run, inputs, measured_by_name)
    save_result(run.metrics, wanted, result)


def _measure(
    name: str, model: ModelConfig, config: TransferConfig, run: RunFolder, inputs: Inputs
) -> dict[str, Any]:
    decoder = load(model)
    share_vocabulary(inputs.vocabulary, decoder)
    found: dict[str, Any] = {}
    if inputs.heldout:
        found |= heldout_figures(decoder, config, run, inputs, name)
        if name in ("before", "after"):
            found["token_view"] = token_view(decoder, config, run, inputs, name)
    found |= _outcomes(decoder, config)
    del decoder
    free_memory()
    return found


def _outcomes(decoder: Decoder, config: TransferConfig) -> dict[str, Any]:
    """What a model answers: to the run's own items, and in the harness."""
    found: dict[str, Any] = {}
    if config.evaluation.tasks:
        found["answers"] = answer_items(decoder, config)
    if config.evaluation.harness:
        found["harness"] = harness_figures(decoder, config.evaluation)
    return found


def heldout_figures(
    decoder: Decoder, config: TransferConfig, run: RunFolder, inputs: Inputs, name: str
) -> dict[str, Any]:
    """Closeness to the teacher per token, alignment per pair, CKA between all layers, on the held-out rows."""
    plan, recipe = read_plan(run), resolve(config.recipe)
    is_aligned = recipe.needs_targets and recipe.map != "none"
    chosen = plan.at(recipe.interface) if is_aligned else ()
    points = {p: Point(p.student, recipe.interface, p.student_head) for p in chosen}
    tokens: dict[str, list[Tensor]] = {}
    pairs: dict[Any, list[tuple[Tensor, Tensor]]] = {p: [] for p in points}
    for _, stored, figures, found in heldout_batches(decoder, config, run, inputs, name, points.values()):
        for key, values in figures.items():
            tokens.setdefault(key, []).append(values)
        for pair, point in points.items():
            target = torch.cat(
                [r[f"positions.target.{recipe.map}.{recipe.interface}.{pair.place}"] for r in stored]
            )
            pairs[pair].append((target.float(), found[point]))
    figure = {key: torch.cat(parts) for key, parts in tokens.items()}
    return {
        "closeness": {
            "kl": float(figure["kl"].mean()),
            "top1_agreement": float(figure["top1"].mean()),
            "nll": float(figure["nll_student"].mean()),
        },
        "teacher_nll": float(figure["nll_teacher"].mean()),
        "tokens": len(figure["kl"]),
        "alignment": {
            p.place: mean_cosine(*(torch.cat(x) for x in zip(*v, strict=True))) for p, v in pairs.items()
        },
        "cka": _cka(decoder, config, run, inputs)
        if name in ("before", "after") and config.evaluation.cka_rows
        else None,
    }


def _cka(
    decoder: Decoder, config: TransferConfig, run: RunFolder, inputs: Inputs
) -> list[list[float]] | None:
    """Linear CKA of teacher layer (row) and student layer (column) streams; None where the cache has no teacher's."""
    path = run.targets / "cka.safetensors"
    if not path.exists():
        return None
    teacher = read_tensors(path)
    student = layer_states(decoder, inputs.heldout[: config.evaluation.cka_rows])
    rows, columns = len(teacher), len(student)
    # Both start at the first held-out row; the cache may have been made for another number of rows.
    n = min(len(teacher["layer.1"]), len(student["layer.1"]))
    return [
        [
            round(linear_cka(teacher[f"layer.{t}"][:n].float(), student[f"layer.{s}"][:n].float()), 4)
            for s in range(1, columns + 1)
        ]
        for t in range(1, rows + 1)
    ]


def answer_items(decoder: Decoder, config: TransferConfig, task: str | None = None) -> list[dict[str, Any]]:
    """Answers to the items of all tasks, or of one, with their verdicts, by greedy decoding."""
    rows, options = task_rows(config), config.evaluation
    rows = [row for row in rows if task in (None, row["task"])]
    prompts = [asked(row["messages"]) for row in rows]
    assert decoder.tokenizer is not None
    texts = generate(
        decoder.model,
        decoder.tokenizer,
        prompts,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        engine=options.engine,
    )
    verdicts = check_answers(rows, texts, allow_code_execution=options.allow_code_execution)
    return [
        {
            "task": row["task"],
            "prompt": prompt[-1]["content"],
            "gold": row["messages"][-1]["content"],
            "text": text,
        }
        | {"correct": v.correct, "extracted": v.extracted}
        for row, prompt, text, v in zip(rows, prompts, texts, verdicts, strict=True)
    ]


def summarise(
    config: TransferConfig, run: RunFolder, inputs: Inputs, found: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """metrics.json without its fingerprint: headline figures, baselines, tasks, closeness, alignment, CKA, costs."""
    tasks = _tasks(found)
    accuracy = {
        name: sum(t[name]["accuracy"] for t in tasks.values()) / len(tasks)
        for name, figures in found.items()
        if "answers" in figures
    }

    def closed(name: str) -> dict[str, float | None]:
        near = {n: f["closeness"]["kl"] for n, f in found.items() if "closeness" in f}
        return {
            # Where the teacher is not ahead there is no gap to close.
            "accuracy_gap_closed": gap_closed(accuracy["before"], accuracy[name], accuracy["teacher"])
            if accuracy and accuracy["before"] < accuracy["teacher"]
            else None,
            "kl_gap_closed": kl_gap_closed(near["before"], near[name]) if near else None,
        }

    results = {n: read_json(f / "train.json", "train") for n, f in trainings(config, run).items()}
    summary: dict[str, Any] = {"recipe": config.recipe.name, **closed("after")}
    summary["baselines"] = {
        n: closed(n) | {"train_seconds": results[n]["train_seconds"]} for n in config.evaluation.baselines
    }
    summary["train_seconds"] = results["after"]["train_seconds"]
    summary["movement"] = results["after"]["movement"]
    summary["accuracy"], summary["tasks"] = accuracy, tasks
    summary["harness"] = _harness(found)
    if inputs.heldout:
        summary |= _closeness(config, run, inputs, found)
        summary["tokens"] = [
            {k: row[k] for k in ("id", "prompt", "expected")}
            | {"teacher": {k: row[k] for k in ("top", "p")}}
            | {name: found[name]["token_view"][n] for name in ("before", "after")}
            for n, row in enumerate(teacher_view(config, run, inputs))
        ]
    summary["samples"] = _samples(found)
    return summary


def _tasks(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    answers = {name: f["answers"] for name, f in found.items() if "answers" in f}
    tasks: dict[str, Any] = {}
    for name, items in answers.items():
        for task in sorted({i["task"] for i in items}):
            chosen = [i for i in items if i["task"] == task]
            right = sum(i["correct"] for i in chosen)
            low, high = wilson_interval(right, len(chosen))
            entry = tasks.setdefault(task, {"n": len(chosen)})
            failures = sum(not i["extracted"] for i in chosen) / len(chosen)
            entry[name] = {
                "accuracy": right / len(chosen),
                "low": low,
                "high": high,
                "extraction_failures": failures,
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


def _closeness(
    config: TransferConfig, run: RunFolder, inputs: Inputs, found: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    recipe, plan = resolve(config.recipe), read_plan(run)
    before, after = found["before"], found["after"]
    closeness = {name: f["closeness"] for name, f in found.items() if "closeness" in f}
    alignment = [
        {"teacher": p.teacher + p.fraction, "student": p.student, "interface": recipe.interface, **p.heads}
        | {"before": before["alignment"][p.place], "after": after["alignment"][p.place]}
        for p in plan.at(recipe.interface)
        if p.place in before["alignment"]
    ]
    cka = {"before": before["cka"], "after": after["cka"]} if before["cka"] else None
    counts = {
        "rows": len(inputs.heldout),
        "tokens": before["tokens"],
        "teacher": {"nll": before["teacher_nll"]},
    }
    return {"closeness": counts | closeness, "alignment": alignment, "cka": cka}


def _samples(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A few answers per task side by side, those that changed first."""
    if "answers" not in found["before"]:
        return []
    rows = list(zip(*(found[n]["answers"] for n in ("teacher", "before", "after")), strict=True))
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
    metrics = read_json(run.metrics, "evaluate")
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
    results = {name: read_json(path, name) for name, path in files.items()}
    steps = [
        {"name": name}
        | {k: found[k] for k in ("seconds", "peak_rss_bytes", *({"peak_gpu_bytes"} & found.keys()))}
        for name, found in results.items()
    ]
    metrics["steps"] = steps
    metrics["wall_seconds"] = round(sum(s["seconds"] for s in steps), 3)
    metrics["peak_rss_bytes"] = max(s["peak_rss_bytes"] for s in steps)
    if on_gpu := [s["peak_gpu_bytes"] for s in steps if "peak_gpu_bytes" in s]:
        metrics["peak_gpu_bytes"] = max(on_gpu)
    wanted = metrics.pop("fingerprint")
    save_result(run.metrics, wanted, metrics)
    return metrics
