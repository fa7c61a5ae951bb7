"""Opening a run's folder: whose it is, what of its config may still change, and where its cache lies."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from semalign.config import UNTIL_CACHED, EvaluationConfig, TransferConfig, completed, differences, plain
from semalign.config.parsing import read_yaml
from semalign.errors import CacheError, ConfigError
from semalign.models.origin import check_hub_id
from semalign.run.digests import damage, seal_of
from semalign.run.environment import environment
from semalign.run.files import find_json, keep_once, say_once, write_yaml
from semalign.run.folder import RunFolder
from semalign.run.secrets import redacted
from semalign.signals.remote import Remote, is_remote
from semalign.signals.request import recipes_of
from semalign.steps.rounds import check_rounds
from semalign.training.arguments import check_tracker

# Fields that may change from one call to the next. Of what is measured only the baselines, which are trained, and the rows whose
# teacher's streams are cached belong to the run; what depends on the others is made again.
NOT_THE_RUN = (
    *("output_dir", "push_to_hub", "hub_"),
    *(f"evaluation.{f.name}" for f in fields(EvaluationConfig) if f.name not in ("baselines", "cka_rows")),
    # How much is done at once, and where: nothing that is made depends on it.
    *("attribution.batch_size", "cache.batch_size", "cache.max_bytes"),
    *(f"teacher.server.{name}" for name in ("url", "requests", "retries", "key_variable")),
    *("teacher.device_map", "teacher.max_memory", "teacher.offload"),
)
UNTIL_TRAINED = ("train.", "recipe.", "evaluation.baselines")
"""What nobody reads before the train step, or what makes of the cache anew only what depends on it."""
UNTIL_SIGNALS = (
    *(f"data.{name}:" for name in UNTIL_CACHED),
    "attribution.",
    "pairing.",
    "cache.",
    "evaluation.cka_rows",
)
"""What nobody reads before the cache step, but plans and scores, which take seconds."""


def open_run(config: TransferConfig) -> RunFolder:
    """The run folder with its config and environment written; another config in the same folder stops with a diff.

    An option may change until a step has used it up: the cache step has run, or the student is trained. So what a step refuses can be
    set right where it was said.
    """
    run = RunFolder(Path(config.output_dir))
    _check_version(run)
    refuse_another(config, run)
    if not _has_begun(run):
        run.models.unlink(missing_ok=True)  # of the models that an earlier config named
    place_cache(config, run)
    write_yaml(run.config, plain(config))
    _drop_foreign(run)
    keep_once(run.environment, environment)
    return run


def check_start(config: TransferConfig) -> None:
    """What the train step and the upload at the end would refuse, refused before anything is made."""
    check_tracker(config.train.report_to)
    check_rounds(recipes_of(config)[None], config.train.rounds)
    if config.push_to_hub:
        check_hub_id(str(config.hub_model_id))


def refuse_another(config: TransferConfig, run: RunFolder) -> None:
    """Refuse a folder that holds a run with another config, as far as its steps have come.

    Raises:
        ConfigError: it does; or its config.yaml is somebody's own.
    """
    if not run.config.exists():
        return
    if not _is_as_written(run):
        if not run.environment.exists():
            raise ConfigError(
                f"{run.config}: expected the name to be free for the options of this run, got a file that no run has written; "
                "rename it, or choose another output_dir."
            )
        say_once(f"{run.config}: damaged or edited since it was written; written again from the given config")
        return
    changed = [line for line in changes(config, run) if not line.startswith(NOT_THE_RUN)]
    if fixed := [line for line in changed if not line.startswith(_still_open(run))]:
        raise ConfigError(
            f"{run.root}: holds a run with another config ({'; '.join(fixed)}); choose another output_dir or delete the folder."
        )
    if changed:
        say_once(f"{run.root}: goes on with other options than before ({'; '.join(changed)})")


def changes(config: TransferConfig, run: RunFolder) -> list[str]:
    """In which options a config differs from the one of the folder, as `path: old -> new`; none where there is no readable one."""
    if not _is_as_written(run):
        return []
    return differences(completed(read_yaml(run.config), config), redacted(plain(config)))


def _is_as_written(run: RunFolder) -> bool:
    """Whether the options that a run has written are there, and nobody has changed them."""
    return run.config.exists() and seal_of(run.config.read_bytes(), ".yaml") == "whole"


def _still_open(run: RunFolder) -> tuple[str, ...]:
    """How the paths of those options begin that no step has used up."""
    if not _has_begun(run):
        return ("",)
    folder = run.training()
    kept = [
        folder / "train.json",
        *folder.glob("checkpoint-*"),
        *folder.glob("stage-*"),
        *folder.glob("rounds/*/checkpoint-*"),
    ]
    if any(path.exists() for path in kept):
        return ()
    return UNTIL_TRAINED if run.manifest.exists() else UNTIL_TRAINED + UNTIL_SIGNALS


def _has_begun(run: RunFolder) -> bool:
    """Whether anything in the folder was made by a step, be it a part."""
    made = (run.generated, run.scores, run.pairs, run.manifest, run.training() / "train.json")
    return any(path.exists() for path in made) or any(run.root.glob("*.part"))


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


def place_cache(config: TransferConfig, run: RunFolder) -> None:
    """A cache in another local folder is linked to as targets/; a remote one is asked for before anything is loaded."""
    folder = config.cache.folder
    if folder is None:
        return
    if is_remote(folder):
        Remote(folder)
    elif run.targets.is_dir() and not run.targets.is_symlink():
        raise ConfigError(
            f"cache.folder: expected null for a run whose cache lies in {run.targets} already, got {folder}; leave it out, or delete that "
            "cache to have it made there."
        )
    elif not run.targets.exists():
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            run.root.mkdir(parents=True, exist_ok=True)
            # The folder that a link names may have been deleted or moved.
            run.targets.unlink(missing_ok=True)
            run.targets.symlink_to(Path(folder).absolute(), target_is_directory=True)
        except OSError as error:
            raise ConfigError(
                f"cache.folder: {folder} cannot be used ({error}); choose another folder."
            ) from error
