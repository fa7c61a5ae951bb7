"""lm-evaluation-harness' tasks that run code, graded in the jail: what stands in for the metric that would run it here.

The harness' tasks (humaneval, mbpp and their kin) hand code to the metric `code_eval` of the package evaluate, which runs it with
this user's rights. While `graded_in_jail` is open that metric is this module's, and a task that would run code in another way is
refused before anything is generated.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import comb
from pathlib import Path
from typing import Any
from unittest.mock import patch

from semalign.errors import ConfigError
from semalign.jail.inside.checker import NO_PYTHON
from semalign.jail.process import Backend, Permission, require_backend
from semalign.jail.programs import Program, jails_kept, run_programs

TASKS = Path(__file__).parent / "harness_tasks"


class CodeEval:
    """The part of evaluate's metric that tasks use; `compute` returns what it returns."""

    def __init__(self, permission: Permission) -> None:
        self.permission = permission
        self.doc: Mapping[str, Any] = {}
        """The item whose answers are graded now."""

    def require(self) -> Backend:
        """What the code runs in; ConfigError where it may not, or cannot."""
        if not self.permission:
            raise ConfigError(
                "evaluation.harness: a task runs generated code, which is off; set evaluation.allow_code_execution, or leave the task out."
            )
        return require_backend(self.permission)

    def compute(
        self,
        *,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        **_: Any,
    ) -> tuple[dict[str, float], dict[int, Any]]:
        """pass@k of answers to tests, as 1 - C(n - c, k) / C(n, k) with c right of n answers, a mean over the items."""
        backend = self.require()
        programs = [
            program_of(answer, tests, str(self.doc.get("prompt", "")))
            for tests, answers in zip(references, predictions, strict=True)
            for answer in answers
        ]
        passed = iter([outcome.passed for outcome in run_programs(programs, backend=backend)])
        counts = [(len(answers), sum(next(passed) for _ in answers)) for answers in predictions]
        rates = {
            f"pass@{n}": sum(1 - comb(all_ - right, n) / comb(all_, n) for all_, right in counts)
            / len(counts)
            for n in k
            if all(all_ >= n for all_, _ in counts)
        }
        return rates, {}


def program_of(answer: str, tests: str, prompt: str) -> Program:
    """An answer and its tests as a program: what the tests call is the answer's, and the item's own prompt gives the rest.

    Of a prompt that the answer continues, the text before the function is the tests' too: the functions and imports that it
    defines, as they stand there and not as the answer may have changed them.
    """
    wanted = _free_names(tests)
    checked = re.search(r"^check\((\w+)\)\s*\Z", tests, re.MULTILINE)
    entries = {checked[1]} if checked else wanted
    prefix = prompt if prompt and answer.startswith(prompt) else ""
    return Program(answer, (tests,), tuple(sorted(entries)), prefix)


def _free_names(code: str) -> set[str]:
    """Names that code reads and nowhere gives a value to."""
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except NO_PYTHON:
        return set()
    names = [node for node in nodes if isinstance(node, ast.Name)]
    given = {name.id for name in names if not isinstance(name.ctx, ast.Load)} | set(dir(builtins))
    given |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    given |= {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    given |= {
        (alias.asname or alias.name).split(".")[0]
        for node in nodes
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    return {name.id for name in names} - given


METRIC = CodeEval(False)
"""One for all evaluations of this process: the harness imports a task's functions once, and they keep the metric that they were given."""


@contextmanager
def graded_in_jail(permission: Permission) -> Iterator[None]:
    """While this is open, the harness' tasks that run code have it graded in the jail.

    Raises (when such a task is loaded):
        ConfigError: code may not run, this machine offers no jail, or the task does not leave its code to `code_eval`.
    """
    import evaluate
    from lm_eval.api.task import ConfigurableTask

    load, start, process = evaluate.load, ConfigurableTask.__init__, ConfigurableTask.process_results

    def load_metric(path: str, *args: Any, **kwargs: Any) -> Any:
        return METRIC if path == "code_eval" else load(path, *args, **kwargs)

    def start_task(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        if not getattr(self, "UNSAFE_CODE", False):
            return
        METRIC.require()
        if not _is_jailed(self):
            raise ConfigError(
                f"evaluation.harness: {self.config.task} runs generated code by itself, outside the sandbox; leave it out."
            )

    def process_item(self: Any, doc: dict[str, Any], results: Any) -> Any:
        METRIC.doc = doc
        return process(self, doc, results)

    with (
        patch.object(METRIC, "permission", permission),
        patch.object(evaluate, "load", load_metric),
        patch.object(ConfigurableTask, "__init__", start_task),
        patch.object(ConfigurableTask, "process_results", process_item),
        jails_kept(),
    ):
        yield


def _is_jailed(task: Any) -> bool:
    """Whether a task's code runs in the jail: by way of our metric, or because the task is one of SemAlign's own."""
    own = getattr(task.config.process_results, "__code__", None)
    if own is not None:
        return Path(own.co_filename).is_relative_to(TASKS)
    functions = [getattr(found, "__self__", found) for found in task._metric_fn_list.values()]
    return bool(functions) and all(
        any(value is METRIC for value in getattr(function, "__globals__", {}).values())
        for function in functions
    )
