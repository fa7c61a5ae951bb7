"""Every way to write a function does what the others and the reference do, and no two kinds are the same function."""

from __future__ import annotations

import ast
import random
from itertools import combinations
from string import Formatter
from typing import Any

import pytest

from semalign.embedded.function_kinds import BASIC_KINDS, COMPLETE_KINDS, WRITE_KINDS, FunctionKind

KINDS = (*COMPLETE_KINDS, *WRITE_KINDS)
LETTERS = "abcde"
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def parameters(kind: FunctionKind, dice: random.Random) -> list[Any]:
    """Different values for k and m, as the field `params` describes them."""
    makers = {
        "n": lambda: dice.randint(2, 60),
        "s": lambda: dice.randint(2, 9),
        "l": lambda: dice.choice(LETTERS),
        "w": lambda: "".join(dice.sample(LETTERS, 3)),
    }
    while True:
        values = [makers[code]() for code in kind.params]
        if len(set(values)) == len(values):
            return values


def argument(kind: FunctionKind, dice: random.Random) -> Any:
    """Any value of the type that a kind takes; lists are not empty."""

    def text() -> str:
        return "".join(dice.choices(LETTERS, k=dice.randint(0, 8)))

    return {
        "int": lambda: dice.randint(-5, 70),
        "ints": lambda: [dice.randint(-5, 70) for _ in range(dice.randint(1, 6))],
        "text": text,
        "texts": lambda: [text() for _ in range(dice.randint(0, 5))],
    }[kind.argument]()


def reference(kind: FunctionKind, value: Any, values: list[Any]) -> Any:
    k, m = [*values, None][:2]
    return kind.reference(value, k, m)


def written(body: str, values: list[Any]) -> str:
    """A whole function with that body."""
    lines = body.format(f="f", x="x", **dict(zip("km", values, strict=False))).splitlines()
    return "def f(x):\n" + "\n".join("    " + line for line in lines)


@by_kind
def test_every_body_returns_what_the_reference_does(kind: FunctionKind) -> None:
    dice = random.Random(kind.name)
    for _ in range(40):
        values, value = parameters(kind, dice), argument(kind, dice)
        expected = reference(kind, value, values)
        for body in kind.bodies:
            space: dict[str, Any] = {}
            exec(written(body, values), space)
            given = list(value) if isinstance(value, list) else value
            found = space["f"](given)
            assert found == expected and type(found) is type(expected), body
            assert given == value, "the argument is not changed"


@by_kind
def test_bodies_differ_and_need_nothing_but_built_in_functions(kind: FunctionKind) -> None:
    values = parameters(kind, random.Random(1))
    trees = [ast.parse(written(body, values)) for body in kind.bodies]
    assert len({ast.dump(tree) for tree in trees}) == len(kind.bodies) >= 2
    harmless = {"sum", "min", "max", "abs", "len", "list", "map", "sorted", "reversed"}
    for tree in trees:
        assigned = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        taken = {a.arg for a in ast.walk(tree) if isinstance(a, ast.arg)}
        assert {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} <= assigned | taken | harmless
        assert not any(isinstance(n, ast.Import | ast.ImportFrom) for n in ast.walk(tree))


@by_kind
def test_a_description_names_every_parameter_and_a_body_uses_it(kind: FunctionKind) -> None:
    wanted = set("km"[: len(kind.params)])
    for template in (*kind.descriptions, *kind.bodies):
        fields = {name for _, name, _, _ in Formatter().parse(template) if name}
        assert fields - {"x"} == wanted, template
    assert all("{x}" in body for body in kind.bodies)


def test_names_and_descriptions_belong_to_one_kind() -> None:
    names = [kind.name for kind in KINDS]
    descriptions = [text for kind in KINDS for text in kind.descriptions]
    assert len(set(names)) == len(names) and len(set(descriptions)) == len(descriptions)


def test_completion_works_on_numbers_and_writing_on_text() -> None:
    assert {kind.argument for kind in COMPLETE_KINDS} == {"int", "ints"}
    assert {kind.argument for kind in WRITE_KINDS} == {"text", "texts"}
    assert {code for kind in KINDS for code in kind.params} == set("nslw")


def test_the_student_knows_kinds_of_both_families() -> None:
    assert len(set(BASIC_KINDS)) == len(BASIC_KINDS)
    for family in (COMPLETE_KINDS, WRITE_KINDS):
        known = {kind.name for kind in family} & set(BASIC_KINDS)
        assert known and len(known) < len(family)
    assert set(BASIC_KINDS) <= {kind.name for kind in KINDS}


def test_no_two_kinds_are_the_same_function() -> None:
    same_form = [
        (a, b) for a, b in combinations(KINDS, 2) if (a.argument, a.params) == (b.argument, b.params)
    ]
    assert len(same_form) > 20
    for a, b in same_form:
        dice = random.Random(f"{a.name} {b.name}")
        draws = [(argument(a, dice), parameters(a, dice)) for _ in range(60)]
        assert any(reference(a, *draw) != reference(b, *draw) for draw in draws), (a.name, b.name)
