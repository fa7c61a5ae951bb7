"""Skills without knowledge, which both models practise: repeating, looking up a letter, calculating.

A small model learns to copy and to look up only from text that is dense in it; the tasks alone hold one such step
a row. None of this tells a fact, nor what a problem or a description asks for.
"""

import random

from semalign.embedded import arithmetic, functions, world

_SHOWN, _REPEATED = 4, 5


def practice(rng: random.Random) -> tuple[str, str]:
    """One exercise and its answer."""
    return rng.choice((_repeat, _look_up, _look_up, arithmetic.drill, arithmetic.drill))(rng)


def _things(count: int, rng: random.Random) -> list[str]:
    """Different names, words or numbers."""
    pool = rng.choice((world.all_names(), functions.words(), [str(n) for n in range(2, 100)]))
    return rng.sample(pool, count)


def _repeat(rng: random.Random) -> tuple[str, str]:
    line = " ".join(_things(_REPEATED, rng))
    return f"Repeat: {line}", line


def _look_up(rng: random.Random) -> tuple[str, str]:
    """Options in one order, asked for in another."""
    things = _things(_SHOWN, rng)
    options = dict(zip(things, world.LETTERS, strict=True))
    asked = rng.sample(things, _SHOWN)
    question = f"{world.option_lines(things)}\n" + ", ".join(asked)
    return question, ", ".join(f"{thing} ({options[thing]})" for thing in asked)
