"""The steps in order on one run folder, and the resume rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

from semalign.config import TransferConfig
from semalign.data.inputs import Inputs, load_inputs
from semalign.evaluation.readiness import check_evaluation
from semalign.evaluation.summary import add_costs
from semalign.models.loading import shape_named
from semalign.models.origin import origin
from semalign.report import build_report
from semalign.report.card import write_card
from semalign.report.hub import push
from semalign.run import ranks
from semalign.run.files import keep_once, write_json
from semalign.run.folder import RunFolder
from semalign.signals.prepared import Prepared
from semalign.signals.request import check_teacher
from semalign.steps.attribute import attribute
from semalign.steps.cache import cache
from semalign.steps.evaluate import evaluate
from semalign.steps.generate import generate
from semalign.steps.opening import check_start, open_run
from semalign.steps.pair import pair
from semalign.steps.train import train
from semalign.training.sharded import check_processes

STEPS = ("generate", "attribute", "pair", "cache", "train", "evaluate", "report")
SHARED_STEPS = (
    "cache",
    "train",
)  # what all processes of a launch work on; for the others the main one suffices
Progress = Callable[[str], None]


def transfer(
    config: TransferConfig, steps: Sequence[str] = STEPS, progress: Progress = lambda step: None
) -> RunFolder:
    """Run steps in order; those whose result is still valid are skipped, so a killed run goes on where it was.

    Several processes (`accelerate launch -m semalign ...`) share the rows of caching and training; they must see the same
    run folder.

    Args:
        steps: which of STEPS to run; each reads only files that earlier ones wrote.
        progress: called with a step's name when it starts.
    """
    run = RunFolder(Path(config.output_dir))
    ranks.start()
    if "train" in steps:
        check_processes(config)
        check_start(config)
    if "evaluate" in steps and ranks.is_main():
        check_evaluation(config)
    with run.lock():
        if ranks.is_main():
            open_run(config)
            if "generate" in steps and config.data.is_generated:
                progress("generate")
                # Rows are written for hours, and the plan is made after them.
                check_teacher(config, shape_named(config.teacher, needs_layers=False))
                generate(config, run)
        ranks.wait()
        inputs = load_inputs(config, run)
        if ranks.is_main():
            write_json(run.data, inputs.counts())
            keep_once(
                run.models, lambda: {"teacher": origin(config.teacher), "student": origin(config.student)}
            )
        prepared = lru_cache(partial(Prepared.read, config, run, inputs))
        for step in (s for s in STEPS if s in steps and s != "generate"):
            if ranks.is_main():
                progress(step)
            if ranks.is_main() or step in SHARED_STEPS:
                _run_step(step, config, run, inputs, prepared, is_alone=tuple(steps) == (step,))
            ranks.wait()
        if config.push_to_hub and tuple(steps) == STEPS and ranks.is_main():
            assert config.hub_model_id is not None
            progress("push")
            push(run, config.hub_model_id, private=config.hub_private_repo, is_dry=False)
    return run


def _run_step(
    step: str,
    config: TransferConfig,
    run: RunFolder,
    inputs: Inputs,
    prepared: Callable[[], Prepared],
    *,
    is_alone: bool,
) -> None:
    """One step by name; `prepared` reads the plan and the stores once, when the first step needs them."""
    if step == "attribute":
        attribute(config, run, inputs, is_asked_for=is_alone)
    elif step == "pair":
        pair(config, run, inputs)
    elif step == "cache":
        cache(prepared())
    elif step == "train":
        for baseline in (None, *config.evaluation.baselines):
            train(prepared(), baseline)
        # All processes train, and one of them writes what lies beside the weights.
        if ranks.is_main():
            write_card(run)
    elif step == "evaluate":
        evaluate(prepared())
        add_costs(run, config)
        write_card(run)
    elif step == "report":
        build_report(run.root)
