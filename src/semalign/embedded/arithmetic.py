"""Arithmetic: short word problems with worked steps and a final number."""

import random
from dataclasses import dataclass

from semalign.embedded.splits import Item, Split, draw_key

_WHO = ["Mia", "Tom", "Ana", "Ben", "Lea", "Max", "Ida", "Sam"]
_THINGS = ["nuts", "pens", "cups", "eggs", "coins", "cards", "shells", "books"]
_CLOSINGS = ("So the answer is {n}.", "The answer is {n}.", "That makes {n}.")
_LARGEST = 50
_DRILL_LINES = 4

Operand = str | int
Step = tuple[Operand, str, Operand]


@dataclass(frozen=True)
class ProblemKind:
    """Problems of one shape; ``steps`` name parameters (a, b, c) and earlier results (r0, r1)."""

    name: str
    ranges: tuple[range, ...]
    questions: tuple[str, ...]
    steps: tuple[Step, ...]


_LARGE, _MIDDLE, _SMALL, _GROUPS, _EACH = range(10, 31), range(5, 21), range(2, 10), range(2, 7), range(2, 6)

KINDS: tuple[ProblemKind, ...] = (
    ProblemKind(
        "got_more",
        (_LARGE, _SMALL),
        (
            "{who} has {a} {thing} and gets {b} more. How many {thing} does {who} have now?",
            "{who} finds {b} {thing}. Before that {who} had {a}. How many are there now?",
        ),
        (("a", "+", "b"),),
    ),
    ProblemKind(
        "gave_away",
        (_LARGE, _SMALL),
        (
            "{who} has {a} {thing} and gives {b} away. How many {thing} are left?",
            "From {a} {thing}, {who} gives away {b}. How many does {who} keep?",
        ),
        (("a", "-", "b"),),
    ),
    ProblemKind(
        "bags_and_loose",
        (_GROUPS, _EACH, _SMALL),
        (
            "{who} has {a} bags of {b} {thing} and {c} loose {thing}. How many {thing} in all?",
            "There are {a} bags with {b} {thing} each, and {c} more on the table. How many {thing} are there?",
        ),
        (("a", "*", "b"), ("r0", "+", "c")),
    ),
    ProblemKind(
        "gained_and_lost",
        (_MIDDLE, _SMALL, _SMALL),
        (
            "{who} has {a} {thing}, gets {b} and then loses {c}. How many {thing} does {who} have now?",
            "{who} had {a} {thing}, won {b} and lost {c}. How many {thing} are left?",
        ),
        (("a", "+", "b"), ("r0", "-", "c")),
    ),
    ProblemKind(
        "three_days",
        (_MIDDLE, _SMALL, _SMALL),
        (
            "{who} picks {a} {thing} on Monday, {b} on Tuesday, {c} on Friday. How many {thing} in three days?",
            "On three days {who} found {a}, {b} and {c} {thing}. What is the total?",
        ),
        (("a", "+", "b"), ("r0", "+", "c")),
    ),
    ProblemKind(
        "change",
        (range(20, 41), _GROUPS, _EACH),
        (
            "{who} buys {b} {thing} for {c} dollars each and pays with {a} dollars. How much change is due?",
            "One of the {thing} costs {c} dollars. {who} takes {b} and pays {a} dollars. What is the change?",
        ),
        (("b", "*", "c"), ("a", "-", "r0")),
    ),
    ProblemKind(
        "twice_as_many",
        (range(2, 16), _SMALL),
        (
            "{who} has {a} {thing}. {other} has twice as many and {b} on top. How many does {other} have?",
            "{other} owns double of the {a} {thing} of {who}, plus {b}. How many does {other} own?",
        ),
        (("a", "*", 2), ("r0", "+", "b")),
    ),
    ProblemKind(
        "younger",
        (_LARGE, _SMALL, _SMALL),
        (
            "{who} is {a} years old. {other} is {b} years younger. How old will {other} be in {c} years?",
            "{other} is {b} years younger than {who}, who is {a}. What is the age of {other} in {c} years?",
        ),
        (("a", "-", "b"), ("r0", "+", "c")),
    ),
    ProblemKind(
        "ahead_of",
        (_GROUPS, _EACH, _SMALL),
        (
            "{who} fills {a} pages with {b} {thing} each. {other} has {c} {thing}. How many more has {who}?",
            "{other} has {c} {thing}, {who} has {a} pages of {b}. By how many is {who} ahead?",
        ),
        (("a", "*", "b"), ("r0", "-", "c")),
    ),
    ProblemKind(
        "wheels",
        (range(2, 9), range(2, 13)),
        (
            "A garage holds {a} cars with 4 wheels and {b} spare wheels. How many wheels are there?",
            "Count the wheels: {a} cars with 4 each and {b} in the corner.",
        ),
        (("a", "*", 4), ("r0", "+", "b")),
    ),
    ProblemKind(
        "together",
        (range(1, 6), range(1, 6), _EACH),
        (
            "{who} makes {a} {thing} an hour, {other} makes {b}. How many do both make in {c} hours?",
            "In one hour {who} makes {a} {thing} and {other} {b}. What do they make in {c} hours?",
        ),
        (("a", "+", "b"), ("r0", "*", "c")),
    ),
    ProblemKind(
        "two_bills",
        (_LARGE, _SMALL, _SMALL),
        (
            "{who} has {a} dollars and pays bills of {b} and {c} dollars. How many dollars remain?",
            "Two bills come to {b} and {c} dollars. {who} had {a} dollars. What remains after paying?",
        ),
        (("a", "-", "b"), ("r0", "-", "c")),
    ),
)
BASIC_KINDS = ("got_more", "gave_away", "bags_and_loose", "gained_and_lost")
"""The kinds whose answers the student was trained on."""


def _apply(left: int, sign: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def _work(kind: ProblemKind, params: tuple[int, ...]) -> list[tuple[str, int]]:
    values: dict[Operand, int] = dict(zip("abc", params, strict=False))
    lines = []
    for number, (left, sign, right) in enumerate(kind.steps):
        x, y = values.get(left, left), values.get(right, right)
        assert isinstance(x, int) and isinstance(y, int)
        values[f"r{number}"] = _apply(x, sign, y)
        lines.append((f"{x} {sign} {y}", values[f"r{number}"]))
    return lines


def _solution(lines: list[tuple[str, int]], rng: random.Random) -> str:
    style = rng.randrange(3)
    steps = [f"{expression} = {value}" for expression, value in lines]
    if style == 0:
        body = "So " + ". ".join(steps) + "."
    elif style == 1:
        body = " ".join(
            f"{word} {step}." for word, step in zip(("First", "Then", "Last"), steps, strict=False)
        )
    else:
        body = "We get " + " and ".join(steps) + "."
    return f"{body} {rng.choice(_CLOSINGS).format(n=lines[-1][1])}"


def arithmetic_item(kind: ProblemKind, split: Split, rng: random.Random) -> Item:
    """One problem of ``kind`` whose parameters belong to ``split``."""

    def draw() -> tuple[str, tuple[int, ...]]:
        while True:
            params = tuple(rng.choice(values) for values in kind.ranges)
            if all(0 <= value <= _LARGEST for _, value in _work(kind, params)):
                return "|".join([kind.name, *map(str, params)]), params

    key, params = draw_key(split, draw)
    who, other = rng.sample(_WHO, 2)
    words = dict(zip("abc", params, strict=False))
    prompt = rng.choice(kind.questions).format(who=who, other=other, thing=rng.choice(_THINGS), **words)
    lines = _work(kind, params)
    check = {"kind": "number", "answer": lines[-1][1]}
    return Item("arithmetic", key, kind.name, prompt, _solution(lines, rng), check)


def drill(rng: random.Random) -> tuple[str, str]:
    """Bare calculations and their results, in the number range of the problems: skill without any story."""
    lines: list[tuple[str, int]] = []
    while len(lines) < _DRILL_LINES:
        kind = rng.choice(KINDS)
        params = tuple(rng.choice(values) for values in kind.ranges)
        work = _work(kind, params)
        if all(0 <= value <= _LARGEST for _, value in work):
            lines.append(rng.choice(work))
    question = ", ".join(expression for expression, _ in lines)
    return f"Calculate {question}.", " ".join(f"{expression} = {value}." for expression, value in lines)
