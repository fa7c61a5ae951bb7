"""Word problems against answers worked out from their stories by hand, and steps that are true line by line."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from itertools import pairwise
from string import Formatter

import pytest

from semalign.embedded.arithmetic import BASIC_KINDS, KINDS, ProblemKind, arithmetic_item, drill
from semalign.embedded.splits import Item, Split, split_of

# What the stories ask for, read from their English and not from their steps.
ASKED: dict[str, Callable[..., int]] = {
    "got_more": lambda had, got: had + got,
    "gave_away": lambda had, gave: had - gave,
    "bags_and_loose": lambda bags, each, loose: sum([each] * bags, loose),
    "gained_and_lost": lambda had, got, lost: had - lost + got,
    "three_days": lambda *days: sum(days),
    "change": lambda paid, count, price: paid - sum([price] * count),
    "twice_as_many": lambda his, more: his + his + more,
    "younger": lambda age, less, years: age + years - less,
    "ahead_of": lambda pages, each, other: sum([each] * pages) - other,
    "wheels": lambda cars, spare: sum([4] * cars, spare),
    "together": lambda one, two, hours: sum([one] * hours) + sum([two] * hours),
    "two_bills": lambda had, one, two: had - (one + two),
}
STEP = re.compile(r"(\d+) ([+*-]) (\d+) = (-?\d+)")
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def is_true(step: tuple[str, str, str, str]) -> bool:
    left, sign, right, value = step
    return {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[sign](int(left), int(right)) == int(value)


def drawn(kind: ProblemKind, split: Split = "transfer", count: int = 30) -> list[Item]:
    dice = random.Random(7)
    return [arithmetic_item(kind, split, dice) for _ in range(count)]


def test_every_kind_has_a_name_of_its_own_and_the_student_knows_some() -> None:
    names = [kind.name for kind in KINDS]
    assert len(set(names)) == len(names) and set(names) == set(ASKED)
    assert set(BASIC_KINDS) < set(names) and len(BASIC_KINDS) == len(set(BASIC_KINDS))


@by_kind
def test_the_answer_is_what_the_story_asks_for(kind: ProblemKind) -> None:
    for item in drawn(kind):
        name, *parameters = item.key.split("|")
        assert name == item.kind == kind.name and item.task == "arithmetic"
        assert item.check == {"kind": "number", "answer": ASKED[name](*map(int, parameters))}
        assert item.answer.rstrip(".").endswith(f" {item.check['answer']}")


@by_kind
def test_the_worked_steps_are_true_and_lead_to_the_answer(kind: ProblemKind) -> None:
    for item in drawn(kind):
        steps = STEP.findall(item.answer)
        assert len(steps) == len(kind.steps) and all(map(is_true, steps))
        assert int(steps[-1][3]) == item.check["answer"]
        assert all(0 <= int(step[3]) <= 50 for step in steps)
        # Each step after the first goes on from the one before it.
        assert all(before[3] in (step[0], step[2]) for before, step in pairwise(steps))


@by_kind
def test_a_question_states_every_number_and_tells_the_people_apart(kind: ProblemKind) -> None:
    for question in kind.questions:
        fields = {name for _, name, _, _ in Formatter().parse(question) if name}
        assert fields - {"who", "other", "thing"} == set("abc"[: len(kind.ranges)])
    for item in drawn(kind):
        assert set(item.key.split("|")[1:]) <= set(re.findall(r"\d+", item.prompt))
        assert "{" not in item.prompt + item.answer
        people = set(re.findall(r"\b(?:Mia|Tom|Ana|Ben|Lea|Max|Ida|Sam)\b", item.prompt))
        named = {n for q in kind.questions for n in ("who", "other") if f"{{{n}}}" in q}
        assert len(people) <= len(named)
        if "other" in named:
            assert len(people) == 2


@by_kind
@pytest.mark.parametrize("split", ["pretraining", "transfer", "validation", "test"])
def test_parameters_come_from_their_ranges_and_belong_to_the_split(kind: ProblemKind, split: Split) -> None:
    for item in drawn(kind, split, 5):
        assert split_of(item.key) == split
        values = map(int, item.key.split("|")[1:])
        assert all(value in allowed for value, allowed in zip(values, kind.ranges, strict=True))


def test_the_same_seed_draws_the_same_problem() -> None:
    one, same, other = (arithmetic_item(KINDS[0], "test", random.Random(seed)) for seed in (1, 1, 2))
    assert one == same and one.prompt != other.prompt


def test_a_drill_is_bare_calculations_with_their_results_in_order() -> None:
    dice = random.Random(0)
    for _ in range(50):
        question, answer = drill(dice)
        asked = re.fullmatch(r"Calculate (.+)\.", question)
        assert asked
        steps = STEP.findall(answer)
        assert [" ".join(step[:3]) for step in steps] == asked[1].split(", ") and len(steps) == 4
        assert answer == " ".join(f"{left} {sign} {right} = {value}." for left, sign, right, value in steps)
        assert all(is_true(step) and 0 <= int(step[3]) <= 50 for step in steps)


def test_drills_have_sums_differences_and_products() -> None:
    dice = random.Random(0)
    signs = {step[1] for _ in range(20) for step in STEP.findall(drill(dice)[1])}
    assert signs == {"+", "-", "*"}
