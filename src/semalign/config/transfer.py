"""The whole of a run, and its options as plain values."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semalign.config.data import DataConfig
from semalign.config.evaluation import EvaluationConfig
from semalign.config.layers import AttributionConfig, CacheConfig, PairingConfig
from semalign.config.models import ModelConfig
from semalign.config.training import RecipeConfig, TrainConfig
from semalign.config.values import LATER, expect

Combination = tuple[bool, str, str]
"""Whether options of several groups go together, the field that is blamed where they do not, and what is expected of it."""


@dataclass(frozen=True)
class TransferConfig:
    """One run: a teacher, a student, rows, and how knowledge moves."""

    teacher: ModelConfig
    """The stronger model."""
    student: ModelConfig
    """The smaller model."""
    data: DataConfig
    """Rows."""
    output_dir: str
    """The run folder."""
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    """Layer attribution."""
    pairing: PairingConfig = field(default_factory=PairingConfig)
    """Layer pairing."""
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    """Objective."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Cached activations."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Measurement."""
    seed: int = 0
    """Seed of the order of rows and of initialisation."""
    allow_smaller_teacher: bool = False
    """Continue even if the teacher is narrower or has fewer layers than the student."""
    push_to_hub: bool = False
    """Upload the trained student with its model card at the end of `transfer`; see also `semalign push`."""
    hub_model_id: str | None = None
    """The repository on the hub, as ORG/NAME."""
    hub_private_repo: bool | None = None
    """Whether a repository that has to be created is private; null takes the account's default."""

    def __post_init__(self) -> None:
        for is_fine, name, expected in (*self._of_student(), *self._of_teacher(), *self._of_server()):
            expect(is_fine, name, expected, functools.reduce(getattr, name.split("."), self))

    def _of_student(self) -> Iterator[Combination]:
        """What goes with a student that is trained in memory, and uploaded."""
        student = self.student
        yield (
            not self.push_to_hub or bool(self.hub_model_id),
            "hub_model_id",
            "ORG/NAME, since push_to_hub is true",
        )
        yield (
            student.device_map is None,
            "student.device_map",
            "null, since a student that is trained has to stay on one device",
        )
        yield (
            student.offload is None,
            "student.offload",
            "null, since a student that is trained has to stay in memory",
        )
        yield (
            student.tokenizer == "shared",
            "student.tokenizer",
            "shared; teacher.tokenizer says whether the two differ",
        )
        yield student.signals is None, "student.signals", "null, since signals are a teacher's"
        yield (
            student.sees == "nothing",
            "student.sees",
            "nothing, since the student is to do without what its teacher sees",
        )
        yield (
            student.server.url is None,
            "student.server.url",
            "null, since a student that is trained has to be in memory",
        )

    def _of_teacher(self) -> Iterator[Combination]:
        """What goes with how the teacher reads the rows."""
        teacher, data = self.teacher, self.data
        is_shared, is_alike = teacher.tokenizer == "shared", teacher.sees == "nothing"
        yield (
            not (teacher.only_tells and self.train.live_teacher),
            "train.live_teacher",
            "false with teacher.server, teacher.signals or teacher.tokenizer: own, since such a teacher is asked before training alone",
        )
        yield (
            is_shared or data.supervise == "completion",
            "data.supervise",
            "completion with teacher.tokenizer: own, since the two tokenizers are compared on one answer a row",
        )
        yield (
            is_shared or data.completions != "speculative",
            "data.completions",
            "given, teacher or student with teacher.tokenizer: own, since both models write speculative answers token by token",
        )
        yield (
            is_alike or data.supervise == "completion",
            "teacher.sees",
            f"nothing with data.supervise: {data.supervise}, since a prompt that only the teacher reads cannot be supervised",
        )
        yield (
            teacher.sees != "answer" or not data.variants,
            "teacher.sees",
            "nothing or shots with data.variants, since no answer to a new prompt is given",
        )

    def _of_server(self) -> Iterator[Combination]:
        """What goes with a teacher whose weights are not here."""
        data = self.data
        if self.teacher.server.url is None:
            return
        why = "with teacher.server, since a server holds the weights that this needs"
        yield data.completions != "speculative", "data.completions", f"given, teacher or student {why}"
        yield data.keep != "best", "data.keep", f"ended or right {why}"
        yield not data.variants or data.variants_by != "teacher", "data.variants_by", f"words {why}"
        yield (
            not self.evaluation.harness,
            "evaluation.harness",
            "no tasks with teacher.server, since the harness runs the models here",
        )


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as a plain dict, with tuples as lists, for YAML, JSON and fingerprints."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


def decisive(group: Any) -> dict[str, Any]:
    """A group's options as a fingerprint knows them: one that was added `LATER` is named only where it is set.

    So what was made before an option came stays valid where the option changes nothing.
    """
    later = _later(group)
    return {k: v for k, v in to_dict(group).items() if k not in later or v != later[k]}


def _later(group: Any) -> dict[str, Any]:
    defaults = {f.name: f.default for f in dataclasses.fields(group) if LATER.items() <= f.metadata.items()}
    # A recipe has values in place of the nothing that its fields say.
    unset = dataclasses.replace(group, **defaults)
    return {name: getattr(unset, name) for name in defaults}


def completed(written: Mapping[str, Any], config: TransferConfig) -> dict[str, Any]:
    """A run's written options, with those that came `LATER` at their defaults where it has none."""
    groups = {name: group for name, group in vars(config).items() if dataclasses.is_dataclass(group)}
    return {
        k: _later(groups[k]) | v if k in groups and isinstance(v, dict) else v for k, v in written.items()
    }


def without_names(data: DataConfig) -> dict[str, Any]:
    """How rows become what is trained on, for fingerprints that know the rows themselves by their content."""
    return decisive(data) | {"dataset_name": None, "heldout_name": None}


def by_name(given: Collection[str] | Mapping[str, Mapping[str, Any] | None]) -> dict[str, dict[str, Any]]:
    """Names, or names with fields of their own, as the latter."""
    fields = given if isinstance(given, Mapping) else dict.fromkeys(given)
    return {name: dict(own or {}) for name, own in fields.items()}


def plain(config: TransferConfig) -> dict[str, Any]:
    """A run's config as nested plain values."""
    return {k: to_dict(v) if hasattr(v, "__dataclass_fields__") else v for k, v in vars(config).items()}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted paths whose values differ, as `path: old -> new`."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines


def resolve_path(name: str, base: Path) -> str:
    """A path in a config file counts from that file's folder when it exists there; other names stay."""
    candidate = base / name
    # os.path, unlike pathlib, answers a name that no file can have with no.
    return str(candidate) if not Path(name).is_absolute() and os.path.exists(candidate) else name
