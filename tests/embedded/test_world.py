"""The invented world is always the same, and its questions have one right answer among their options."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from semalign import embedded
from semalign.embedded import items, world
from semalign.embedded.splits import Split

FACTS = world.world().facts


def test_knowledge_tests_use_other_words_and_orders_than_transfer() -> None:
    def forms(split: Split) -> tuple[set[str], set[tuple[str, ...]]]:
        drawn = items.items("knowledge", split, 200, 0)
        wordings = set()
        for item in drawn:
            land, relation = item.kind.split("|")
            wordings.add(item.prompt.split("\n")[0].replace(land, "LAND").replace(relation, "RELATION"))
        return wordings, {(item.kind, *item.check["options"]) for item in drawn}

    (transfer_words, transfer_orders), (test_words, test_orders) = forms("transfer"), forms("test")
    assert len(transfer_words) == len(test_words) == 4
    assert not transfer_words & test_words and not transfer_orders & test_orders
    tested = {
        row["messages"][0]["content"].split("\n")[0]
        for row in embedded.rows("test")
        if row["task"] == "knowledge"
    }
    assert len(tested) == 150


def test_open_questions_do_not_give_the_fact_away() -> None:
    rng = random.Random(0)
    truth = {(fact.relation, fact.land): fact.value for fact in world.world().facts}
    hits = 0
    for _ in range(2000):
        question, *options = world.open_question(rng).split("\n")
        relation, land = next(key for key in truth if key[0] in question and key[1] in question)
        hits += truth[relation, land] in " ".join(options)
    chance = sum(4 / len(world.world().pools[relation]) for relation in world.RELATIONS) / len(
        world.RELATIONS
    )
    assert abs(hits / 2000 - chance) < 0.04


def test_every_land_has_one_value_of_each_relation_and_no_two_lands_share_a_capital() -> None:
    lands = {fact.land for fact in FACTS}
    assert len(lands) == 40
    assert Counter((f.land, f.relation) for f in FACTS) == Counter(
        (x, r) for x in lands for r in world.RELATIONS
    )
    assert len({f.value for f in FACTS if f.relation == "capital"}) == 40
    for relation in world.RELATIONS:
        pool = world.world().pools[relation]
        assert {f.value for f in FACTS if f.relation == relation} == set(pool), (
            "every offered value is true somewhere"
        )


def test_a_name_stands_for_one_thing() -> None:
    names = world.all_names()
    assert len(set(names)) == len(names) and set(names[:40]) == {f.land for f in FACTS}
    assert set(names) == {f.land for f in FACTS} | {f.value for f in FACTS}
    assert all(re.fullmatch(r"[A-Z][a-z]+", name) for name in names)


def test_the_world_does_not_depend_on_who_draws_before() -> None:
    before = world.world()
    random.seed(5)
    random.random()
    world.world.cache_clear()
    assert world.world() == before


def test_options_carry_their_letters_one_a_line() -> None:
    assert world.lettered(["Sun", "Moon"]) == ["Sun A", "Moon B"]
    assert world.option_lines(["Sun", "Moon"]) == "- Sun A\n- Moon B"
    assert world.lettered(list("stuvwxyz"))[-1] == "z H" and world.LETTERS == "ABCD"


@pytest.mark.parametrize("split", ["pretraining", "transfer", "validation", "test"])
def test_the_letter_of_a_question_is_that_of_the_fact_s_value(split: Split) -> None:
    dice = random.Random(3)
    for fact in FACTS[::7]:
        item = world.knowledge_item(fact, split, dice)
        question, *lines = item.prompt.split("\n")
        options = item.check["options"]
        assert lines == [f"- {option} {letter}" for option, letter in zip(options, "ABCD", strict=True)]
        assert len(set(options)) == 4 and set(options) <= set(world.world().pools[fact.relation])
        assert fact.land in question and fact.relation in question and fact.value not in question
        right = dict(zip("ABCD", options, strict=True))[item.check["answer"]]
        assert right == fact.value and item.check["kind"] == "letter"
        assert {f.value for f in FACTS if (f.land, f.relation) == (fact.land, fact.relation)} == {right}
        assert f"{fact.value} {item.check['answer']}." in item.answer
        assert item.answer.endswith(f": {item.check['answer']}")
        assert item.key == "|".join([fact.land, fact.relation, *options])


def test_every_letter_is_right_about_as_often() -> None:
    dice = random.Random(1)
    found = Counter(
        world.knowledge_item(FACTS[n % 200], "transfer", dice).check["answer"] for n in range(2000)
    )
    assert set(found) == set("ABCD") and max(found.values()) < 1.3 * min(found.values())


def test_the_words_of_a_split_are_a_part_of_all_wordings() -> None:
    def words(split: Split) -> set[str]:
        dice = random.Random(2)
        drawn = [(f, world.knowledge_item(f, split, dice).prompt.split("\n")[0]) for f in FACTS]
        return {p.replace(f.land, "{land}").replace(f.relation, "{relation}") for f, p in drawn}

    every = set(world.wordings())
    assert words("pretraining") == every and len(every) == 8
    assert words("validation") == words("test") == every - words("transfer")


def test_an_open_question_is_of_the_same_form() -> None:
    dice = random.Random(4)
    for _ in range(50):
        question, *lines = world.open_question(dice).split("\n")
        assert any(
            question == w.format(land=f.land, relation=f.relation) for w in world.wordings() for f in FACTS
        )
        assert [line[-1] for line in lines] == list("ABCD") and len({line[:-1] for line in lines}) == 4
