"""Skills without knowledge, which both models practise: repeating, looking up a letter, calculating.

A small model learns to copy and to look up only from text that is dense in it; the tasks alone hold one such step
a row. None of this tells a fact, nor what a problem or a description asks for.
"""

import random

from semalign.embedded import arithmetic, functions, world

_MOST_SHOWN, _MOST_REPEATED, _MOST_HARD = 8, 14, 4
_TELLINGS = 2


def practice(rng: random.Random) -> tuple[str, str]:
    """One exercise and its answer."""
    question, answer = rng.choices((_repeat, _look_up, arithmetic.drill), (3, 5, 2))[0](rng)
    return question, f"OK: {answer}"


def _things(count: int, rng: random.Random) -> list[str]:
    """Different names, mostly, one token each; else words or numbers, fewer of them, since they may be several."""
    sort = rng.randrange(10)
    if sort == 0:
        return rng.sample([f"'{word}'" for word in functions.words()], min(count, _MOST_HARD))
    if sort == 1:
        return rng.sample([str(n) for n in range(2, 100)], min(count, _MOST_HARD))
    return rng.sample(world.all_names(), count)


def _repeat(rng: random.Random) -> tuple[str, str]:
    line = " ".join(_things(rng.randrange(3, _MOST_REPEATED + 1), rng))
    return f"Repeat: {line}", line


def _look_up(rng: random.Random) -> tuple[str, str]:
    """Options in one order, told again with their letters in others: no distance tells the letter, only the name does."""
    things = _things(rng.randrange(3, _MOST_SHOWN + 1), rng)
    told = world.lettered(things)
    return world.option_lines(things), ", ".join(
        ", ".join(rng.sample(told, len(told))) for _ in range(_TELLINGS)
    )
