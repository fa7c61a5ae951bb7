"""What cells share, made once: rows, signals, plan and cache of a source, and a teacher with fresh weights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from semalign.comparison.plan import Source
from semalign.config import ModelConfig
from semalign.data.inputs import Inputs, load_inputs
from semalign.models.finding import load_tokenizer
from semalign.models.loading import random_model
from semalign.run.files import replacing_folder, saving, say_once
from semalign.run.sums import agrees_with_sums, write_sums
from semalign.signals.prepared import Prepared
from semalign.steps.attribute import attribute
from semalign.steps.cache import cache
from semalign.steps.generate import generate
from semalign.steps.pair import pair

PATIENCE = 30.0  # seconds; workers outlive a comparison that was killed by a moment
_inputs: dict[str, Inputs] = {}
_prepared: dict[str, Prepared] = {}


def make_random_teacher(teacher: ModelConfig, target: Path) -> None:
    """A teacher of the same sizes with fresh weights, as its architecture initialises them; always the same ones."""
    if agrees_with_sums(target):
        return
    if target.exists():
        say_once(f"{target}: not as it was saved; made again")
        shutil.rmtree(target)
    torch.manual_seed(0)
    model = random_model(teacher)
    tokenizer = load_tokenizer(teacher)
    with replacing_folder(target) as part, saving(target):
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        write_sums(part)


def prepare(source: Source) -> None:
    """Rows, scores, plan and cache of a source; what is there is kept."""
    config, run = source.config, source.run
    with run.lock(PATIENCE):
        # From the start, for the same reason as a cell.
        if not run.generated.exists():
            for path in run.root.glob("*.part"):
                path.unlink()
        if not run.manifest.exists():
            shutil.rmtree(run.targets, ignore_errors=True)
        generate(config, run)
        inputs = inputs_of(source)
        attribute(config, run, inputs)
        pair(config, run, inputs)
        cache(prepared_of(source))


def inputs_of(source: Source) -> Inputs:
    """The source's tokenised rows, kept for the next cell of this worker; held-out ones where students are measured with them."""
    key = source.config.output_dir
    if key not in _inputs:
        inputs = load_inputs(source.config, source.run)
        if not source.is_measured_with:
            inputs = replace(inputs, heldout=[], fingerprint=inputs.fingerprint | {"heldout": None})
        _inputs[key] = inputs
    return _inputs[key]


def prepared_of(source: Source) -> Prepared:
    """The source's plan and stores, kept likewise."""
    key = source.config.output_dir
    if key not in _prepared:
        _prepared[key] = Prepared.read(source.config, source.run, inputs_of(source))
    return _prepared[key]
