"""From a comparison's YAML file to its sources and cells, all checked before anything runs.

A *cell* is one trained student: (method, task, seed, budget). A *source* is what cells with the same rows, teacher, plan
and cache options share: one run folder whose cache holds the union of what their recipes read.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field

from semalign.comparison.overrides import CUTOFF, flatten, nested, recipe_fields, redrawn, shared
from semalign.config import ModelConfig, TransferConfig, check_labels, to_dict
from semalign.config.parsing import build_config, read_yaml
from semalign.errors import ConfigError, suggestion
from semalign.methods import named
from semalign.methods.recipe import Recipe
from semalign.reading import Positive, UnreadableError, check_shape, plain_value, shown
from semalign.run.files import hash_of
from semalign.run.folder import RunFolder

Budget = Literal["rows", "time"]
Repeats = Annotated[int, Field(ge=1, le=1000)]
MADE = "made"
UNTOUCHED, TEACHER, WRONG_TASK = "untouched", "teacher", "wrong_task"
RESERVED = (UNTOUCHED, TEACHER, WRONG_TASK)
RANDOM = "random"
# Set by the comparison, or the same for all methods, so that no method is measured otherwise than the rest.
FIXED = ("output_dir", "recipe.name", "evaluation.baselines")
FIXED_FOR_TASKS = (*FIXED, "teacher", "student", "seed")
FIXED_FOR_METHODS = ("output_dir", "student", "seed", "evaluation", "data.heldout_name", "data.heldout_rows")


@dataclass(frozen=True)
class CompareConfig:
    """A comparison: every method on every task with every seed, on one pair of models."""

    output_dir: str
    """Folder of sources, cells, results.jsonl and page.html."""
    base: Mapping[str, Any]
    """Fields of a run's config that all cells share; output_dir and recipe.name are not among them."""
    methods: Mapping[str, Mapping[str, Any]]
    """Label -> changes of the base by dotted name; without recipe.name the label is the method's name. `teacher: random`
    takes a teacher of the same sizes with fresh weights, and `targets: random` takes the layers' targets alone from it.
    `{task}` in a text stands for the task's name. `made: FOLDER` alone measures students that something else has trained, with `{seed}` in
    the folder's name too; `made.json` in it may say what they cost (wall_seconds, train_seconds, steps, rows)."""
    tasks: Mapping[str, Mapping[str, Any]]
    """Name -> changes of the base by dotted name; items that are answered carry this name as their task."""
    default: str
    """Label that the others are compared with, and whose wall time is the budget at equal time."""
    seeds: Repeats = 5
    """Trainings per method and task. Each draws anew whatever is drawn: the order of rows and the initialisation, the data.max_rows
    rows, the variants, and the rows of an attribution that chooses layers."""
    workers: Repeats | None = None
    """Processes; they share the cores. null: one per core, or one where there is an accelerator."""
    equal_time: tuple[str, ...] = ()
    """Labels that are also trained for as long as the default takes, preparation included."""
    measured_only: tuple[str, ...] = ()
    """Tasks that no student is trained on: all answer their items and are measured on their held-out rows. Their training rows are cached
    like any, so give them few (data.max_rows: 1)."""
    retention_items: Positive | None = None
    """Items per task that a student answers of the tasks it was not trained on; null: all."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(CompareConfig, include_extras=True).items():
            try:
                check_shape(kind, getattr(self, name), name)
            except UnreadableError as error:
                raise ConfigError(f"{error}; change it in the comparison's file.") from error
        for name in ("base", "methods", "tasks"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: expected names with values, got none; fill it in.")
        for kind, labels in (("methods", self.methods), ("tasks", self.tasks)):
            check_labels(kind, labels, RESERVED)
        for label in (self.default, *self.equal_time):
            if label not in self.methods:
                raise ConfigError(
                    f"expected one of the methods, got {label!r}; {suggestion(label, self.methods, cutoff=CUTOFF)}"
                )
        for task in self.measured_only:
            if task not in self.tasks:
                raise ConfigError(
                    f"measured_only: expected tasks, got {task!r}; {suggestion(task, self.tasks, cutoff=CUTOFF)}"
                )
        if not self.trained:
            raise ConfigError(
                "measured_only: expected fewer than all tasks, got all; leave one out, for students to train on."
            )

    @property
    def trained(self) -> list[str]:
        """Tasks that students are trained on."""
        return [task for task in self.tasks if task not in self.measured_only]


@dataclass(frozen=True)
class Source:
    """One run folder: rows, plan and cache of the cells that share them."""

    task: str
    config: TransferConfig = field(hash=False)
    """Its baselines are all recipes, by label, that read this cache."""
    has_random_teacher: bool = False
    is_measured_with: bool = False
    """Students are measured with its held-out rows: the default's source."""

    @property
    def run(self) -> RunFolder:
        """Where it lies: below the comparison, whose models are hashed once for all sources."""
        root = Path(self.config.output_dir)
        return RunFolder(root, memory=root.parent.parent)


@dataclass(frozen=True)
class Cell:
    """One student to train and measure; `untouched` and `teacher` are measured as they are, with an empty task."""

    method: str
    task: str = ""
    seed: int = 0
    budget: Budget = "rows"

    @property
    def place(self) -> str:
        """Its folder below the comparison's cells/."""
        return f"{self.task}/{self.method}/{self.budget}-{self.seed}" if self.task else self.method


@dataclass(frozen=True)
class Comparison:
    """A checked comparison: what to prepare, what to train."""

    options: CompareConfig
    sources: Mapping[tuple[str, str, int], Source]
    """(task, label, seed) -> what its cell reads; one for all seeds where nothing is drawn."""
    configs: Mapping[tuple[str, str], TransferConfig]
    """(task, label) -> config of its cells, but for the seed."""
    recipes: Mapping[tuple[str, str], Recipe]
    targets: Mapping[tuple[str, str, int], Source] = field(default_factory=dict)
    """(task, label, seed) -> the source of the layers' targets, where it is not the cell's own."""
    made: Mapping[tuple[str, str, int], ModelConfig] = field(default_factory=dict)
    """(task, label, seed) -> a student that something else has trained; such a label has no config, recipe or source."""

    @property
    def root(self) -> Path:
        """The comparison's folder."""
        return Path(self.options.output_dir)

    def reference(self, task: str) -> Source:
        """The source whose held-out rows and teacher all students of a task are measured with: the default's."""
        return self.sources[task, self.options.default, 0]

    def cells(self, labels: typing.Collection[str], budget: Budget) -> Iterator[Cell]:
        """Cells of some labels, seed by seed, so that an early stop leaves whole seeds."""
        seeds = range(self.options.seeds)
        made = {label for _, label, _ in self.made}
        every = ((t, m, s) for s in seeds for m in labels for t in self.options.trained)
        yield from (Cell(m, t, s, budget) for t, m, s in every if m not in made or (t, m, s) in self.made)

    def chosen(self, labels: typing.Sequence[str] | None) -> list[str]:
        """The labels asked for in the file's order, with the default, which all are compared with; none: all."""
        for label in labels or ():
            if label not in self.options.methods:
                raise ConfigError(
                    f"--methods: expected labels of the file, got {label!r}; {suggestion(label, self.options.methods, cutoff=CUTOFF)}"
                )
        wanted = set(labels or self.options.methods) | {self.options.default}
        return [label for label in self.options.methods if label in wanted]


def read_comparison(path: Path, **changes: Any) -> Comparison:
    """The comparison in a YAML file, with fields of `CompareConfig` replaced by keyword.

    Raises:
        ConfigError: a field that does not exist, or a value that is not what its field expects.
    """
    values = read_yaml(path)
    fields = {f.name: f for f in dataclasses.fields(CompareConfig)}
    for name in values:
        if name not in fields:
            raise ConfigError(
                f"{path}: expected fields of a comparison, got {name!r}; {suggestion(name, fields, cutoff=CUTOFF)}"
            )
    try:
        values = plain_value(values | changes)
    except UnreadableError as error:
        raise ConfigError(f"{path}: {error}.") from error
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
    if missing:
        raise ConfigError(f"{path}: expected {', '.join(missing)}, found nothing of that name; add it.")
    lists = {}
    for name, what in (("equal_time", "labels"), ("measured_only", "tasks")):
        given = values.get(name, ())
        if not isinstance(given, list | tuple):
            raise ConfigError(f"{name}: expected a list of {what}, got {shown(given)}; write it as one.")
        lists[name] = tuple(given)
    return plan(CompareConfig(**values | lists), path.parent)


def plan(options: CompareConfig, folder: Path) -> Comparison:
    """All configs built and checked; cells with the same rows, teacher, plan and cache options share a source.

    Args:
        folder: paths of models and rows that exist there are taken from there.
    """
    base = flatten(options.base, "base", FIXED)
    tasks = {t: flatten(v, f"tasks.{t}", FIXED_FOR_TASKS) for t, v in options.tasks.items()}
    configs: dict[tuple[str, str], TransferConfig] = {}
    recipes: dict[tuple[str, str], Recipe] = {}
    groups: dict[str, list[_Member]] = {}
    is_random = {label: _random_parts(options, label) for label in options.methods}
    made: dict[tuple[str, str, int], ModelConfig] = {}
    for label, changes in options.methods.items():
        if MADE in changes:
            made |= _made(options, label, base, folder)
            continue
        own = {k: v for k, v in changes.items() if k not in is_random[label]}
        own = {"recipe.name": label} | flatten(own, f"methods.{label}", FIXED_FOR_METHODS)
        # What no student is trained on is measured by the default's source.
        for task in options.tasks if label == options.default else options.trained:
            named_own = {k: v.replace("{task}", task) if isinstance(v, str) else v for k, v in own.items()}
            config = build_config(
                nested(base | tasks[task] | named_own | {"output_dir": options.output_dir}), folder
            )
            if config.cache.folder is not None:
                raise ConfigError(
                    f"methods.{label}: expected no cache.folder in a comparison, which has a cache for each set of rows below output_dir, got "
                    f"{config.cache.folder}; choose an output_dir where there is room."
                )
            if config.teacher.server.url and is_random[label]:
                raise ConfigError(
                    f"methods.{label}: expected a teacher that is loaded here, of whose sizes a random one is made, got "
                    f"teacher.server.url {config.teacher.server.url}; leave teacher.server out, or leave {label} out."
                )
            random = replace(config, teacher=random_teacher(options, config.teacher))
            configs[task, label] = config = random if "teacher" in is_random[label] else config
            recipes[task, label] = named(label, recipe_fields(config), "methods")
            if "targets" in is_random[label] and recipes[task, label].layer is None:
                raise ConfigError(
                    f"methods.{label}.targets: expected a recipe with a layer loss, got {recipes[task, label].name}, which has none; "
                    "take targets out."
                )
            # At equal time a method pays for a cache of its own, not for what others read.
            alone = label if label in options.equal_time else None
            for seed in range(options.seeds):
                reads = {"own": redrawn(config, seed)}
                reads |= {"targets": redrawn(random, seed)} if "targets" in is_random[label] else {}
                for role, drawn in reads.items():
                    key = hash_of([task, alone, shared(drawn)])
                    groups.setdefault(key, []).append(_Member(task, label, seed, role, drawn))
    sources: dict[str, dict[tuple[str, str, int], Source]] = {"own": {}, "targets": {}}
    for key, members in groups.items():
        first = members[0]
        source = replace(
            _source(key, {m.label: m.config for m in members}, options),
            task=first.task,
            has_random_teacher=first.role == "targets" or "teacher" in is_random[first.label],
            is_measured_with=any((m.label, m.seed, m.role) == (options.default, 0, "own") for m in members),
        )
        for m in members:
            sources[m.role][m.task, m.label, m.seed] = source
    return Comparison(options, sources["own"], configs, recipes, sources["targets"], made)


def _made(
    options: CompareConfig, label: str, base: Mapping[str, Any], folder: Path
) -> dict[tuple[str, str, int], ModelConfig]:
    """The students of a label that something else has trained, by task and seed, loaded as the base's student is; one where no {seed} is named."""
    changes = options.methods[label]
    given = changes[MADE]
    if len(changes) > 1 or not isinstance(given, str):
        raise ConfigError(
            f"methods.{label}: expected a folder under made and nothing beside it, since nothing is trained there, got {dict(changes)!r}; "
            "leave the rest out."
        )
    if label == options.default or label in options.equal_time:
        raise ConfigError(
            f"methods.{label}: expected the default and what is trained at equal time to be trained here, got made: {given}; name another "
            "method."
        )
    if "{task}" not in given and len(options.trained) > 1:
        raise ConfigError(
            f"methods.{label}: expected {{task}} in made, since students are trained on {len(options.trained)} tasks, got {given}; put it "
            "into the folder's name, or name the other tasks in measured_only."
        )
    student = nested({k: v for k, v in base.items() if k.startswith("student.")})["student"]
    found = {}
    for task in options.trained:
        for seed in range(options.seeds if "{seed}" in given else 1):
            place = folder / given.replace("{task}", task).replace("{seed}", str(seed))
            own = {"model_name_or_path": str(place), "model_revision": None}
            found[task, label, seed] = ModelConfig(**student | own)
    return found


class _Member(typing.NamedTuple):
    """A cell's label, and what it reads of a source: all signals (own), or the layers' targets alone."""

    task: str
    label: str
    seed: int
    role: str
    config: TransferConfig


def _random_parts(options: CompareConfig, label: str) -> set[str]:
    """What of a method comes from a teacher with fresh weights: teacher, or targets."""
    changes = options.methods[label]
    if not isinstance(changes, Mapping):
        raise ConfigError(f"methods.{label}: expected changes by name, got {changes!r}; write {{}} for none.")
    found = set()
    for name, others in (("teacher", "random or fields of a model"), ("targets", "random")):
        value = changes.get(name)
        if value == RANDOM:
            found.add(name)
        elif isinstance(value, str) or (name == "targets" and value is not None):
            raise ConfigError(f"methods.{label}.{name}: expected {others}, got {value!r}; change it.")
    if label == options.default and any(str(k).split(".")[0] == "teacher" for k in changes):
        raise ConfigError(
            f"methods.{label}: the default is measured against the base's teacher, so it keeps it; name the teacher in base."
        )
    return found


def random_teacher(options: CompareConfig, teacher: ModelConfig) -> ModelConfig:
    """Where the teacher with fresh weights lies once it is made."""
    names = ("dtype", "attn_implementation", "trust_remote_code", "chat_template_kwargs", "tokenizer")
    kept: dict[str, Any] = {n: getattr(teacher, n) for n in names}
    name = f"random-teacher-{hash_of(to_dict(teacher))}"
    return ModelConfig(str(Path(options.output_dir) / name), **kept)


def _source(key: str, members: Mapping[str, TransferConfig], options: CompareConfig) -> Source:
    first = next(iter(members.values()))
    baselines = {label: recipe_fields(config) for label, config in members.items()}
    # No rows for CKA maps: they belong to one run's report.
    evaluation = replace(first.evaluation, baselines=baselines, cka_rows=0)
    return Source(
        "", replace(first, output_dir=str(Path(options.output_dir) / "sources" / key), evaluation=evaluation)
    )
