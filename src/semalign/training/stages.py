"""One student's training, in one stage or several, each with a Trainer of its own."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from semalign.config import TransferConfig
from semalign.methods.recipe import Recipe
from semalign.models.decoder import Decoder
from semalign.run import ranks, results
from semalign.run.files import Record, read_json, read_tensors, write_tensors
from semalign.run.folder import is_done, save_result
from semalign.run.meter import Tries, timed
from semalign.run.progress import LossProgress
from semalign.signals.passes import extended_prefix, stream_of
from semalign.signals.plan import Plan
from semalign.signals.prepared import Prepared
from semalign.signals.shards import ShardStore
from semalign.signals.stores import fill, shard_plan
from semalign.signals.supervision import supervision_of
from semalign.training import sharded
from semalign.training.arguments import arguments
from semalign.training.callbacks import (
    GradientCheck,
    LineLog,
    StopAt,
    StopOnSignal,
    Vouch,
    complete_checkpoint,
)
from semalign.training.collator import Collator
from semalign.training.student import merge, trainable
from semalign.training.suffix import SuffixModel, SuffixTrainer


def with_recipe(config: TransferConfig, recipe: Recipe) -> TransferConfig:
    """The config with what the recipe says about LoRA and the rate in place."""
    return replace(config, train=recipe.train_of(config.train))


def trained_plan(plan: Plan, recipe: Recipe, depth: int) -> Plan:
    """The plan with every layer trained, or changed by the start, where the recipe says so."""
    return plan if recipe.trained == "pairs" else replace(plan, trained_layers=tuple(range(1, depth + 1)))


def stages(plan: Plan, recipe: Recipe) -> list[Plan]:
    """What is trained together: all layers at once, or each in turn, from shallow to deep, towards its own target."""
    if recipe.schedule == "joint":
        return [plan]
    return [
        Plan(
            tuple(p for p in plan.pairs if p.student == layer),
            (layer,),
            tuple(p for p in plan.heads if p.student == layer),
        )
        for layer in plan.trained_layers
    ]


@dataclass(frozen=True)
class Span:
    """Which steps of a schedule are made."""

    total: int | None = None
    """Optimiser steps of the schedule; None: what the config says."""
    until: int | None = None
    """Save and stop after this one; None: the last."""
    resume: Path | None = None
    """The checkpoint to go on from, where there is none of this training's own."""


WHOLE = Span()


class Training:
    """One student's training, stage by stage, each in a Trainer with an optimiser of its own."""

    def __init__(
        self,
        prepared: Prepared,
        recipe: Recipe,
        student: Decoder,
        folder: Path,
        made_from: Mapping[str, Any],
        span: Span = WHOLE,
    ) -> None:
        self.made_from, self.span = made_from, span
        self.config, self.inputs, self.stores = prepared.config, prepared.inputs, prepared.stores
        self.recipe, self.student, self.folder = recipe, student, folder
        self.teacher_head = prepared.teacher_head.to(student.device) if recipe.needs_teacher_head else None
        self.supervision = supervision_of(prepared, recipe)
        self.stopper = StopOnSignal()
        self.cut = 0  # layers whose output is read instead of computed
        self.prefixes: ShardStore | None = None  # and from where

    def run(self, plans: list[Plan]) -> dict[str, Any]:
        """Train all stages that are not done yet; their totals."""
        if self.stores.request.cut is not None and plans[0].cut >= self.stores.request.cut:
            self.cut, self.prefixes = self.stores.request.cut, self.stores.student
        trainable = [p for p in self.student.model.parameters() if p.requires_grad]
        done: list[dict[str, Any]] = []
        # One listener for all stages: a signal in the last step of one, or after it, stops before what comes next.
        with self.stopper.installed():
            for number, plan in enumerate(plans, 1):
                chosen = {id(p) for k in plan.trained_layers for p in self.student.layers[k - 1].parameters()}
                for parameter in trainable:
                    parameter.requires_grad_(id(parameter) in chosen)
                if len(plans) == 1:
                    done.append(self._optimise(plan, self.folder, [], stages=1))
                else:
                    stage = self.folder / f"stage-{number}"
                    done.append(self._stage(plan, stage, done, stages=len(plans)))
                if ranks.agree(self.stopper.received is not None):
                    raise self.stopper.interrupted(sum(d["steps"] for d in done))
        for parameter in trainable:
            parameter.requires_grad_(True)
        return {
            "steps": sum(stage["steps"] for stage in done),
            "loss": done[-1]["loss"],
            "trained_parameters": sum(p.numel() for p in trainable),
            "train_seconds": round(sum(stage["train_seconds"] for stage in done), 3),
        }

    def _stage(self, plan: Plan, folder: Path, done: Sequence[dict[str, Any]], stages: int) -> dict[str, Any]:
        """One of several stages: what it trained lies in its folder, so that a resumed run goes on from the very weights."""
        names = [n for n, p in self.student.model.named_parameters() if p.requires_grad]
        parameters = dict(self.student.model.named_parameters())
        before, store = self.prefixes, self._prefix_store(plan.cut, folder)
        if ranks.from_main(lambda: is_done(folder / "stage.json", self.made_from)):
            for name, tensor in read_tensors(folder / "weights.safetensors", "train").items():
                parameters[name].data.copy_(tensor)
            self.cut, self.prefixes = plan.cut if store else self.cut, store
            return read_json(folder / "stage.json", "train", results.Stage)
        if store is not None and store is not before:
            self._extend(store, plan.cut)
            if before is not None and before is not self.stores.student and ranks.is_main():
                shutil.rmtree(before.folder, ignore_errors=True)
        result = self._optimise(plan, folder, done, stages)
        if ranks.is_main():
            weights = folder / "weights.safetensors"
            write_tensors(weights, {name: parameters[name] for name in names})
            save_result(folder / "stage.json", self.made_from, result, [weights])
        ranks.wait()
        return result

    def _prefix_store(self, cut: int, folder: Path) -> ShardStore | None:
        """Where the streams that enter layer cut + 1 lie: the present store while the cut stays, else the stage's own."""
        if not self.config.train.cache_prefix or cut == self.cut:
            return self.prefixes
        known = self.stores.fingerprint | {"cut": cut}
        plan = shard_plan(self.inputs.train, self.config.cache.shard_rows)
        return ShardStore(folder / "prefix", known, plan)

    def _extend(self, store: ShardStore, cut: int) -> None:
        """Run the present streams on through the layers that are finished, instead of computing all anew."""

        def through(batch: list[int]) -> list[Record]:
            streams = (
                [stream_of(self.prefixes.read(n, self.stores.request.prefix_keys)) for n in batch]
                if self.prefixes
                else None
            )
            samples = [self.inputs.train[n] for n in batch]
            # As in training: frozen matrices may still be in half precision.
            kind, is_mixed = self.student.device.type, self.config.train.bf16
            with torch.autocast(kind, torch.bfloat16, enabled=is_mixed):
                return extended_prefix(self.student, samples, streams, (self.cut, cut), self.stores.request)

        fill(store, through, label=f"prefix to layer {cut}", batch_size=self.config.cache.batch_size)
        self.cut, self.prefixes = cut, store

    def _optimise(
        self, plan: Plan, folder: Path, done: Sequence[dict[str, Any]], stages: int
    ) -> dict[str, Any]:
        """Train one stage, its layers whole or split over the processes."""
        is_split = self.config.train.fsdp
        with sharded.copied(self.student, self.cut) if is_split else nullcontext():
            return self._fitted(plan, folder, done, stages)

    def _fitted(
        self, plan: Plan, folder: Path, done: Sequence[dict[str, Any]], stages: int
    ) -> dict[str, Any]:
        """Run the Trainer after the stages that are done, from the newest complete checkpoint if there is one."""
        steps = sum(stage["steps"] for stage in done)
        log = LineLog(self.folder / "train.jsonl", [line for stage in done for line in stage["log"]], steps)
        student, config = self.student, self.config
        suffix = SuffixModel(
            student,
            self.cut,
            self.recipe,
            plan.at(self.recipe.interface),
            self.inputs.candidates,
            self.teacher_head,
        )
        newest = ranks.from_main(lambda: complete_checkpoint(folder, self.made_from))
        # Where this round has ended already, the Trainer has to find nothing left to do: it looks at the end of its schedule alone.
        ends_here = newest is not None and newest.endswith(f"-{self.span.until}")
        if newest is None and self.span.resume is not None:
            newest = str(self.span.resume)
        trainer = (sharded.SplitTrainer if config.train.fsdp else SuffixTrainer)(
            suffix,
            arguments(
                config, folder, stages, len(done) + 1, self.span.until if ends_here else self.span.total
            ),
            self.inputs.train,
            Collator(self.inputs.train, self.supervision, self.prefixes, self.stores.request.prefix_keys),
            callbacks=[log, GradientCheck(), self.stopper, Vouch(self.made_from)],
        )
        if self.span.until is not None:
            trainer.add_callback(StopAt(self.span.until))
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        if ranks.is_main() and logging.getLogger("semalign").isEnabledFor(logging.INFO):
            trainer.add_callback(LossProgress)
        tries = Tries(self.folder / "fit-seconds.part", {"made_from": self.made_from, "stage": len(done)})
        with timed(tries if ranks.is_main() else None) as seconds:
            output = trainer.train(resume_from_checkpoint=newest)
            last = self.span.until or trainer.state.max_steps
            if self.stopper.must_stop and trainer.state.global_step < last:
                raise self.stopper.interrupted(steps + trainer.state.global_step)
        return {
            "steps": trainer.state.global_step,
            "loss": mean_loss(trainer.state.log_history, output.training_loss),
            "train_seconds": round(seconds(), 3),
            "log": log.lines[sum(len(stage["log"]) for stage in done) :],
        }


def fit(
    prepared: Prepared,
    recipe: Recipe,
    student: Decoder,
    folder: Path,
    made_from: Mapping[str, Any],
    span: Span = WHOLE,
    start: Record | None = None,
) -> tuple[dict[str, Any], Any]:
    """Train a student from prepared signals, full weights or LoRA: totals, and the model with its adapters merged.

    Args:
        start: factors that LoRA begins with.
    """
    plan, merged = trained_plan(prepared.plan, recipe, student.num_layers), student.model
    with trainable(student, plan, prepared.config, recipe.start, start) as model:
        training = Training(prepared, recipe, student, folder, made_from, span)
        result = training.run(stages(plan, recipe))
        if isinstance(model, PeftModel) and ranks.is_main():
            merged = merge(model, folder, recipe.start)
        del model, training
    return result, merged


def mean_loss(logged: Sequence[Mapping[str, Any]], otherwise: float) -> float:
    """Mean loss over the logged steps, those before a resume included; the Trainer's own figure counts only what it ran."""
    lines = [(line["step"], line["loss"]) for line in logged if "loss" in line]
    starts = [0, *(step for step, _ in lines)]
    total = sum(loss * (step - start) for (step, loss), start in zip(lines, starts, strict=False))
    return total / lines[-1][0] if lines else otherwise
