"""Step 4: train the paired layers towards the cached signals; save a student that loads with plain transformers."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import PeftModel

from semalign.config import TransferConfig, to_dict
from semalign.data.inputs import Inputs
from semalign.methods.recipe import Recipe
from semalign.run import ranks
from semalign.run.folder import RunFolder, fingerprint, is_done, save_result
from semalign.run.meter import free_memory, measured
from semalign.signals.plan import read_plan
from semalign.signals.request import recipes_of
from semalign.signals.stores import Stores
from semalign.training.stages import _Training, stages, trained_plan, with_recipe
from semalign.training.start import make_start
from semalign.training.student import add_deltas, merge, movement, prepared, save_student, weights_of


def train(config: TransferConfig, run: RunFolder, inputs: Inputs, baseline: str | None = None) -> None:
    """Write student/, train.jsonl and train.json into the run folder, or into a baseline's own folder in it."""
    train_student(config, run, inputs, recipes_of(config)[baseline], run.training(baseline))


def train_student(
    config: TransferConfig, run: RunFolder, inputs: Inputs, recipe: Recipe, folder: Path
) -> None:
    """One student by one recipe, from the run's plan and cache into a folder; a finished one is kept."""
    written = read_plan(run)
    stores = Stores(config, run, inputs, written)
    config = with_recipe(config, recipe)
    wanted = fingerprint(
        cache=stores.fingerprint, recipe=asdict(recipe), train=to_dict(config.train), seed=config.seed
    )
    if ranks.from_main(lambda: _is_trained(folder, wanted)):
        return
    # Checkpoints hold only for the batches that this many processes share.
    if ranks.is_main():
        _forget_another(folder, wanted | {"processes": ranks.world()} if ranks.world() > 1 else wanted)
    ranks.wait()
    result: dict[str, Any] = {}
    with measured(result):
        student = inputs.load_student()
        plan = trained_plan(written, recipe, student.num_layers)
        before = {k: weights_of(student, k) for k in plan.trained_layers}
        start, made = make_start(config, inputs, recipe, student, folder, wanted)
        add_deltas(student, start)
        merged = student.model
        if recipe.trained == "none":
            result |= made | {"trained_parameters": 0, "train_seconds": 0.0}
        else:
            with prepared(student, plan, config, recipe.start, start) as model:
                training = _Training(config, run, inputs, stores, recipe, student, folder)
                result |= made | training.run(stages(plan, recipe))
                if isinstance(model, PeftModel) and ranks.is_main():
                    merged = merge(model, folder, recipe.start)
                del model, training
        if ranks.is_main():
            result["movement"] = movement(student, before)
            save_student(merged, inputs, config, folder / "student")
        del student, merged
        free_memory()
    if ranks.is_main():
        save_result(folder / "train.json", wanted, result | {"processes": ranks.world()})
        _forget(folder)
    ranks.wait()


def _is_trained(folder: Path, wanted: dict[str, Any]) -> bool:
    return is_done(folder / "train.json", wanted) and (folder / "student" / "config.json").exists()


def _forget_another(folder: Path, wanted: dict[str, Any]) -> None:
    """Drop the checkpoints of a training with other inputs; a resumed one must not start from them."""
    folder.mkdir(parents=True, exist_ok=True)
    if not is_done(folder / "training.json", wanted):
        _forget(folder)
        save_result(folder / "training.json", wanted, {})


def _forget(folder: Path) -> None:
    for part in (*folder.glob("checkpoint-*"), *folder.glob("stage-*")):
        shutil.rmtree(part)
    (folder / "training.json").unlink(missing_ok=True)
