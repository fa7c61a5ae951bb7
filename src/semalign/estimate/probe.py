"""What a run will cost, measured: a few real batches through the very code of each step, to be scaled to all rows.

Memory comes from a batch of the longest rows, which a run meets too; seconds a token from rows of middling length.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import SaveStrategy

from semalign.config import TransferConfig
from semalign.data import Sample
from semalign.data.drawing import attribution_rows
from semalign.data.inputs import Inputs
from semalign.methods.loss import REST
from semalign.methods.maps import MAPS
from semalign.methods.recipe import Recipe
from semalign.models.decoder import Decoder
from semalign.models.head import Head, head_options
from semalign.run.files import Record
from semalign.run.meter import free_memory, peak_gpu, peak_rss, reset_peak, resident
from semalign.signals.passes import student_signals, teacher_signals
from semalign.signals.plan import Plan
from semalign.signals.request import Request, reads_scores, recipes_of, wanted_keys
from semalign.signals.telling import carried_by, teller_of
from semalign.steps.attribute import attribute_as
from semalign.training.arguments import arguments
from semalign.training.collator import Collator
from semalign.training.stages import stages, trained_plan, with_recipe
from semalign.training.student import trainable
from semalign.training.suffix import SuffixModel, SuffixTrainer

REPEATS = 2
Loaded = TypeVar("Loaded")


@dataclass
class Costs:
    """What was measured so far."""

    seconds: dict[str, float] = field(default_factory=dict)
    """load_teacher, load_student and collect (freeing memory between models) in all; attribute, cache_teacher,
    cache_student and train a token."""
    peak_bytes: int = 0
    """Largest resident memory of any part."""
    peak_gpu_bytes: int | None = None
    """And of tensors on the GPU; None without one."""

    @contextmanager
    def watch(self, *, spare: int = 0) -> Iterator[None]:
        """Count the block's peak memory, less `spare` bytes on the model's device that a run would not hold."""
        reset_peak()
        yield
        self.count(peak_rss(), peak_gpu(), -spare)

    def count(self, resident: int, gpu: int | None, more: int) -> None:
        """One more reading of memory, bytes, with `more` bytes where the models are: on the GPU if there is one."""
        self.peak_bytes = max(self.peak_bytes, resident + (more if gpu is None else 0))
        if gpu is not None:
            self.peak_gpu_bytes = max(self.peak_gpu_bytes or 0, gpu + more)

    @contextmanager
    def clock(self, name: str, batch: Sequence[Sample] | None = None, repeats: int = 1) -> Iterator[None]:
        """Put the block's seconds, a token where there is a batch, under a name."""
        start = time.perf_counter()
        yield
        tokens = sum(len(s.input_ids) for s in batch) * repeats if batch else 1
        self.seconds[name] = (time.perf_counter() - start) / tokens


@dataclass(frozen=True)
class Shown:
    """What one model showed: records of the longest and of the typical rows, its head and its final norm."""

    longest: list[Record]
    typical: list[Record]
    head: Head
    norm: Tensor


def longest_rows(samples: Sequence[Sample], size: int) -> list[Sample]:
    """The batch that needs the most memory."""
    return sorted(samples, key=lambda s: -len(s.input_ids))[:size]


def typical_rows(samples: Sequence[Sample], size: int) -> list[Sample]:
    """A batch from the middle of the lengths; rows of like length, as a run has them."""
    by_length = sorted(samples, key=lambda s: -len(s.input_ids))
    start = max(0, (len(by_length) - size) // 2)
    return by_length[start : start + size]


def probe_student(
    config: TransferConfig, inputs: Inputs, plan: Plan, request: Request, costs: Costs
) -> Shown:
    """The student: caching, then a few training steps of every recipe."""
    size = config.cache.batch_size
    with costs.watch():
        student = _load(inputs.load_student, costs, "load_student")
        longest = student_signals(student, longest_rows(inputs.train, size), request)
        batch = typical_rows(inputs.train, size)
        with costs.clock("cache_student", batch, REPEATS):
            for _ in range(REPEATS):
                typical = student_signals(student, batch, request)
    shown = Shown(longest, typical, student.head().detached(), student.norm_weight().clone())
    weights = sum(p.numel() * p.element_size() for p in student.model.parameters())
    costs.seconds["train"] = 0.0
    for recipe in recipes_of(config).values():
        spare = shown.head.weight_VD.nbytes
        with costs.watch(spare=spare):
            costs.seconds["train"] += _training(config, inputs, plan, request, student, recipe)
        # Saving reads the student back beside the one just trained.
        gpu = torch.cuda.memory_allocated() if torch.cuda.is_available() else None
        costs.count(resident(), gpu, weights - spare)
        free_memory()
    return shown


def probe_teacher(
    config: TransferConfig,
    inputs: Inputs,
    request: Request,
    student: Shown,
    costs: Costs,
    then: Callable[[Decoder], None] = lambda teacher: None,
) -> Shown:
    """The teacher: attribution and caching.

    Args:
        then: called with the teacher while it is loaded.
    """
    options = config.attribution
    with costs.watch():
        teacher = _load(inputs.load_teacher, costs, "load_teacher")
        rows = attribution_rows(config, inputs.train)
        batch = typical_rows(rows, options.batch_size)
        costs.seconds["attribute"] = 0.0
        if reads_scores(config):
            attribute_as(config, teacher, longest_rows(rows, options.batch_size))
            with costs.clock("attribute", batch, REPEATS):
                for _ in range(REPEATS):
                    attribute_as(config, teacher, batch)
        size, others = config.cache.batch_size, inputs.candidates
        longest = teacher_signals(
            teacher, longest_rows(inputs.train, size), request, student.longest, student.head, others
        )
        batch = typical_rows(inputs.train, size)
        with costs.clock("cache_teacher", [sample.for_teacher for sample in batch]):
            typical = teacher_signals(teacher, batch, request, student.typical, student.head, others)
    then(teacher)
    norm = teacher.norm_weight().clone() if teacher.has_layers else torch.ones(teacher.width)
    return Shown(longest, typical, teacher.head().detached(), norm)


def probe_told(config: TransferConfig, inputs: Inputs, costs: Costs) -> tuple[float, dict[str, float] | None]:
    """A teacher that only tells: its self-test, and a batch of typical rows.

    Returns:
        The difference between two answers to one row, nats; and how much of these rows could be carried to another tokenizer, see
        `semalign.signals.carried.Carried`, or None where both have one.
    """
    served = config.teacher.server
    costs.seconds |= {"attribute": 0.0}
    with costs.watch():
        teacher = _load(partial(teller_of, config, inputs), costs, "load_teacher")
        drift = teacher.self_test(inputs.train[0])
        batch = typical_rows(inputs.train, served.requests if served.url else config.cache.batch_size)
        with costs.clock("cache_teacher", [sample.for_teacher for sample in batch]):
            teacher.tell(batch)
    return drift, carried_by(teacher)


def _load(open_model: Callable[[], Loaded], costs: Costs, name: str) -> Loaded:
    with costs.clock(name):
        return open_model()


def _training(
    config: TransferConfig,
    inputs: Inputs,
    plan: Plan,
    request: Request,
    student: Decoder,
    recipe: Recipe,
) -> float:
    """Seconds a token of a recipe's training, its first step, on the longest rows, apart; a start is not counted."""
    if recipe.trained == "none":
        return 0.0
    # With fewer rows than a step has, all of them are one.
    size = min(
        config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps, len(inputs.train)
    )
    typical = typical_rows(inputs.train, size)
    samples = [*longest_rows(inputs.train, size), *typical * REPEATS]
    config = with_recipe(config, recipe)
    # The first of several stages: its gradient passes through the most layers.
    plan = stages(trained_plan(plan, recipe, student.num_layers), recipe)[0]
    cut = min(plan.cut, request.cut or 0)
    made = _Invented(samples, recipe, request, inputs, student.width)
    head = None
    if recipe.needs_teacher_head:
        weight = torch.randn(inputs.vocabulary, inputs.teacher.width, dtype=student.model.dtype)
        head = Head(weight, head_options(inputs.teacher, None))
    # No tracker hears of it, and nothing is saved.
    once = replace(config.train, num_train_epochs=1, max_steps=-1, rounds=1, report_to="none")
    if size < once.per_device_train_batch_size * once.gradient_accumulation_steps:
        once = replace(once, per_device_train_batch_size=size, gradient_accumulation_steps=1)
    clock = _StepClock()
    with (
        tempfile.TemporaryDirectory() as folder,
        trainable(student, plan, config, recipe.start) as model,
    ):
        suffix = SuffixModel(student, cut, recipe, plan.at(recipe.interface), inputs.candidates, head)
        options = arguments(replace(config, train=once), Path(folder))
        options.save_strategy = SaveStrategy.NO
        trainer = SuffixTrainer(
            suffix,
            options,
            samples,
            Collator(samples, made, made if cut else None),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    if config.train.lora_r:
        student.model = model.unload()
    return clock.rest / sum(len(s.input_ids) for s in typical * REPEATS)


class _StepClock(TrainerCallback):
    """Seconds after the first step."""

    rest = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start after the first step, read after every other."""
        if state.global_step == 1:
            self.start = time.perf_counter()
        self.rest = time.perf_counter() - self.start


class _Invented:
    """Signals and prefixes of the right shapes, in place of stores; costs do not depend on the values."""

    def __init__(
        self, samples: Sequence[Sample], recipe: Recipe, request: Request, inputs: Inputs, width: int
    ) -> None:
        self.samples, self.inputs, self.width, self.slots = samples, inputs, width, 2 * request.top_k + 1
        self.is_raw = MAPS[recipe.map].is_raw
        self.keys = wanted_keys(recipe, [p.place for p in request.at(recipe.interface)]).values()

    def signals(self, samples: Sequence[int]) -> Record:
        """See `semalign.signals.supervision.Supervision`."""
        count = sum(self.samples[n].supervised for n in samples)
        return {key: self._tensor(key, count) for key in self.keys}

    def _tensor(self, key: str, count: int) -> Tensor:
        if key == "ids":
            return torch.randint(self.inputs.vocabulary, (count, self.slots), dtype=torch.int32)
        if key == "valid":
            return torch.ones(count, self.slots, dtype=torch.bool)
        if key == REST:
            return torch.zeros(count, 3)
        if key.endswith("_logp"):
            return torch.randn(count, self.slots).log_softmax(1)
        raw = key == "teacher_output" or (key.startswith("target.") and self.is_raw)
        wide = self.inputs.teacher.width if raw else self.width
        return torch.randn(count, wide)

    def read(self, sample: int, keys: Sequence[str]) -> Record:
        """See `semalign.signals.shards.ShardStore`."""
        return {key: torch.randn(len(self.samples[sample].input_ids), self.width) for key in keys}
