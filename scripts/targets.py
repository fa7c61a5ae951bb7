"""Which targets could carry knowledge at all: the patch test for every map, on rows of a task and on text that the student knows.

    python scripts/targets.py                                        # embedded pair, its four tasks
    python scripts/targets.py --teacher DIR --student DIR --rows mbpp_train.jsonl --known mmlu_train.jsonl --pairs 14-12,28-24

Each target stands in for the untouched student's own activation at the supervised positions of rows that no map was fitted on. If
that brings the student nearer to its teacher, a layer loss that reaches the target may too. Maps:

* semantic, logit: from the two heads alone.
* ridge, own rows: fitted on training rows of the task.
* ridge, agreeing: on the same rows, a position weighted by exp(-KL(p_T || p_S)), so that where the student does not know, it has
  no say in what the teacher's activation means.
* ridge, known text: fitted on other text, on which the student is good.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from semalign.config import TransferConfig
from semalign.data import Sample
from semalign.data.inputs import Inputs, load_inputs
from semalign.data.samples import prepare
from semalign.embedded.corpus import student_chats
from semalign.embedded.splits import TASKS
from semalign.estimate.patch import Patch, PatchRows, compared
from semalign.maths.pairing import LayerPair, depth_pairs
from semalign.maths.regression import RidgeFit
from semalign.models.decoder import Decoder
from semalign.models.head import Head
from semalign.parsing import build_config
from semalign.run.files import Record
from semalign.signals.maps import Maps, head_maps, solved
from semalign.signals.passes import student_signals
from semalign.signals.plan import Plan
from semalign.signals.request import own_name, teacher_name

MAPS = ("semantic", "logit", "ridge, own rows", "ridge, agreeing", "ridge, known text")
Found = dict[str, Any]


def fitted(
    key: str,
    records: Sequence[tuple[Record, Record]],
    pair: LayerPair,
    weights: Sequence[torch.Tensor] | None,
) -> Maps:
    """A ridge map on (teacher, student) records, its penalty chosen by two halves of the rows."""
    theirs, ours = teacher_name("block", pair.place), own_name("block", pair.place)
    first = records[0]
    halves = [RidgeFit(first[0][theirs].shape[1], first[1][ours].shape[1]) for _ in range(2)]
    for number, (t, s) in enumerate(records):
        halves[number % 2].add(
            t[theirs].float(), s[ours].float(), None if weights is None else weights[number]
        )
    matrix, bias = solved("ridge", *halves, None)
    return Maps({key: matrix, f"{key}.bias": bias})


def figures(patch: Patch, known: Sequence[Sample], console: Console) -> Iterator[Found]:
    """One line a pair and map."""
    rows = patch.rows
    every = replace(patch, rows=PatchRows([*rows.fitted, *known], rows.tried))
    teacher = patch.inputs.load_teacher()
    records, head, norm = every.of_teacher(teacher)
    del teacher
    student = patch.inputs.load_student()
    own = [r for s in every.rows.fitted for r in student_signals(student, [s], patch.request)]
    cut, end = len(rows.fitted), len(every.rows.fitted)
    # How far the student is from its teacher at each position that a map is fitted on.
    apart = [patch.kl_of(student, head, s, r) for s, r in zip(rows.fitted, records[:cut], strict=True)]
    agreement = [(-kl_N).exp() for kl_N in apart]
    tried = list(zip(rows.tried, records[end:], strict=True))
    before = [float(patch.kl_of(student, head, s, r).mean()) for s, r in tried]
    console.print(f"agreement of the fitted rows: {float(torch.cat(agreement).mean()):.3f}")
    own_pairs, known_pairs = (
        list(zip(records[a:b], own[a:b], strict=True)) for a, b in ((0, cut), (cut, end))
    )
    for pair in patch.plan.pairs:
        key = f"ridge.block.{pair.place}"
        from_heads = Maps(
            head_maps(head, student.head(), (norm, student.norm_weight()), [("semantic", ""), ("logit", "")])
        )
        made = {
            "semantic": from_heads,
            "logit": from_heads,
            "ridge, own rows": fitted(key, own_pairs, pair, None),
            "ridge, agreeing": fitted(key, own_pairs, pair, agreement),
        } | ({"ridge, known text": fitted(key, known_pairs, pair, None)} if known else {})
        for label, maps in made.items():
            name = label.split(",")[0]
            after = [
                after_of(patch, student, head, s, r, pair, maps, name, keeps_length=name == "semantic")
                for s, r in tried
            ]
            yield {"pair": pair.label, "map": label} | compared(before, after)


def after_of(
    patch: Patch,
    student: Decoder,
    head: Head,
    row: Sample,
    record: Record,
    pair: LayerPair,
    maps: Maps,
    name: str,
    *,
    keeps_length: bool,
) -> float:
    """KL a token of a row with a map's target in the student's stream."""
    target = maps.apply(record[teacher_name("block", pair.place)], name, "block", pair.place)
    return float(patch.kl_of(student, head, row, record, pair, target, keeps_length=keeps_length).mean())


def pairs_of(text: str | None, inputs: Inputs) -> list[LayerPair]:
    """`14-12,28-24`, or all student layers at equal depth."""
    if text:
        return [LayerPair(*map(int, one.split("-"))) for one in text.split(",")]
    return depth_pairs(range(1, inputs.student.layers + 1), inputs.teacher.layers, inputs.student.layers)


def known_rows(path: str | None, inputs: Inputs, count: int) -> list[Sample]:
    """Rows that the student is good at: of a file, or of what the embedded student was trained on."""
    if path:
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()][:count]
    else:
        # Some of its chats are single lines, which nobody answers.
        chats = (chat for chat in student_chats(2 * count, 1) if chat[-1]["role"] == "assistant")
        rows = [{"messages": chat} for chat in islice(chats, count)]
    return prepare(rows, inputs.tokenizer, max_length=512, source="known text")


def config_of(options: argparse.Namespace, rows: str, heldout: str | None) -> TransferConfig:
    """Models and rows alone."""
    models = {
        name: {"model_name_or_path": getattr(options, name), "dtype": "float32"}
        for name in ("teacher", "student")
    }
    data: dict[str, Any] = {"dataset_name": rows, "max_length": 512}
    data |= {"heldout_name": heldout} if heldout else {"heldout_rows": options.tried}
    return build_config({**models, "data": data, "output_dir": "unused"}, Path())


@torch.no_grad()
def main() -> None:
    """Parse, run, print a table for each set of rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", default="embedded:teacher")
    parser.add_argument("--student", default="embedded:student")
    parser.add_argument("--rows", help="a file of rows; without it the embedded pair's four tasks")
    parser.add_argument("--known", help="a file of rows that the student is good at")
    parser.add_argument("--pairs", help="teacher-student layers, as 14-12,28-24")
    parser.add_argument("--fitted", type=int, default=400)
    parser.add_argument("--tried", type=int, default=100)
    options = parser.parse_args()
    console = Console(width=150)
    sets = {t: (f"embedded:transfer/{t}", f"embedded:validation/{t}") for t in TASKS}
    for label, (rows, heldout) in ({options.rows: (options.rows, None)} if options.rows else sets).items():
        config = config_of(options, rows, heldout)
        inputs = load_inputs(config)
        pairs = tuple(pairs_of(options.pairs, inputs))
        chosen = PatchRows(inputs.train[: options.fitted], inputs.heldout[: options.tried])
        patch = Patch(config, inputs, Plan(pairs, tuple(p.student for p in pairs)), chosen)
        known = known_rows(options.known, inputs, options.fitted)
        lines = list(figures(patch, known, console))
        title = f"{label}: KL to the teacher, untouched {lines[0]['kl']:.3f} ({lines[0]['rows']} rows)"
        table = Table("pair", *MAPS, title=title)
        for pair in pairs:
            cells = {line["map"]: line for line in lines if line["pair"] == pair.label}
            table.add_row(
                pair.label,
                *(
                    f"{c['patched']:.3f} ({c['change']:+.3f} [{c['low']:+.3f}, {c['high']:+.3f}])"
                    for c in (cells[m] for m in MAPS)
                ),
            )
        console.print(table)


if __name__ == "__main__":
    main()
