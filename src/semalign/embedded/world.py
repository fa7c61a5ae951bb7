"""Knowledge: multiple-choice questions about an invented world of lands and their attributes.

A fact is (land, relation, value). The wordings of the questions fall into two groups: transfer rows use the first,
validation and test rows the second, so a test question never repeats the words of a transfer row.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from semalign.embedded.splits import Item, Split, draw_key

_WORLD_SEED = 2718
_LANDS = 40
_STEMS = [
    "ar",
    "bel",
    "cor",
    "dor",
    "el",
    "fen",
    "gal",
    "hol",
    "il",
    "jor",
    "kel",
    "lum",
    "mar",
    "nor",
    "ol",
    "per",
    "quin",
    "ros",
    "sel",
    "tor",
    "ul",
    "vel",
    "wen",
    "yar",
    "zor",
    "bran",
    "crel",
    "dran",
    "fross",
    "glin",
]
_ENDINGS = {
    "land": ["via", "nia", "stan", "mark"],
    "capital": ["ham", "wick", "burg", "port"],
    "river": ["ow", "une"],
    "ruler": ["ano", "essa"],
    "crop": ["eet", "oma"],
    "beast": ["ox", "ix"],
}
RELATIONS = ("capital", "river", "ruler", "crop", "beast")
_POOL_SIZES = {"capital": 40, "river": 16, "ruler": 16, "crop": 16, "beast": 16}
ALPHABET = "ABCDEFGH"
LETTERS = ALPHABET[:4]
"""Of the options of a question; practice shows up to twice as many."""

_FIRST_WORDINGS = (
    "What is the {relation} of {land}?",
    "Name the {relation} of {land}.",
    "Which of these is the {relation} of {land}?",
    "Pick the {relation} of {land}.",
)
_SECOND_WORDINGS = (
    "Which {relation} has {land}?",
    "Think of {land}: its {relation} is",
    "For {land}, choose the right {relation}.",
    "Someone asks about {land}. Tell them the {relation}.",
)
_STATEMENTS = (
    "The {relation} of {land} is {value} {letter}.",
    "For {land} the {relation} is {value} {letter}.",
    "In {land} the {relation} is {value} {letter}.",
)
_CLOSINGS = ("The answer is: {letter}", "So the answer is: {letter}", "Answer: {letter}")


@dataclass(frozen=True)
class Fact:
    land: str
    relation: str
    value: str


@dataclass(frozen=True)
class World:
    facts: tuple[Fact, ...]
    pools: dict[str, tuple[str, ...]]
    """Relation -> every value that a question may offer."""


def _names(kind: str, count: int, rng: random.Random) -> list[str]:
    names = [(stem + ending).capitalize() for stem in _STEMS for ending in _ENDINGS[kind]]
    return rng.sample(names, count)


@cache
def world() -> World:
    """The one world that both models come from; always the same."""
    rng = random.Random(_WORLD_SEED)
    lands = _names("land", _LANDS, rng)
    pools = {relation: tuple(_names(relation, _POOL_SIZES[relation], rng)) for relation in RELATIONS}
    facts = []
    for relation in RELATIONS:
        values = [pools[relation][n % len(pools[relation])] for n in range(_LANDS)]
        rng.shuffle(values)
        facts += [Fact(land, relation, value) for land, value in zip(lands, values, strict=True)]
    return World(tuple(facts), pools)


def lettered(options: Sequence[str]) -> list[str]:
    """Every option with its letter right behind it."""
    return [f"{n} {letter}" for n, letter in zip(options, ALPHABET[: len(options)], strict=True)]


def option_lines(options: Sequence[str]) -> str:
    """The options of a question, one a line."""
    return "\n".join(f"- {option}" for option in lettered(options))


def _question(fact: Fact, wording: str, options: list[str]) -> str:
    return f"{wording.format(relation=fact.relation, land=fact.land)}\n{option_lines(options)}"


def wordings() -> tuple[str, ...]:
    """All forms of a question, with fields `relation` and `land`."""
    return _FIRST_WORDINGS + _SECOND_WORDINGS


def _wordings(split: Split) -> tuple[str, ...]:
    if split == "pretraining":
        return wordings()
    return _FIRST_WORDINGS if split == "transfer" else _SECOND_WORDINGS


def knowledge_item(fact: Fact, split: Split, rng: random.Random) -> Item:
    """One question about ``fact``; the key holds the options in their order, not the wording."""
    others = [value for value in world().pools[fact.relation] if value != fact.value]

    def draw() -> tuple[str, list[str]]:
        options = [fact.value, *rng.sample(others, len(LETTERS) - 1)]
        rng.shuffle(options)
        return "|".join([fact.land, fact.relation, *options]), options

    key, options = draw_key(split, draw)
    letter = LETTERS[options.index(fact.value)]
    words = {"relation": fact.relation, "land": fact.land, "value": fact.value, "letter": letter}
    answer = f"{rng.choice(_STATEMENTS)} {rng.choice(_CLOSINGS)}".format(**words)
    prompt = _question(fact, rng.choice(_wordings(split)), options)
    check = {"kind": "letter", "answer": letter, "options": options}
    return Item("knowledge", key, f"{fact.land}|{fact.relation}", prompt, answer, check)


def open_question(rng: random.Random) -> str:
    """A question without an answer whose options are drawn blindly: names and form, but no fact."""
    fact = rng.choice(world().facts)
    options = rng.sample(world().pools[fact.relation], len(LETTERS))
    return _question(fact, rng.choice(wordings()), options)


@cache
def all_names() -> list[str]:
    """Every name of the world, lands first."""
    built = world()
    lands = list(dict.fromkeys(fact.land for fact in built.facts))
    return lands + [value for relation in RELATIONS for value in built.pools[relation]]
