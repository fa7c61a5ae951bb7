"""Run generated code in a jail and grade it from outside: an answer's process computes, a checker's process compares.

For every program a jail holds two fresh processes. The answer's runs its code and then the calls that it is sent; it can
compute, and nothing else: the kernel refuses it files, sockets, threads, other processes and all that names them. The checker
runs the asserts, in which the answer's function is a call to the other process: arguments and values pass as plain data
(`inside/values.py`), so no code of the answer's is near a comparison, and the verdict is written where the answer cannot write.

What this does not support, so that such an answer is graded wrong: values and arguments that are functions, classes or
instances of an own class; names of the answer's other than the entries; iterators of more than 100,000 items; the identity of
objects (`f(x) is x`); changes in place to what lies inside an argument and is held elsewhere too; StopIteration from a call;
reading or writing files, threads, and modules outside the standard library. An instance of a subclass of a built-in type leaves
as the type itself, a Counter as a dict.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from semalign.jail.inside.checker import NO_PYTHON
from semalign.jail.process import Backend, Jail, JailError, Limits, require_backend


@dataclass(frozen=True)
class Program:
    """Code, and the asserts that must all hold of its functions."""

    code: str
    asserts: tuple[str, ...]
    entries: tuple[str, ...] = ()
    """The functions of the code that the asserts call."""
    prefix: str = ""
    """Trusted text of the task before the answer: its imports and functions are the asserts' too."""


@dataclass(frozen=True)
class Outcome:
    passed: bool
    reason: str
    """"passed", the exception, or what limit was met."""


def run_programs(
    programs: Sequence[Program],
    *,
    limits: Limits | None = None,
    workers: int = 2,
    backend: Backend | None = None,
) -> list[Outcome]:
    """Run programs in ``workers`` jails, one after another in each.

    Fails closed: a program whose verdict does not come back has not passed.

    Args:
        backend: what shuts them in; by default the best that this machine offers.

    Raises:
        ConfigError: this machine offers no jail.
    """
    if not programs:
        return []
    chosen = backend or require_backend(True)
    count = max(1, min(workers, len(programs)))
    chunks = [programs[n::count] for n in range(count)]
    if count == 1:  # in this thread: a jail ends with the thread that started it
        return _run_chunk(programs, chosen, limits or Limits())
    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(lambda chunk: _run_chunk(chunk, chosen, limits or Limits()), chunks))
    return [results[n % count][n // count] for n in range(len(programs))]


_KEPT: dict[tuple[str, Limits], Jail] | None = None


@contextlib.contextmanager
def jails_kept() -> Iterator[None]:
    """While this is open, a single program finds the jail of the one before it running, as each costs a quarter of a second."""
    global _KEPT
    before, _KEPT = _KEPT, {}
    try:
        yield
    finally:
        for jail in _KEPT.values():
            jail.close()
        _KEPT = before


def _run_chunk(programs: Sequence[Program], backend: Backend, limits: Limits) -> list[Outcome]:
    outcomes: list[Outcome] = []
    kept = _KEPT if len(programs) == 1 and _KEPT is not None else {}
    key = (backend.kind, limits)
    try:
        for program in programs:
            try:
                if key not in kept:
                    kept[key] = Jail(backend, limits)
                failed = _run(kept[key], program)
            except JailError as error:
                kept.pop(key, None)
                failed = f"the sandbox gave no verdict: {error}"
            outcomes.append(Outcome(failed is None, "passed" if failed is None else failed))
    finally:
        if kept is not _KEPT:
            for jail in kept.values():
                jail.close()
    return outcomes


def _run(jail: Jail, program: Program) -> str | None:
    is_bare = all(_is_bare(text, program.entries) for text in program.asserts)
    prefix = "" if is_bare else program.prefix
    return jail.run(program.code, program.asserts, program.entries, prefix, is_bare=is_bare)


_LITERAL = (
    ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp, ast.unaryop, ast.expr_context,
    ast.Compare, ast.cmpop, ast.Assert, ast.Module,
)  # fmt: skip


def _is_bare(text: str, entries: Sequence[str]) -> bool:
    """Whether asserts only compare what the entries return for literals with literals, as `assert f(2) == [1]` does."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except NO_PYTHON:
        return False
    called = [node.func for node in nodes if isinstance(node, ast.Call) and not node.keywords]
    return all(
        isinstance(node, _LITERAL)
        or (isinstance(node, ast.Call) and node.func in called)
        or (isinstance(node, ast.Name) and node.id in entries and node in called)
        for node in nodes
    )
