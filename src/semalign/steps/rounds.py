"""Rows, signals and training again and again, each time from the student as it is by then: all rounds but the last.

A round has a folder `rounds/<n>` in the folder of its training: what a run folder has (rows, plan, cache), the student that answers and
that signals are cached of (`present/`), and the checkpoint that the next round goes on from. One schedule and one optimiser go through
all rounds: each trains up to its share of the steps, saves and leaves memory, so that the teacher never stands beside the training.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

from semalign.config import TransferConfig, by_name
from semalign.data.inputs import load_inputs
from semalign.errors import ConfigError
from semalign.methods.recipe import Recipe
from semalign.run import ranks, results
from semalign.run.files import read_json
from semalign.run.folder import RunFolder, fingerprint, is_done, save_result
from semalign.run.meter import free_memory
from semalign.signals.prepared import Prepared
from semalign.steps.cache import cache
from semalign.steps.generate import generate
from semalign.training.stages import WHOLE, Span, fit
from semalign.training.student import save_student

CHECKPOINT = "checkpoint-{}"


def check_rounds(recipe: Recipe, count: int) -> None:
    """Refuse several rounds of what has only one.

    Raises:
        ConfigError: the recipe is trained in stages or not at all, or starts from another student than the untouched one.
    """
    if count > 1 and (recipe.trained == "none" or recipe.schedule != "joint"):
        raise ConfigError(
            f"train.rounds: expected 1 with recipe {recipe.name}, which is trained layer by layer or not at all, "
            f"got {count}; choose another recipe, or one round."
        )
    if count > 1 and recipe.start != "untouched":
        raise ConfigError(
            f"train.rounds: expected 1 with recipe.start: {recipe.start}, got {count}; rounds go on from the untouched student."
        )


@dataclass(frozen=True)
class Rounds:
    """The rounds of one training."""

    first: Prepared
    """The run as the first round finds it, with the recipe's own say about LoRA and the rate."""
    recipe: Recipe
    folder: Path
    """Of the training."""
    made_from: Mapping[str, Any]
    count: int
    """How many rounds there are."""

    def __post_init__(self) -> None:
        check_rounds(self.recipe, self.count)
        if self.count > 1 and self.first.targets is not None:
            raise ConfigError(
                f"train.rounds: expected 1 with targets: random, which are of the first round's rows, got {self.count}; train one round."
            )

    @cached_property
    def total(self) -> int:
        """Optimiser steps of all rounds."""
        train = self.first.config.train
        if train.max_steps > 0:
            return train.max_steps
        rows = train.per_device_train_batch_size * train.gradient_accumulation_steps * ranks.world()
        return self.count * ceil(train.num_train_epochs * ceil(len(self.first.inputs.train) / rows))

    def _end(self, number: int) -> int:
        """The step after which a round ends."""
        return self.total * number // self.count

    def _place(self, number: int) -> Path:
        return self.folder / "rounds" / str(number)

    def last(self) -> tuple[Prepared, Span]:
        """Train all rounds but the last; what that one starts from."""
        if self.count == 1:
            return self.first, WHOLE
        if self.total < self.count:
            raise ConfigError(
                f"train.rounds: expected at most one round a step, got {self.count} rounds and {self.total} steps; lower it, or "
                "train longer."
            )
        prepared = self.first
        for number in range(1, self.count):
            self._train(number, prepared)
            prepared = self._prepare(number + 1)
        cache(prepared)
        return prepared, self._span(self.count)

    @property
    def seconds_before(self) -> float:
        """Seconds of training in all rounds but the last, whichever command made them."""
        done = [self._place(number) / "round.json" for number in range(1, self.count)]
        return sum(read_json(path, "train", results.Stage)["train_seconds"] for path in done)

    def _span(self, number: int) -> Span:
        before = self._place(number - 1) / CHECKPOINT.format(self._end(number - 1)) if number > 1 else None
        return Span(self.total, None if number == self.count else self._end(number), before)

    def _prepare(self, number: int) -> Prepared:
        """A round's rows and stores, made with the student that the one before has left; its signals are not cached yet."""
        place, whole = self._place(number), self.first.config
        config: TransferConfig = replace(
            whole,
            student=replace(whole.student, model_name_or_path=str(place / "present"), model_revision=None),
            output_dir=str(place),
            # It draws the answers; the training keeps its own.
            seed=whole.seed + number - 1,
            cache=replace(whole.cache, folder=None),
            evaluation=replace(whole.evaluation, baselines=self._baselines()),
        )
        run = RunFolder(place, memory=self.first.run.memory or self.first.run.root)
        if ranks.is_main():
            generate(config, run)
        ranks.wait()
        # What is held out is measured in the end, from the first round's signals.
        inputs = replace(load_inputs(config, run), heldout=[])
        if ranks.is_main():
            shutil.copyfile(self.first.run.pairs, run.pairs)
        ranks.wait()
        prepared = Prepared.read(config, run, inputs)
        return replace(prepared, config=replace(config, seed=whole.seed))

    def _baselines(self) -> dict[str, dict[str, Any]]:
        """The recipe that is trained, as the only baseline, where it is not the run's own: only what these two read is cached."""
        known = by_name(self.first.config.evaluation.baselines)
        label = next((name for name, recipe in self.first.recipes.items() if recipe == self.recipe), None)
        return {} if label is None else {label: known[label]}

    def _train(self, number: int, prepared: Prepared) -> None:
        """A round's steps, and the student that the next round starts with."""
        place, following = self._place(number), self._place(number + 1)
        wanted = self.wanted(number, prepared)
        if ranks.from_main(
            lambda: is_done(place / "round.json", wanted) and is_done(following / "present.json", wanted)
        ):
            return
        if number > 1:
            cache(prepared)
        student = self.first.inputs.load_student()
        result, merged = fit(prepared, self.recipe, student, place, wanted, self._span(number))
        if ranks.is_main():
            save_student(merged, self.first.inputs, self.first.config, following / "present")
            save_result(following / "present.json", wanted, {}, [following / "present"])
            checkpoint = place / CHECKPOINT.format(self._end(number))
            save_result(place / "round.json", wanted, result, [checkpoint])
            shutil.rmtree(place / "targets", ignore_errors=True)
        ranks.wait()
        del student, merged
        free_memory()

    def wanted(self, number: int, prepared: Prepared) -> dict[str, Any]:
        """What a round's checkpoints are made from."""
        if self.count == 1:
            return dict(self.made_from)
        return fingerprint(
            **self.made_from, round=number, total=self.total, rows_of_round=prepared.stores.fingerprint
        )

    def forget(self) -> None:
        """Drop what only the training needed; each round's rows and counts stay."""
        for place in (self.folder / "rounds").glob("*"):
            for part in (
                place / "targets",
                place / "present",
                place / "adapter",
                *place.glob("checkpoint-*"),
            ):
                shutil.rmtree(part, ignore_errors=True)
            for name in ("present.json", "round.json", "pairs.json"):
                (place / name).unlink(missing_ok=True)
