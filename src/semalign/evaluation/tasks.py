"""Exact answer checkers: a letter, a final number, or code that must pass asserts.

A row's ``check`` holds what is needed: ``{"kind": "letter", "answer": "B", "options": [...]}``,
``{"kind": "number", "answer": 15}`` or
``{"kind": "python", "entry": name, "prefix": text before a bare body, "asserts": [...]}``. The asserts see the entry, which runs in
another process, and what the prefix defines (`semalign.jail.programs`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semalign.errors import ConfigError, DataError
from semalign.evaluation.extraction import (
    extract_code,
    extract_letter,
    extract_number,
    without_thinking,
)
from semalign.jail.process import Backend, Permission, require_backend
from semalign.jail.programs import Program, run_programs


@dataclass(frozen=True)
class Verdict:
    """What the checker found."""

    correct: bool
    extracted: bool
    """Whether the completion held an answer in a known form, right or wrong."""
    reason: str
    code: str | None = None
    """What was run, where the row is graded by running code."""


def check_answer(row: Mapping[str, Any], completion: str, *, allow_code_execution: Permission) -> Verdict:
    """Check one completion against its row; see ``check_answers``."""
    return check_answers([row], [completion], allow_code_execution=allow_code_execution, workers=1)[0]


def check_answers(
    rows: Sequence[Mapping[str, Any]],
    completions: Sequence[str],
    *,
    allow_code_execution: Permission,
    workers: int = 2,
) -> list[Verdict]:
    """Check completions against their rows, all code in ``workers`` jails.

    Raises ConfigError when a row needs code to be run and ``allow_code_execution`` is off, or the machine offers no jail and it is
    not "unsafe".
    """
    if len(rows) != len(completions):
        raise DataError(f"Expected one completion for each of {len(rows)} rows, got {len(completions)}.")
    backend = require_permission(rows, allow_code_execution)
    verdicts: list[Verdict | None] = [None] * len(rows)
    programs: dict[int, Program] = {}
    for number, (row, whole) in enumerate(zip(rows, completions, strict=True)):
        completion = without_thinking(whole)
        if _check_of(row)["kind"] == "python":
            entry, prefix = str(_check_of(row)["entry"]), str(_check_of(row).get("prefix", ""))
            code = extract_code(completion, entry, prefix)
            if code is None:
                verdicts[number] = Verdict(False, False, "no code for the wanted function")
            else:
                programs[number] = Program(code, tuple(_check_of(row)["asserts"]), (entry,), prefix)
        else:
            verdicts[number] = _check_text(_check_of(row), completion)
    if programs:
        assert backend is not None
        outcomes = run_programs(list(programs.values()), workers=workers, backend=backend)
        for number, outcome in zip(programs, outcomes, strict=True):
            verdicts[number] = Verdict(outcome.passed, True, outcome.reason, programs[number].code)
    assert all(verdict is not None for verdict in verdicts)
    return [verdict for verdict in verdicts if verdict is not None]


def check_items(rows: Sequence[Mapping[str, Any]], allow_code_execution: Permission) -> None:
    """Raise what `check_answers` would raise for rows, before anybody has answered them."""
    for row in rows:
        _check_of(row)
    require_permission(rows, allow_code_execution)


def require_permission(rows: Sequence[Mapping[str, Any]], allow_code_execution: Permission) -> Backend | None:
    """What the rows' code will run in; None where no row needs code to be run.

    Raises:
        ConfigError: code is needed and not allowed, or this machine offers no jail for it.
    """
    row = next((row for row in rows if _check_of(row)["kind"] == "python"), None)
    if row is None:
        return None
    if not allow_code_execution:
        raise ConfigError(
            f"Row {row.get('id')!r} is graded by running generated code, which is off: "
            "set allow_code_execution to true, or leave code tasks out."
        )
    return require_backend(allow_code_execution)


def _check_of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    check = row.get("check")
    if not isinstance(check, Mapping) or check.get("kind") not in ("letter", "number", "python"):
        raise DataError(
            f"Row {row.get('id')!r} needs a check of kind letter, number or python, got {check!r}; "
            "rows without a check can be trained on but not graded."
        )
    return check


def _check_text(check: Mapping[str, Any], completion: str) -> Verdict:
    if check["kind"] == "letter":
        found: str | float | None = extract_letter(completion, len(check.get("options", "ABCD")))
        wanted: str | float = str(check["answer"])
    else:
        found, wanted = extract_number(completion), float(check["answer"])
    if found is None:
        return Verdict(False, False, f"no {check['kind']} found")
    right = found == wanted
    return Verdict(right, True, "right" if right else f"expected {wanted}, found {found}")
