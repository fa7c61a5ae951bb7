"""Step 4: train the paired layers towards the cached signals; save a student that loads with plain transformers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from semalign.config import decisive
from semalign.methods.recipe import Recipe
from semalign.run import ranks, results
from semalign.run.files import read_json, say_once
from semalign.run.folder import fingerprint, is_done, save_result
from semalign.run.meter import Tries, free_memory, measured
from semalign.run.sums import SUMS, read_sums, write_sums
from semalign.signals.prepared import Prepared
from semalign.steps.rounds import Rounds
from semalign.training.stages import fit, trained_plan, with_recipe
from semalign.training.start import make_start
from semalign.training.student import add_deltas, movement, save_student, weights_of

OUTPUTS = ("student", "adapter", "train.jsonl", "start.json", "start.safetensors")
CARD = ("README.md", "LICENSE")
"""What the card writes beside the weights, from other files of the run."""


def train(prepared: Prepared, baseline: str | None = None) -> None:
    """Write student/, train.jsonl and train.json into the run folder, or into a baseline's own folder in it."""
    folder = prepared.run.training(baseline)
    train_student(prepared, prepared.recipes[baseline], folder, in_rounds=baseline is None)


def train_student(prepared: Prepared, recipe: Recipe, folder: Path, *, in_rounds: bool = True) -> None:
    """One student by one recipe, from the run's plan and cache into a folder; a finished one is kept.

    Args:
        in_rounds: whether it has the rounds that the config asks for; else it trains as long on the first round's rows.
    """
    config, inputs, stores = with_recipe(prepared.config, recipe), prepared.inputs, prepared.stores
    prepared = replace(prepared, config=config)
    optimisation = decisive(config.train)
    if config.train.rounds == 1:
        # Named only where it says something, so that trainings from before them stay valid.
        del optimisation["rounds"]
    wanted = fingerprint(
        cache=stores.fingerprint,
        recipe=decisive(recipe),
        **recipe.code,
        train=optimisation,
        seed=config.seed,
    )
    if ranks.from_main(lambda: is_done(folder / "train.json", wanted)):
        if ranks.is_main():
            _mend_sums(folder)
            _forget(folder)  # where it was stopped after its last word
        return
    # Checkpoints hold only for the batches that this many processes share.
    made_from = wanted | {"processes": ranks.world()} if ranks.world() > 1 else wanted
    if ranks.is_main():
        _forget_another(folder, made_from)
    ranks.wait()
    rounds = Rounds(prepared, recipe, folder, made_from, config.train.rounds if in_rounds else 1)
    result: dict[str, Any] = {}
    with measured(result, Tries(folder / "seconds.part", made_from) if ranks.is_main() else None):
        last, span = rounds.last()
        made_from = rounds.wanted(rounds.count, last)
        student = inputs.load_student()
        plan = trained_plan(prepared.plan, recipe, student.num_layers)
        before = {k: weights_of(student, k) for k in plan.trained_layers}
        start, made = make_start(config, inputs, recipe, student, folder, wanted)
        add_deltas(student, start)
        merged = student.model
        if recipe.trained == "none":
            result |= made | {"trained_parameters": 0, "train_seconds": 0.0}
        else:
            totals, merged = fit(last, recipe, student, folder, made_from, span, start)
            seconds = round(rounds.seconds_before + totals["train_seconds"], 3)
            result |= made | totals | {"train_seconds": seconds}
        if ranks.is_main():
            result["movement"] = movement(student, before)
            save_student(merged, inputs, config, folder / "student")
            write_sums(folder / "student")
        del student, merged
        free_memory()
    if ranks.is_main():
        outputs = [folder / name for name in OUTPUTS if (folder / name).exists()]
        save_result(folder / "train.json", wanted, result | {"processes": ranks.world()}, _files(outputs))
        _forget(folder)
        rounds.forget()
    ranks.wait()


def _files(outputs: list[Path]) -> list[Path]:
    """All files that training leaves, but for those that the card brings to them later."""
    every = [p for path in outputs for p in (path.rglob("*") if path.is_dir() else [path])]
    return [p for p in every if p.name not in (SUMS, *CARD)]


def _mend_sums(folder: Path) -> None:
    """Write the student's SHA256SUMS again where it does not say what its training recorded."""
    recorded = read_json(folder / "train.json", "train", results.Trained).get("files", {})
    known = {n.removeprefix("student/"): f["sha256"] for n, f in recorded.items() if n.startswith("student/")}
    if not known.items() <= read_sums(folder / "student").items():
        say_once(f"{folder / 'student' / SUMS}: damaged, or of another student; written again")
        write_sums(folder / "student", known)


def _forget_another(folder: Path, wanted: dict[str, Any]) -> None:
    """Drop the checkpoints of a training with other inputs; a resumed one must not start from them."""
    folder.mkdir(parents=True, exist_ok=True)
    if not is_done(folder / "training.json", wanted):
        _forget(folder)
        shutil.rmtree(folder / "rounds", ignore_errors=True)
        save_result(folder / "training.json", wanted, {})


def _forget(folder: Path) -> None:
    for part in (*folder.glob("checkpoint-*"), *folder.glob("stage-*")):
        shutil.rmtree(part)
    (folder / "training.json").unlink(missing_ok=True)
