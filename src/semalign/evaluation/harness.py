"""Tasks of lm-evaluation-harness, in this process, on a model that is loaded already: zero-shot, with the chat template.

The embedded world's tasks are registered there too, as semalign_knowledge, semalign_arithmetic, semalign_code_complete and
semalign_code_write, so that `lm_eval --include_path` on `TASKS` knows them.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from semalign.config import EvaluationConfig, by_name
from semalign.data import encode_prompt
from semalign.errors import CacheError, ConfigError, require, suggestion
from semalign.evaluation.code_eval import TASKS, CodeEval, graded_in_jail
from semalign.evaluation.statistics import Z95
from semalign.models.decoder import Decoder
from semalign.models.variables import variables_of
from semalign.run.files import FULL


def harness_figures(decoder: Decoder, options: EvaluationConfig) -> list[dict[str, Any]]:
    """Every figure of the wanted tasks, a task group as one.

    Returns:
        Dicts of task, metric, filter (how the answer was read off, or none), n (items), value, and low and high, the
        value +- 1.96 standard errors, or None where the harness gives no error.

    Raises:
        ConfigError: a task that the harness does not know, that runs generated code without permission or outside the jail, or
            for whose code this machine offers no jail.
        SemAlignError: the harness is not installed; or a task's rows cannot be had.
    """
    manager, wanted = check_harness(options), by_name(options.harness)
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    has_template = bool(getattr(decoder.tokenizer, "chat_template", None))
    if has_template:
        # The harness renders in this process: a template that fails or does not end shall do so before.
        encode_prompt([{"role": "user", "content": "x"}], decoder.tokenizer, "evaluation.harness")  # type: ignore[arg-type]
    variables = variables_of(decoder.tokenizer) if decoder.tokenizer is not None else {}
    # Its advice is about options of its own command line.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model = HFLM(
        pretrained=decoder.model,
        tokenizer=decoder.tokenizer,
        batch_size=options.batch_size,
        max_length=decoder.shape.positions,
        **({"chat_template_args": variables} if variables else {}),
    )
    try:
        with tempfile.TemporaryDirectory() as folder, _quiet(), graded_in_jail(options.allow_code_execution):
            found = lm_eval.simple_evaluate(
                model=model,
                tasks=[_task(name, fields, manager, Path(folder)) for name, fields in wanted.items()],
                num_fewshot=0,
                limit=options.max_items,
                apply_chat_template=has_template,
                task_manager=manager,
                confirm_run_unsafe_code=bool(options.allow_code_execution),
                log_samples=False,
                bootstrap_iters=1000,
            )
    except ValueError as error:
        if isinstance(error, ConfigError) or "unsafe" not in str(error):
            raise
        raise ConfigError(
            f"evaluation.harness: {error}; set evaluation.allow_code_execution, or leave the task out."
        ) from error
    except (OSError, ConnectionError) as error:
        if error.errno in FULL:
            raise CacheError(
                f"evaluation.harness: its rows cannot be written ({error}); free space, or set HF_HOME and TMPDIR to another disk."
            ) from error
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"evaluation.harness: a task's rows cannot be had ({reason}); without a hub give files: "
            "evaluation.harness.TASK.dataset_path: json and dataset_kwargs.data_files."
        ) from error
    return [line for name in wanted for line in _lines(name, found)]


def check_harness(options: EvaluationConfig) -> Any:
    """The harness's own list of tasks, which has every wanted one, and their code may run; raises as `harness_figures`."""
    require("lm_eval", "harness")
    from lm_eval.tasks import TaskManager

    paths = [TASKS, *([Path(options.harness_path)] if options.harness_path else [])]
    manager = TaskManager(include_path=[str(path) for path in paths])
    for name in by_name(options.harness):
        if name not in manager.all_tasks:
            advice = suggestion(name, manager.all_tasks, otherwise="see `lm_eval ls tasks`;")[:200]
            raise ConfigError(f"evaluation.harness: expected tasks of lm-eval, got {name!r}; {advice}")
        if _runs_code(name, manager.task_index):
            CodeEval(options.allow_code_execution).require()
    return manager


def _runs_code(name: str, index: Mapping[str, Any]) -> bool:
    """Whether a task, or one of a group or with a tag of this name, runs generated code."""
    entry = index.get(name)
    if entry is None:
        return False
    fields = entry.cfg or {}
    members = fields.get("task") if fields else entry.tags
    inner = members if isinstance(members, list | set) else ()
    return bool(fields.get("unsafe_code")) or any(
        _runs_code(member, index) for member in inner if isinstance(member, str) and member != name
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Where no progress is wanted, nothing on standard error, which the harness and the git it calls write to."""
    if logging.getLogger("semalign").isEnabledFor(logging.INFO):
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def _task(name: str, fields: Mapping[str, Any], manager: Any, folder: Path) -> str:
    """The task's name, or a task file that includes the harness's own and replaces fields of it."""
    if not fields:
        return name
    path = manager.task_index[name].yaml_path
    if path is None or name not in manager.all_subtasks:
        raise ConfigError(
            f"evaluation.harness.{name}: expected a single task to give fields to, got a group; name its tasks instead."
        )
    made = folder / f"{name}.yaml"
    made.write_text(yaml.safe_dump({"include": str(path), **fields, "task": name}), encoding="utf-8")
    return str(made)


def _lines(name: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    metrics = found["results"].get(name) or found["groups"][name]
    counts = found["n-samples"]
    tasks = [name] if name in counts else _members(name, found["group_subtasks"])
    n = sum(counts[task]["effective"] for task in tasks)
    lines = []
    for key, value in metrics.items():
        known = re.fullmatch(r"(.+),(.+)", key)
        if known is None or known[1].endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = metrics.get(f"{known[1]}_stderr,{known[2]}")
        half = Z95 * error if isinstance(error, (int, float)) else None
        lines.append(
            {"task": name, "metric": known[1], "filter": known[2], "n": n, "value": float(value)}
            | {
                "low": None if half is None else value - half,
                "high": None if half is None else value + half,
            }
        )
    return lines


def _members(group: str, subtasks: Mapping[str, list[str]]) -> list[str]:
    """The single tasks below a group, whatever lies between."""
    return [leaf for name in subtasks.get(group, []) for leaf in _members(name, subtasks)] or [group]
