"""A run prepared in memory: two tiny models, a few samples and a plan, with its cache on demand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache as cache_once
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tiny import tiny_config, tiny_model, tiny_tokenizer

from semalign.config import CacheConfig, RecipeConfig, TransferConfig
from semalign.data import Sample
from semalign.data.inputs import Inputs
from semalign.maths.pairing import LayerPair
from semalign.models.decoder import Decoder
from semalign.models.layouts import Shape
from semalign.run.folder import RunFolder
from semalign.signals.plan import Plan
from semalign.signals.prepared import Prepared
from semalign.signals.request import recipes_of
from semalign.signals.stores import Stores
from semalign.steps.cache import cache

PAIRS = Plan((LayerPair(3, 2, 0.5), LayerPair(5, 3)), (2, 3))
HEADS = Plan(PAIRS.pairs, (2, 3), (LayerPair(3, 2, 0.0, 2, 1), LayerPair(5, 3, 0.0, 4, 3)))
CACHE = CacheConfig(shard_rows=4, batch_size=3, dtype="float32", top_k=8)


tokenizer = cache_once(tiny_tokenizer)


def teacher() -> Decoder:
    """5 layers, width 48."""
    return Decoder(tiny_model("llama", layers=5, wide=True, seed=1), tokenizer(), "teacher")


def student() -> Decoder:
    """3 layers, width 32."""
    return Decoder(tiny_model("llama", layers=3, wide=False, seed=2), tokenizer(), "student")


@cache_once
def shapes() -> tuple[Shape, Shape]:
    """The teacher's and the student's sizes."""
    return teacher().shape, student().shape


def samples(count: int, *, first: int = 0) -> list[Sample]:
    """Rows `first`, `first + 1`, ... of 9 to 15 random tokens, all but the first 4 supervised."""
    found = []
    for number in range(first, first + count):
        length = 9 + 5 * number % 7
        ids = torch.randint(10, 300, (length,), generator=torch.Generator().manual_seed(number))
        found.append(Sample(ids.tolist(), [t >= 4 for t in range(length)], f"row-{number}"))
    return found


def config_of(folder: Path, **changes: Any) -> TransferConfig:
    """Of models and rows that are nowhere on disk."""
    names = Path("teacher"), Path("student")
    return tiny_config(names, Path("rows"), folder, **{"cache": CACHE} | changes)


def inputs_of(train: Sequence[Sample], heldout: Sequence[Sample] = ()) -> Inputs:
    """Rows for two models that are made anew each time they are asked for."""
    known = {"rows": [sample.sha for sample in (*train, *heldout)]}
    return Inputs(
        list(train), list(heldout), tokenizer(), 320, *shapes(), teacher, student, fingerprint=known
    )


def prepared(
    folder: Path,
    *,
    plan: Plan = PAIRS,
    rows: Sequence[Sample] | None = None,
    heldout: Sequence[Sample] | None = None,
    recipe: str | RecipeConfig = "aligned",
    **changes: Any,
) -> Prepared:
    """A run of six training and three held-out rows, or of others, with nothing cached; changes are of its config."""
    recipe = RecipeConfig(recipe) if isinstance(recipe, str) else recipe
    config, run = config_of(folder, recipe=recipe, **changes), RunFolder(folder)
    inputs = inputs_of(
        samples(6) if rows is None else rows, samples(3, first=6) if heldout is None else heldout
    )
    return Prepared(config, run, inputs, plan, recipes_of(config), Stores(config, run, inputs, plan))


def cached(folder: Path, **options: Any) -> Prepared:
    """The same with its cache."""
    made = prepared(folder, **options)
    # These two would take longer than all the rest.
    with patch("gc.collect"), patch("os.fsync"):
        cache(made)
    return made
