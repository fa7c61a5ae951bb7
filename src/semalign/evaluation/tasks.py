"""Exact answer checkers: a letter, a final number, or code that must pass asserts.

A row's ``check`` holds what is needed: ``{"kind": "letter", "answer": "B", "options": [...]}``,
``{"kind": "number", "answer": 15}`` or
``{"kind": "python", "entry": name, "prefix": text before a bare body, "asserts": [...]}``. The asserts see the entry, which runs in
another process, and what the prefix defines (`semalign.jail.programs`).
"""

import ast
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semalign.errors import ConfigError, DataError
from semalign.jail.process import Backend, Permission, require_backend
from semalign.jail.programs import Program, run_programs

_NUMBER = r"-?\d[\d,]*(?:\.\d+)?"
_FINAL_NUMBER = re.compile(rf"(?:answer is:?|####|=>)\s*\$?({_NUMBER})", re.IGNORECASE)
_ANY_NUMBER = re.compile(rf"(?<![\w.])({_NUMBER})")
_FENCE = re.compile(r"```[ \t]*\w*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_FUTURE = re.compile(r"^from __future__ import .*\n", re.MULTILINE)
_CODE_START = re.compile(r"^(?:def |async def |class |import |from |@)", re.MULTILINE)


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
    for number, (row, completion) in enumerate(zip(rows, completions, strict=True)):
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


def extract_letter(completion: str, options: int) -> str | None:
    """The chosen letter: after the last "answer is", else a completion that is or starts with a bare letter."""
    last = chr(ord("A") + options - 1)
    stated = re.findall(rf"(?i:answer(?:\s+is)?)\s*:?\s*[\(\*\"']*([A-{last}])(?![A-Za-z0-9'])", completion)
    if stated:
        return str(stated[-1])
    bare = re.match(rf"\s*[\(\*\"']*([A-{last}])(?:[\)\.\:,\*\"']|\s*$|\s*\n)", completion)
    return bare.group(1) if bare else None


def extract_number(completion: str) -> float | None:
    """The final number: after the last "answer is" or "####", else the last number of all."""
    found = _FINAL_NUMBER.findall(completion) or _ANY_NUMBER.findall(completion)
    return float(found[-1].replace(",", "")) if found else None


def extract_code(completion: str, entry: str, prefix: str = "") -> str | None:
    """Python source that defines ``entry``, from a completion with or without fences; None when nothing compiles.

    An answer may be the whole of a module, begin at its definition, or be the body alone, which then continues ``prefix``. It has
    the prompt's imports, helpers and constants in every case, as it was written below them: those of ``prefix`` stand before it, and
    what the answer defines anew replaces them. Lines after the code that are no Python are dropped.
    """
    text, prefix = plain_lines(completion), plain_lines(prefix)
    defines = re.compile(rf"^(?:async )?def {re.escape(entry)}\s*\(", re.MULTILINE)
    blocks = _FENCE.findall(text)
    # A text with a fence that closes and none that opens is code up to there.
    open_text = text.partition("\n```")[0]
    for source in map(textwrap.dedent, (*blocks, open_text, text)):
        if definition := defines.search(source):
            # Prose may begin as code does: "from here on".
            starts = [m.start() for m in _CODE_START.finditer(source) if m.start() <= definition.start()]
            codes = (_compilable(source[start:], defines) for start in starts)
            code = next((code for code in codes if code is not None), None)
            return code and _below(_context(prefix, entry), code)
    if not defines.search(prefix):
        return None
    body = (blocks[0] if blocks else open_text).strip("\n")
    if body and not body[0].isspace():
        body = textwrap.indent(body, "    ")
    return _compilable(prefix + body, defines)


def plain_lines(text: str) -> str:
    """The text with line feeds alone at the ends of its lines."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _context(prefix: str, entry: str) -> str:
    """What a prompt defines beside the function that it asks for."""
    for text in (prefix, f"{prefix.rstrip()}\n    pass"):
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        nodes = [node for node in tree.body if getattr(node, "name", None) != entry]
        return "\n".join(map(ast.unparse, nodes))
    return ""


def _below(context: str, code: str) -> str:
    """Code below other code; imports from __future__ may only stand at the top of both."""
    if not context.strip():
        return code
    return "".join(_FUTURE.findall(code)) + f"{context}\n\n{_FUTURE.sub('', code)}"


def _compilable(source: str, defines: re.Pattern[str]) -> str | None:
    """The longest run of whole lines from the start that compiles and still defines the function."""
    lines = source.rstrip().split("\n")
    while lines and defines.search(text := "\n".join(lines)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd code of a model is no news to the user
                compile(text, "completion", "exec")
        except (SyntaxError, ValueError):
            lines.pop()
        else:
            return text + "\n"
    return None
