"""What a student starts from where that is made of the teacher's weights, written before the training and kept."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semalign.config import TransferConfig
from semalign.data.inputs import Inputs
from semalign.methods import starts
from semalign.methods.recipe import Recipe
from semalign.models.decoder import Decoder
from semalign.run import ranks, results
from semalign.run.files import Record, json_line, read_json, read_tensors, write_atomic, write_tensors
from semalign.run.folder import is_done, save_result
from semalign.run.meter import free_memory


def make_start(
    config: TransferConfig,
    inputs: Inputs,
    recipe: Recipe,
    student: Decoder,
    folder: Path,
    wanted: Mapping[str, Any],
) -> tuple[Record, dict[str, Any]]:
    """start.safetensors and start.json in the training's folder; a finished start is read, not made again.

    Returns its tensors and what train.json says of it: start_seconds and, where the start was itself trained, its
    steps and last loss. The teacher is gone from memory when this returns.
    """
    if recipe.start not in starts():
        return {}, {}
    tensors, facts = folder / "start.safetensors", folder / "start.json"
    if ranks.is_main() and not is_done(facts, wanted):
        begin = time.perf_counter()
        teacher = inputs.load_teacher()
        made, found = starts()[recipe.start].make(teacher, student, inputs.train, config, recipe)
        write_tensors(tensors, made)
        found = found | {"start_seconds": round(time.perf_counter() - begin, 3)}
        save_result(facts, wanted, found, [tensors])
        del teacher, made
        free_memory()
    ranks.wait()
    found = read_json(facts, "train", results.Start)
    told = {"start_seconds": found["start_seconds"]}
    if losses := found.get("losses"):
        lines = "".join(json_line({"step": n, "loss": loss}) for n, loss in enumerate(losses, 1))
        if ranks.is_main():
            write_atomic(folder / "train.jsonl", lines)
        told |= {"steps": len(losses), "loss": losses[-1]}
    return read_tensors(tensors, "train"), told
