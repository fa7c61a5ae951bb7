"""The steps in order on one run folder, and the resume rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import lru_cache, partial
from pathlib import Path

from semalign.config import UNTIL_CACHED, EvaluationConfig, TransferConfig, completed, differences, plain
from semalign.config.parsing import read_yaml
from semalign.data.inputs import Inputs, load_inputs
from semalign.errors import CacheError, ConfigError
from semalign.evaluation.readiness import check_evaluation
from semalign.evaluation.summary import add_costs
from semalign.models.origin import origin
from semalign.report import build_report
from semalign.report.card import write_card
from semalign.report.hub import push
from semalign.run import ranks
from semalign.run.digests import damage, seal_of
from semalign.run.environment import environment
from semalign.run.files import find_json, keep_once, say_once, write_json, write_yaml
from semalign.run.folder import RunFolder
from semalign.run.secrets import redacted
from semalign.signals.prepared import Prepared
from semalign.signals.remote import Remote, is_remote
from semalign.steps.attribute import attribute
from semalign.steps.cache import cache
from semalign.steps.evaluate import evaluate
from semalign.steps.generate import generate
from semalign.steps.pair import pair
from semalign.steps.train import train
from semalign.training.sharded import check_processes

STEPS = ("generate", "attribute", "pair", "cache", "train", "evaluate", "report")
# Fields that may change from one call to the next. Of what is measured only the baselines, which are trained, and the rows whose
# teacher's streams are cached belong to the run; what depends on the others is made again.
NOT_THE_RUN = (
    *("output_dir", "push_to_hub", "hub_"),
    *(f"evaluation.{f.name}" for f in fields(EvaluationConfig) if f.name not in ("baselines", "cka_rows")),
)
SHARED_STEPS = (
    "cache",
    "train",
)  # what all processes of a launch work on; for the others the main one suffices
Progress = Callable[[str], None]


def open_run(config: TransferConfig) -> RunFolder:
    """The run folder with its config and environment written; another config in the same folder stops with a diff."""
    run = RunFolder(Path(config.output_dir))
    new = plain(config)
    _check_version(run)
    if run.config.exists() and seal_of(run.config.read_bytes(), ".yaml") != "whole":
        say_once(f"{run.config}: damaged or edited since it was written; written again from the given config")
    elif run.config.exists():
        old = completed(read_yaml(run.config), config)
        tokens = () if run.manifest.exists() else tuple(f"data.{name}:" for name in UNTIL_CACHED)
        free = (*NOT_THE_RUN, *tokens)
        if changed := [line for line in differences(old, redacted(new)) if not line.startswith(free)]:
            raise ConfigError(
                f"{run.root}: holds a run with another config ({'; '.join(changed)}); choose another output_dir or delete the folder."
            )
    _place_cache(config, run)
    write_yaml(run.config, new)
    _drop_foreign(run)
    keep_once(run.environment, environment)
    return run


def _drop_foreign(run: RunFolder) -> None:
    """Delete what says of the run how it was made and is another run's; it is written again."""
    try:
        files = find_json(run.metrics, step="evaluate").get("files", {})
    except CacheError:
        return  # the evaluate step makes it again
    for path in (run.environment, run.models):
        if (
            path.exists()
            and path.name in files
            and (wrong := damage(run.root, {path.name: files[path.name]}))
        ):
            say_once(f"{run.root}: {wrong}; written again")
            path.unlink()


def _check_version(run: RunFolder) -> None:
    """Refuse a folder from before files had seals: nothing in it can be verified, and its plan may have been edited."""
    files = {path: path.suffix for path in (run.config, run.environment)}
    if all(path.exists() and seal_of(path.read_bytes(), kind) == "none" for path, kind in files.items()):
        raise CacheError(
            f"{run.root}: holds a run of an earlier version, whose files have no digests to verify them by; choose another "
            "output_dir, or delete the folder to run it again."
        )


def _place_cache(config: TransferConfig, run: RunFolder) -> None:
    """A cache in another local folder is linked to as targets/; a remote one is asked for before anything is loaded."""
    folder = config.cache.folder
    if folder is None:
        return
    if is_remote(folder):
        Remote(folder)
    elif not run.targets.exists():
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            run.root.mkdir(parents=True, exist_ok=True)
            run.targets.symlink_to(Path(folder).absolute(), target_is_directory=True)
        except OSError as error:
            raise ConfigError(
                f"cache.folder: {folder} cannot be used ({error}); choose another folder."
            ) from error


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
    if "evaluate" in steps and ranks.is_main():
        check_evaluation(config)
    with run.lock():
        if ranks.is_main():
            open_run(config)
            if "generate" in steps and config.data.is_generated:
                progress("generate")
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
        if config.push_to_hub and "report" in steps and ranks.is_main():
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
        write_card(run)
    elif step == "evaluate":
        evaluate(prepared())
        add_costs(run, config)
        write_card(run)
    elif step == "report":
        build_report(run.root)
