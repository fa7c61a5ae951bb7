"""Which targets could carry knowledge at all: the patch test for every map, on rows of a task and on text that the student knows.

    python scripts/targets.py                                        # embedded pair, its four tasks
    python scripts/targets.py --teacher DIR --student DIR --rows mbpp_train.jsonl --known mmlu_train.jsonl --pairs 14-12,28-24

Each target stands in for the untouched student's own activation at the supervised positions of rows that no map was fitted on. If
that brings the student nearer to its teacher, a layer loss that reaches the target may too. Maps:

* semantic, logit: from the two heads alone.
* ridge: fitted on training rows of the task.
* agreement_ridge: on the same rows, a position weighted by exp(-KL(p_T || p_S)), so that where the student does not know, it has
  no say in what the teacher's activation means.
* ridge on known text: fitted on other text, on which the student is good.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from semalign.config import TransferConfig
from semalign.config.parsing import build_config
from semalign.data import Sample
from semalign.data.inputs import Inputs, load_inputs
from semalign.data.samples import prepare
from semalign.embedded.corpus import student_chats
from semalign.embedded.splits import TASKS
from semalign.estimate.patch import Patch, PatchRows
from semalign.maths.pairing import LayerPair, depth_pairs
from semalign.signals.plan import Plan

KNOWN = "ridge on known text"
MAPS = ("semantic", "logit", "ridge", "agreement_ridge", KNOWN)


def figures(patch: Patch, known: Sequence[Sample]) -> dict[str, list[dict[str, Any]]]:
    """The lines of the patch test for every map, a line a pair."""
    rows = patch.rows
    teacher = patch.inputs.load_teacher()
    every = replace(patch, rows=PatchRows([*rows.fitted, *known], rows.tried))
    records, head, norm = every.of_teacher(teacher)
    del teacher
    student = patch.inputs.load_student()
    cut, end = len(rows.fitted), len(every.rows.fitted)
    on_known = [*records[cut:end], *records[end:]], PatchRows(list(known), rows.tried)
    on_own = [*records[:cut], *records[end:]], rows
    found = {}
    for label in MAPS:
        signals, chosen = on_known if label == KNOWN else on_own
        changes: dict[str, Any] = {"map": label.split()[0]}
        recipe = replace(patch.config.recipe, **changes)
        tried = replace(patch, config=replace(patch.config, recipe=recipe), rows=chosen)
        found[label] = tried.figures(student, signals, head, norm)
    return found


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
    parts = {"data": data, "recipe": {"name": "aligned"}, "output_dir": "unused"}
    return build_config(models | parts, Path())


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
        lines = figures(patch, known)
        first = lines[MAPS[0]][0]
        title = f"{label}: KL to the teacher, untouched {first['kl']:.3f} ({first['rows']} rows)"
        table = Table("pair", *MAPS, title=title)
        for pair, *cells in zip(pairs, *lines.values(), strict=True):
            table.add_row(
                pair.label,
                *(
                    f"{c['patched']:.3f} ({c['change']:+.3f} [{c['low']:+.3f}, {c['high']:+.3f}])"
                    for c in cells
                ),
            )
        console.print(table)


if __name__ == "__main__":
    main()
