"""Code: small Python functions, to complete from a docstring or to write from a sentence.

Both families share the machinery and no function kind: completion works on numbers, writing on text.
"""

import random
from collections.abc import Callable
from functools import cache
from typing import Any

from semalign.embedded.function_kinds import COMPLETE_KINDS, FunctionKind, Param
from semalign.embedded.splits import Item, Split, draw_key

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_HIDDEN_ASSERTS = 5
_WORDS = """
ant arm art axe bag bay bee bell bone bow box cab camp cap card cat coal cow crow cup desk dog door duck ear
egg elk eye fan farm fig flag fog foot fox gate gem goat gull hand hat hay hen horn ice ink jam jar jet key
kite lamp lid lion log map mask moss mug nest net nut oak oar oil owl pan pea pig plum pot ram road roof
rose rug sail sand seed shoe sky soap song stem sun tail tin toe tray tub vest wave wing wood yarn
"""
_NAMES = ["work", "step", "make", "calc", "run", "task"]
_ARGUMENTS = {
    "int": "xnz",
    "ints": ("xs", "items", "nums"),
    "text": ("s", "text", "t"),
    "texts": ("words", "ws"),
}


@cache
def words() -> list[str]:
    """The short words that code tasks use as parameters."""
    return _WORDS.split()


def _draw_params(kind: FunctionKind, rng: random.Random) -> tuple[Param, ...]:
    makers: dict[str, Callable[[], Param]] = {
        "n": lambda: rng.randrange(2 if kind.params == "n" else 10, 100 if kind.params == "n" else 60),
        "s": lambda: rng.randrange(2, 10),
        "l": lambda: rng.choice(_LETTERS),
        "w": lambda: rng.choice(words()),
    }
    while True:
        params = tuple(makers[code]() for code in kind.params)
        if len(set(params)) == len(params):
            return params


def _draw_argument(kind: FunctionKind, params: tuple[Param, ...], rng: random.Random) -> Any:
    """An argument near the parameters, so that a wrong parameter shows."""
    numbers = [p + d for p in params if isinstance(p, int) for d in (-1, 0, 1)]
    letters = "".join(p for p in params if isinstance(p, str)) * 2 + "".join(rng.sample(_LETTERS, 3))
    if kind.argument == "int":
        return rng.choice([*numbers, rng.randrange(100)])
    if kind.argument == "ints":
        return rng.sample([*numbers, rng.randrange(100), rng.randrange(100)], rng.randrange(2, 5))
    if kind.argument == "text":
        return (
            rng.choice(words()) if "w" in kind.params else "".join(rng.sample(letters, rng.randrange(2, 5)))
        )
    starting = [str(p) + rng.choice(_LETTERS) for p in params]
    return rng.sample([*starting, *rng.sample(words(), 3)], 3)


def _asserts(kind: FunctionKind, name: str, params: tuple[Param, ...], rng: random.Random) -> list[str]:
    padded = (*params, None)
    lines: dict[str, None] = {}
    for _ in range(_HIDDEN_ASSERTS + 1):
        value = _draw_argument(kind, params, rng)
        lines[f"assert {name}({value!r}) == {kind.reference(value, padded[0], padded[1])!r}"] = None
    return list(lines)


def _indent(body: str) -> str:
    return "\n".join("    " + line for line in body.splitlines())


def code_item(kind: FunctionKind, split: Split, rng: random.Random) -> Item:
    """One coding task of ``kind`` whose parameters belong to ``split``."""

    def draw() -> tuple[str, tuple[Param, ...]]:
        params = _draw_params(kind, rng)
        return "|".join([kind.name, *map(str, params)]), params

    key, params = draw_key(split, draw)
    name, argument = rng.choice(_NAMES), rng.choice(_ARGUMENTS[kind.argument])
    words = {"f": name, "x": argument, **dict(zip("km", params, strict=False))}
    description = rng.choice(kind.descriptions).format(**words)
    head = f"def {name}({argument}):"
    answer = f"{head}\n{_indent(rng.choice(kind.bodies).format(**words))}"
    asserts = _asserts(kind, name, params, rng)
    check: dict[str, Any] = {"kind": "python", "entry": name, "prefix": "", "asserts": asserts}
    if kind in COMPLETE_KINDS:
        prompt = f'{head}\n    """{description}"""'
        check["prefix"] = prompt + "\n"
        return Item("code_complete", key, kind.name, prompt, answer, check)
    prompt = f"Write a function {name}({argument}) that {description}.\n{asserts[0]}"
    return Item("code_write", key, kind.name, prompt, answer, check)
