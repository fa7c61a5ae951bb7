"""Look before anything expensive: do the models go together, what is supervised, what will it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from semalign.config import TransferConfig
from semalign.data import render_example, templates_agree
from semalign.data.drawing import split_rows
from semalign.data.inputs import Inputs, is_to_answer, load_inputs
from semalign.data.kinds import CONVERSATIONS, row_kind
from semalign.data.samples import lines_of
from semalign.errors import CacheError
from semalign.estimate.cautions import cautions
from semalign.estimate.cost import estimate
from semalign.estimate.patch import Patch, is_patchable, patch_rows
from semalign.estimate.probe import Costs, Shown, probe_student, probe_teacher, probe_told
from semalign.evaluation.readiness import check_evaluation
from semalign.maths.bases import apply_map, gram, semantic_map, spectrum
from semalign.maths.similarity import mean_cosine
from semalign.methods import resolve
from semalign.models.finding import load_tokenizer
from semalign.models.head import Head
from semalign.run.folder import RunFolder
from semalign.run.meter import free_memory
from semalign.signals.maps import head_maps
from semalign.signals.plan import Plan, read_plan
from semalign.signals.request import PREFIX_ERROR, Request, check_teacher, own_name, request_of, teacher_name
from semalign.steps.cache import error_figures
from semalign.steps.generate import check_prompts
from semalign.steps.opening import changes, check_start, refuse_another
from semalign.steps.pair import pair_layers


def check(config: TransferConfig, console: Console) -> dict[str, Any]:
    """Print and return the findings; raises the error that the run itself would meet."""
    jail = check_evaluation(config)
    check_start(config)
    rows = split_rows(config.data)[0]
    check_prompts(config, rows)
    run = RunFolder(Path(config.output_dir))
    refuse_another(config, run)
    inputs = load_inputs(config, identified=False)
    check_teacher(config, inputs.teacher)
    plan, is_provisional = _plan(config, inputs, run)
    first = rows[:8]
    agree = templates_agree(load_tokenizer(config.teacher), inputs.tokenizer, first)
    asks_first = is_to_answer(config.data, first[0])
    _print_rows(config, inputs, agree=agree, asks_first=asks_first, console=console)
    if jail is not None:
        console.print(f"generated code runs in: {jail}")
    request, wanted = request_of(config, plan)
    interfaces = request.interfaces or (("block",) if inputs.teacher.has_layers else ())
    shown = replace(request, interfaces=interfaces, teacher_output=True)
    costs = Costs()
    student = probe_student(config, inputs, plan, shown, costs)
    with costs.clock("collect"):
        free_memory()
    patch, seen, teacher, drift, carried = None, [], None, None, None
    if is_patchable(resolve(config.recipe)) and not asks_first:
        parts = patch_rows(inputs, costs)
        # Of one row there is nothing to fit on.
        patch = Patch(config, inputs, plan, parts) if parts.fitted else None
    if config.teacher.only_tells:
        drift, carried = probe_told(config, inputs, costs)
    else:
        teacher = probe_teacher(
            config,
            inputs,
            shown,
            student,
            costs,
            lambda t: seen.append(patch.of_teacher(t)) if patch else None,
        )
    models = {"student": student} if teacher is None else {"teacher": teacher, "student": student}
    with costs.clock("collect"):
        free_memory()
    found: dict[str, Any] = {
        **inputs.counts(),
        "jail": None if jail is None else jail.as_json(),
        "shared_vocabulary": inputs.vocabulary,
        "templates_agree": agree,
        "pairs": [p.as_json() for p in plan.pairs],
        "pairs_are_provisional": is_provisional,
        "heads": {name: _spectrum(model.head) for name, model in models.items()},
        "pair_figures": []
        if teacher is None
        else _figures(teacher, student, shown, wanted or [("semantic", i) for i in interfaces]),
        "served_drift": drift if config.teacher.server.url else None,
        "carried": carried,
        "patch": patch.figures(inputs.load_student(), *seen[0]) if patch else [],
        "prefix_error": _prefix_error(student),
        "cautions": cautions(
            config,
            {name: model.head.weight_VD for name, model in models.items()},
            has_prompts=all(row_kind(row) in CONVERSATIONS for row in first),
        ),
        "estimate": estimate(config, inputs, plan, costs),
    }
    _print(found, console)
    return found


def _print_rows(
    config: TransferConfig, inputs: Inputs, *, agree: bool, asks_first: bool, console: Console
) -> None:
    """How many rows and tokens there are, what both models make of them, and one row."""
    console.rule("[bold]rows", align="left")
    counts = inputs.counts()
    supervised = counts["supervised_tokens"]
    console.print(
        f"{len(inputs.train)} training rows, {supervised} supervised tokens, {len(inputs.heldout)} held-out rows"
    )
    for line in lines_of(counts):
        console.print(line, style="red")
    if len(inputs.sources) > 1:
        _print_sources(inputs.sources, console)
    if inputs.lexicons is None:
        console.print(
            f"vocabulary: the first {inputs.vocabulary} ids are shared; chat templates {'agree' if agree else 'DIFFER, the student’s is used'}"
        )
    else:
        console.print("vocabulary: the teacher reads the rows through its own tokenizer and chat template")
    if config.data.is_generated:
        console.print(
            "no model has answered the prompts yet: this estimate uses the given answers in the place of its own, one a prompt, or "
            "data.max_new_tokens tokens where there is none, and leaves out the time of generating"
        )
    if not asks_first:
        console.print("one row, supervised part in brackets:")
        example = render_example(inputs.train[0], inputs.tokenizer)
        console.print(example, markup=False, highlight=False, style="dim")


def _print_sources(sources: dict[str, dict[str, Any]], console: Console) -> None:
    table = Table("dataset", "weight", "holds", "training rows", "held-out rows")
    for name, s in sources.items():
        table.add_row(name, f"{s['weight']:.3f}", *(str(s[key]) for key in ("available", "train", "heldout")))
    console.print(table)


def _plan(config: TransferConfig, inputs: Inputs, run: RunFolder) -> tuple[Plan, bool]:
    is_for_another = any(line.startswith(("pairing.", "recipe.")) for line in changes(config, run))
    if run.pairs.exists() and not is_for_another:
        return read_plan(run, (inputs.teacher.layers, inputs.student.layers)), False
    # Attribution and matching have not run: any layer may win, so the deepest stand for the chosen.
    options = replace(
        config.pairing, match="depth", selection="all" if config.pairing.selection == "all" else "last"
    )
    pairs = pair_layers([], inputs.teacher.layers, inputs.student.layers, options)
    most = min(options.heads, inputs.teacher.heads, inputs.student.heads)
    heads = tuple(
        replace(p, fraction=0.0, teacher_head=n, student_head=n) for p in pairs for n in range(1, most + 1)
    )
    return Plan(tuple(pairs), tuple(p.student for p in pairs), heads), (
        config.pairing.selection == "attribution" or config.pairing.match != "depth"
    )


def _prefix_error(student: Shown) -> dict[str, float] | None:
    records = [*student.typical, *student.longest]
    errors = [record[PREFIX_ERROR] for record in records if PREFIX_ERROR in record]
    return error_figures(errors) if errors else None


def _spectrum(head: Head) -> dict[str, Any]:
    found = spectrum(gram(head.weight_VD))
    return {"width": head.weight_VD.shape[1], "rank": found.rank, "condition": round(found.condition, 1)}


def _figures(
    teacher: Shown, student: Shown, request: Request, wanted: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Per pair: recomposition of the teacher's activations on its own bases, and the mapped target's cosine to the student."""
    if not wanted:
        return []
    maps = head_maps(
        teacher.head, student.head, (teacher.norm, student.norm), [("semantic", ""), ("logit", "")]
    )
    own_map = semantic_map(teacher.head.weight_VD, teacher.head.weight_VD)
    lines = []
    for interface in sorted({i for _, i in wanted}):
        for pair in request.at(interface):
            theirs = torch.cat([r[teacher_name(interface, pair.place)] for r in teacher.typical]).float()
            own = torch.cat([r[own_name(interface, pair.place)] for r in student.typical]).float()
            line = {
                "pair": pair.label,
                "interface": interface,
                "recomposition": mean_cosine(apply_map(theirs, own_map, normalize=True), theirs),
            }
            for name, matrix in maps.items():
                line[name] = mean_cosine(apply_map(theirs, matrix, normalize=name == "semantic"), own)
            lines.append(line)
    return lines


def _print_patch(lines: Sequence[dict[str, Any]], console: Console) -> None:
    """What each target does in the student's own stream, and what follows for the layer loss."""
    console.rule("[bold]patch test", align="left")
    console.print(
        f"KL to the teacher with each target put into the untouched student's stream ({lines[0]['rows']} rows, 95% intervals):"
    )
    table = Table("pair", "untouched", "with the target", "change", "the student is")
    for line in lines:
        change = f"{line['change']:+.3f}"
        if line["low"] is not None:
            change += f" [{line['low']:+.3f}, {line['high']:+.3f}]"
        table.add_row(line["pair"], f"{line['kl']:.3f}", f"{line['patched']:.3f}", change, line["verdict"])
    console.print(table)
    nearer = [line["pair"] for line in lines if line["verdict"] == "nearer"]
    if len(nearer) < len(lines):
        which = f"Beyond chance, {', '.join(nearer)} alone brings" if nearer else "No target brings"
        console.print(
            f"{which} the student nearer to its teacher. Reaching the other targets can at best keep it from forgetting; "
            "recipe.name: aligned_output leaves the layer loss out.",
            style="yellow",
        )


def _print(found: dict[str, Any], console: Console) -> None:
    console.rule("[bold]heads and pairs", align="left")
    for name, head in found["heads"].items():
        console.print(
            f"{name}: head rank {head['rank']} of {head['width']}, condition number {head['condition']}"
        )
    if (drift := found["served_drift"]) is not None:
        console.print(
            f"the teacher's server tells the same twice, within {drift:.2g} nats, and reads the student's tokens"
        )
    if (carried := found["carried"]) is not None:
        console.print(
            f"another tokenizer: {carried['exact_tokens']:.0%} of the answers' tokens are tokens of the teacher's too, and "
            f"{carried['carried_mass']:.0%} of its probability can be carried to the student's"
        )
    if found["pairs_are_provisional"]:
        console.print("pairs have not been chosen yet: the deepest layers at equal depth stand for them")
    table = Table("pair", "interface", "recomposition", "semantic", "logit")
    for line in found["pair_figures"]:
        table.add_row(
            line["pair"],
            line["interface"],
            *(f"{line[k]:.3f}" for k in ("recomposition", "semantic", "logit")),
        )
    if found["pair_figures"]:
        console.print(table)
    if found["patch"]:
        _print_patch(found["patch"], console)
    console.rule("[bold]cost", align="left")
    e = found["estimate"]
    gib = 2**30
    if (error := found["prefix_error"]) is not None:
        console.print(
            f"eight-bit prefix streams: relative error {error['mean']:.2%} a token on average, {error['worst']:.2%} at worst"
        )
    console.print(
        f"cache {e['cache_bytes'] / 2**20:.1f} MiB of {e['free_bytes'] / gib:.0f} GiB free; peak memory about {e['peak_bytes'] / gib:.1f} GiB"
        + (f", {e['peak_gpu_bytes'] / gib:.1f} GiB on the GPU" if "peak_gpu_bytes" in e else "")
    )
    console.print(
        "about "
        + ", ".join(f"{s:.0f} s to {step}" for step, s in e["seconds"].items())
        + " (evaluation apart)"
    )
    for sentence in found["cautions"]:
        console.print(sentence, style="yellow")
    if e["disk_bytes"] > e["free_bytes"]:
        raise CacheError(
            f"output_dir: the cache needs about {e['disk_bytes']} bytes, {e['free_bytes']} are free; free space or lower data.max_rows."
        )
