"""Whether everything is there that the evaluate step will ask for, found out before a model is loaded or trained."""

from __future__ import annotations

from pathlib import Path

from semalign.config import TransferConfig
from semalign.data.drawing import task_rows
from semalign.errors import ConfigError
from semalign.evaluation.harness import check_harness
from semalign.evaluation.server import program_of
from semalign.evaluation.tasks import require_permission
from semalign.jail.process import Backend
from semalign.signals.request import recipes_of


def check_answering(config: TransferConfig, task: str | None = None) -> Backend | None:
    """Of `check_evaluation` what concerns the items of all tasks, or of one, and who answers them."""
    if config.evaluation.engine == "server":
        program_of(config.evaluation.server)
    return require_permission(task_rows(config, task), config.evaluation.allow_code_execution)


def check_evaluation(config: TransferConfig) -> Backend | None:
    """Read the items, resolve the methods, find the packages.

    Returns:
        What generated code will run in; None where no item needs code to be run.

    Raises:
        DataError: an item that cannot be answered or graded.
        ConfigError: generated code would run without permission, a method, a harness task or the program of the server is unknown.
        SemAlignError: the package of the harness is not installed.
    """
    options = config.evaluation
    recipes_of(config)
    backend = check_answering(config)
    if options.harness_path is not None and not Path(options.harness_path).is_dir():
        raise ConfigError(
            f"evaluation.harness_path: expected a folder of task files, found none at {options.harness_path}; mend the path."
        )
    if options.harness:
        check_harness(options)
    return backend
