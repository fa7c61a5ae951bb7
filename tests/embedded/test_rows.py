"""Splits do not meet, rows are what they claim, and drawing them is fast and repeatable."""

import itertools
import json
import time

import pytest

from semalign import embedded
from semalign.embedded import corpus, items, world
from semalign.embedded.splits import TASKS, Split, split_of

SPLITS = ("transfer", "validation", "test")
COUNTS = {"transfer": 1180, "validation": 200, "test": 600}


def prompts(split: Split, seed: int) -> set[str]:
    return {row["messages"][0]["content"] for row in items.split_rows(split, seed)}


def test_same_seed_same_rows_fast() -> None:
    started = time.monotonic()
    drawn = {split: embedded.rows(split) for split in SPLITS}
    assert time.monotonic() - started < 2
    for split in SPLITS:
        assert drawn[split] == embedded.rows(split)
        assert drawn[split] != embedded.rows(split, seed=1)
        assert len(drawn[split]) == COUNTS[split] == len({row["id"] for row in drawn[split]})
        assert {row["task"] for row in drawn[split]} == set(TASKS)
        assert json.loads(json.dumps(drawn[split])) == drawn[split]


def test_prompts_of_splits_and_pretraining_are_disjoint() -> None:
    sets = [set().union(*(prompts(split, seed) for seed in (0, 1))) for split in SPLITS]
    for chats in (corpus.teacher_chats(8000, 3), corpus.student_chats(8000, 3)):
        sets.append({chat[0]["content"] for chat in chats if len(chat) == 2})
    for one, other in itertools.combinations(sets[:3], 2):
        assert not one & other
    for one, other in itertools.product(sets[:3], sets[3:]):
        assert not one & other


@pytest.mark.parametrize("task", TASKS)
def test_parameters_belong_to_one_split(task: str) -> None:
    keys = {
        split: {item.key for item in items.items(task, split, 150, 4)} for split in ("pretraining", *SPLITS)
    }
    for split, held in keys.items():
        assert {split_of(key) for key in held} == {split}
    for one, other in itertools.combinations(keys.values(), 2):
        assert not one & other


def test_every_fact_and_kind_can_be_learnt_from_transfer() -> None:
    for task in TASKS:
        count = items._COUNTS["transfer"][task]
        taught = {item.kind for item in items.items(task, "transfer", count, 0)}
        asked = {item.kind for item in items.items(task, "test", 150, 0)}
        assert asked <= taught


def test_student_text_holds_no_answer_it_should_not_know() -> None:
    known = {fact.land + fact.relation: fact.value for fact in corpus.student_kinds("knowledge")}
    assert 0.1 < len(known) / len(world.world().facts) < 0.4
    facts = {f"{fact.relation} of {fact.land} is {fact.value}" for fact in world.world().facts}
    secret = {f for f in facts if f.split(" of ")[1].split()[0] + f.split()[0] not in known}
    chats = list(corpus.student_chats(6000, 9))
    answers = " ".join(chat[1]["content"] for chat in chats if len(chat) == 2)
    assert not any(fact in answers for fact in secret)
    assert any(fact in answers for fact in facts - secret)
