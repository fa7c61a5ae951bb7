"""Look before anything expensive: do the models go together, what is supervised, what will it cost."""

from __future__ import annotations

import gc
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from semalign.config import ModelConfig, TransferConfig
from semalign.data import Sample, render_example, templates_agree
from semalign.errors import CacheError
from semalign.folder import RunFolder
from semalign.loading import load, load_tokenizer
from semalign.maths.bases import apply_map, gram, semantic_map, spectrum
from semalign.maths.pairing import LayerPair
from semalign.maths.similarity import mean_cosine
from semalign.models import Decoder, Head, share_vocabulary
from semalign.signals import Request, student_signals, teacher_signals
from semalign.steps.cache import head_maps, request_of
from semalign.steps.inputs import Inputs, load_inputs, rows_named
from semalign.steps.pair import Plan, pair_layers, read_plan

PROBE_ROWS = 8
RUNTIME_BYTES = 700 * 2**20  # Python, torch and transformers themselves


@dataclass(frozen=True)
class Probe:
    """What one model showed on a few rows."""

    records: list[dict[str, torch.Tensor]]
    head: Head
    norm: torch.Tensor
    seconds_per_token: float
    bytes: int
    layer_bytes_float32: int


def check(config: TransferConfig, console: Console) -> dict[str, Any]:
    """Print and return the findings; raises the error that the run itself would meet."""
    inputs = load_inputs(config)
    plan, is_provisional = _plan(config, inputs)
    console.rule("[bold]rows", align="left")
    agree = templates_agree(
        load_tokenizer(config.teacher),
        inputs.tokenizer,
        rows_named(config.data.dataset_name, config.data)[:8],
    )
    supervised = sum(s.supervised for s in inputs.train)
    console.print(
        f"{len(inputs.train)} training rows, {supervised} supervised tokens, {len(inputs.heldout)} held-out rows"
    )
    console.print(
        f"vocabulary: the first {inputs.vocabulary} ids are shared; chat templates {'agree' if agree else 'DIFFER, the student’s is used'}"
    )
    console.print("one row, supervised part in brackets:")
    console.print(
        render_example(inputs.train[0], inputs.tokenizer), markup=False, highlight=False, style="dim"
    )
    request, wanted = request_of(config, plan)
    request = replace(request, interfaces=request.interfaces or ("block",), teacher_output=True, top_k=0)
    rows = inputs.train[:PROBE_ROWS]
    student = _probe(config.student, inputs, rows, lambda m: student_signals(m, rows, request))
    gc.collect()
    teacher = _probe(
        config.teacher, inputs, rows, lambda m: teacher_signals(m, rows, request, [], student.head)
    )
    found: dict[str, Any] = {
        "training_rows": len(inputs.train),
        "supervised_tokens": supervised,
        "heldout_rows": len(inputs.heldout),
        "shared_vocabulary": inputs.vocabulary,
        "templates_agree": agree,
        "pairs": [vars(p) for p in plan.pairs],
        "pairs_are_provisional": is_provisional,
        "heads": {n: _spectrum(p.head) for n, p in (("teacher", teacher), ("student", student))},
        "pair_figures": _figures(teacher, student, request, wanted or [("semantic", request.interfaces[0])]),
        "estimate": estimate(config, inputs, plan, teacher, student),
    }
    _print(found, console)
    return found


def _plan(config: TransferConfig, inputs: Inputs) -> tuple[Plan, bool]:
    run = RunFolder(Path(config.output_dir))
    if run.pairs.exists():
        return read_plan(run), False
    # Attribution has not run: any layer may win, so the deepest stand for the chosen.
    options = replace(config.pairing, selection="all" if config.pairing.selection == "all" else "last")
    pairs = pair_layers([], inputs.teacher.num_hidden_layers, inputs.student.num_hidden_layers, options)
    return Plan(tuple(pairs), tuple(p.student for p in pairs)), config.pairing.selection == "attribution"


def _probe(
    config: ModelConfig,
    inputs: Inputs,
    rows: Sequence[Sample],
    signals: Callable[[Decoder], list[dict[str, torch.Tensor]]],
) -> Probe:
    """Load one model, run it on a few rows against the clock, and let it go."""
    model = load(config)
    share_vocabulary(inputs.vocabulary, model)
    start = time.perf_counter()
    records = signals(model)
    seconds = time.perf_counter() - start
    sizes = sum(p.numel() * p.element_size() for p in model.model.parameters())
    layer = 4 * sum(p.numel() for p in model.layers[-1].parameters())
    tokens = sum(len(s.input_ids) for s in rows)
    return Probe(
        records, model.head().detached(), model.norm_weight().clone(), seconds / tokens, sizes, layer
    )


def _spectrum(head: Head) -> dict[str, Any]:
    found = spectrum(gram(head.weight_VD))
    return {"width": head.weight_VD.shape[1], "rank": found.rank, "condition": round(found.condition, 1)}


def _figures(
    teacher: Probe, student: Probe, request: Request, wanted: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Per pair: recomposition of the teacher's activations on its own bases, and the mapped target's cosine to the student."""
    maps = head_maps(
        teacher.head, student.head, (teacher.norm, student.norm), [("semantic", ""), ("logit", "")]
    )
    own_map = semantic_map(teacher.head.weight_VD, teacher.head.weight_VD)
    lines = []
    for interface in sorted({i for _, i in wanted}):
        for pair in request.pairs:
            theirs = torch.cat(
                [r[f"positions.teacher.{interface}.{pair.student}"] for r in teacher.records]
            ).float()
            own = torch.cat([r[f"positions.own.{interface}.{pair.student}"] for r in student.records]).float()
            line = {
                "pair": _name(pair),
                "interface": interface,
                "recomposition": mean_cosine(apply_map(theirs, own_map, normalize=True), theirs),
            }
            for name, matrix in maps.items():
                line[name] = mean_cosine(apply_map(theirs, matrix, normalize=name == "semantic"), own)
            lines.append(line)
    return lines


def _name(pair: LayerPair) -> str:
    return f"{pair.teacher + pair.fraction:g} -> {pair.student}"


def estimate(
    config: TransferConfig, inputs: Inputs, plan: Plan, teacher: Probe, student: Probe
) -> dict[str, Any]:
    """Bytes and seconds from arithmetic and the probe's speed.

    Cache: prefix E a token; own state and target E a pair and position, teacher output D, 2 k entries of 13 bytes.
    Training memory: suffix weights in float32, and gradient and two Adam moments for the trained layers.
    """
    request, wanted = request_of(config, plan)
    wide, narrow = inputs.teacher.hidden_size, inputs.student.hidden_size
    size = torch.finfo(request.dtype).bits // 8
    tokens, positions = (
        sum(f(s) for s in inputs.train) for f in (lambda s: len(s.input_ids), lambda s: s.supervised)
    )
    held = sum(s.supervised for s in inputs.heldout)
    pairs = len(request.pairs)
    own = pairs * len(request.interfaces) * narrow * size + (
        narrow * size + 8 * request.top_k + 4 if request.top_k else 0
    )
    top = 2 * request.top_k * 13
    target = pairs * len(wanted) * narrow * size
    output = wide * size
    cache = tokens * narrow * size * (request.cut is not None) + positions * (
        own + top + target + output * request.teacher_output
    )
    cache += held * (target + output)
    suffix = inputs.student.num_hidden_layers - plan.cut
    trained = len(plan.trained_layers) * student.layer_bytes_float32
    epochs = (
        config.train.num_train_epochs
        if config.train.max_steps < 0
        else (
            config.train.max_steps
            * config.train.per_device_train_batch_size
            * config.train.gradient_accumulation_steps
            / len(inputs.train)
        )
    )
    share = suffix / inputs.student.num_hidden_layers
    trainings = 1 + len(config.evaluation.baselines)
    forward = {"teacher": teacher.seconds_per_token, "student": student.seconds_per_token}
    attributed = sum(len(s.input_ids) for s in inputs.train[: config.attribution.rows])
    held_tokens = sum(len(s.input_ids) for s in inputs.heldout)
    return {
        "cache_bytes": int(cache),
        "free_bytes": shutil.disk_usage(_existing(Path(config.output_dir))).free,
        "peak_bytes": int(
            RUNTIME_BYTES
            + max(
                teacher.bytes + student.head.weight_VD.nbytes,
                student.bytes + suffix * student.layer_bytes_float32 + 3 * trained,
            )
        ),
        "seconds": {
            "attribute": math.ceil(3 * attributed * forward["teacher"]),
            "cache": math.ceil((tokens + held_tokens) * forward["teacher"] + tokens * forward["student"]),
            "train": math.ceil(3 * trainings * epochs * tokens * forward["student"] * share),
        },
    }


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _print(found: dict[str, Any], console: Console) -> None:
    console.rule("[bold]heads and pairs", align="left")
    for name, head in found["heads"].items():
        console.print(
            f"{name}: head rank {head['rank']} of {head['width']}, condition number {head['condition']}"
        )
    if found["pairs_are_provisional"]:
        console.print("attribution has not run yet: the deepest layers stand for the ones it will choose")
    table = Table("pair", "interface", "recomposition", "semantic", "logit")
    for line in found["pair_figures"]:
        table.add_row(
            line["pair"],
            line["interface"],
            *(f"{line[k]:.3f}" for k in ("recomposition", "semantic", "logit")),
        )
    console.print(table)
    console.rule("[bold]cost", align="left")
    e = found["estimate"]
    gib = 2**30
    console.print(
        f"cache {e['cache_bytes'] / 2**20:.1f} MiB of {e['free_bytes'] / gib:.0f} GiB free; peak memory about {e['peak_bytes'] / gib:.1f} GiB"
    )
    console.print(
        "about "
        + ", ".join(f"{s} s to {step}" for step, s in e["seconds"].items())
        + " (loading and evaluation apart)"
    )
    if e["cache_bytes"] > e["free_bytes"]:
        raise CacheError(
            f"output_dir: the cache needs about {e['cache_bytes']} bytes, {e['free_bytes']} are free; free space or lower data.max_rows."
        )
