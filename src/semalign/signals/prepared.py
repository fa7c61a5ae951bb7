"""A run as caching, training and measuring find it: config, rows, plan, recipes and stores, read once and handed on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from semalign.config import TransferConfig
from semalign.data.inputs import Inputs
from semalign.methods.recipe import Recipe
from semalign.models.head import Head, head_options
from semalign.run.files import read_tensors
from semalign.run.folder import RunFolder, verified
from semalign.signals.plan import Plan, read_plan
from semalign.signals.request import recipes_of
from semalign.signals.shards import ShardStore
from semalign.signals.stores import Stores


@dataclass(frozen=True)
class Prepared:
    """What every step after pairing starts from."""

    config: TransferConfig
    run: RunFolder
    inputs: Inputs
    plan: Plan
    """Pairs, and the student layers that are trained, as the file had them."""
    recipes: dict[str | None, Recipe]
    """The run's own recipe (None) and its baselines' by name."""
    stores: Stores
    targets: ShardStore | None = None
    """Where the layers' targets lie, if not beside the other signals: a control takes them from another teacher's cache."""

    @classmethod
    def read(cls, config: TransferConfig, run: RunFolder, inputs: Inputs) -> Prepared:
        """From a run folder that has a plan."""
        plan = read_plan(run, (inputs.teacher.layers, inputs.student.layers))
        recipes = recipes_of(config)
        return cls(config, run, inputs, plan, recipes, Stores(config, run, inputs, plan))

    @property
    def recipe(self) -> Recipe:
        """The run's own."""
        return self.recipes[None]

    @cached_property
    def teacher_head(self) -> Head:
        """The teacher's LM head as the cache step stored it."""
        stored = read_tensors(verified(self.run.manifest, "teacher_head.safetensors", "cache"))
        return Head(stored["weight"], head_options(self.inputs.teacher, stored.get("bias")))
