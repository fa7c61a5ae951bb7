"""New prompts from the given ones: words that occur in the same contexts are exchanged (after Andreas 2020, GECA).

Two words are exchangeable when both occur between the same neighbours somewhere in the rows: in "found 14, 4" and
"found 9, 4" the numbers are. A variant replaces a few words of a prompt, each everywhere it occurs, so that the prompt
stays consistent. What the right answer to a variant is, no row says: the teacher has to be asked.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

PIECE = re.compile(r"\w+|[^\w\s]|\n")
WORD = re.compile(r"\w+")
EDGE = ""


def exchangeable(texts: Sequence[str]) -> dict[str, dict[str, int]]:
    """Word -> the words that occur in a surrounding of its own, with the number of surroundings they share."""
    places: dict[tuple[str, str], set[str]] = defaultdict(set)
    for text in texts:
        pieces = [EDGE, *PIECE.findall(text), EDGE]
        for left, word, right in zip(pieces, pieces[1:], pieces[2:], strict=False):
            if WORD.fullmatch(word):
                places[left, right].add(word)
    shared: dict[str, Counter[str]] = defaultdict(Counter)
    for words in places.values():
        for word in sorted(words):
            shared[word].update(sorted(words - {word}))
    return {word: dict(counts) for word, counts in shared.items() if counts}


def vary(text: str, table: Mapping[str, Mapping[str, int]], rng: random.Random, changes: int) -> str:
    """The text with up to `changes` of its words replaced by exchangeable ones that it does not hold yet."""
    own = list(dict.fromkeys(WORD.findall(text)))
    candidates = [word for word in own if set(table.get(word, ())) - set(own)]
    chosen = rng.sample(candidates, min(changes, len(candidates)))
    swaps: dict[str, str] = {}
    for word in chosen:
        options = {w: n for w, n in table[word].items() if w not in own and w not in swaps.values()}
        if options:
            swaps[word] = rng.choices(list(options), weights=list(options.values()))[0]
    return WORD.sub(lambda m: swaps.get(m[0], m[0]), text)


def variants(
    texts: Sequence[str],
    count: int,
    *,
    changes: int = 3,
    seed: int = 0,
    accept: Callable[[int, str], bool] = lambda number, text: True,
) -> list[tuple[int, str]]:
    """Up to `count` new texts, each with the number of the one it was made from; none equals a given text or another.

    Goes round the given texts, with 1 to `changes` words replaced each time. `accept` may refuse a text, whose place
    another one takes.
    """
    table, rng = exchangeable(texts), random.Random(seed)
    seen, found = set(texts), []
    for attempt in range(20 * count if texts else 0):
        number = attempt % len(texts)
        text = vary(texts[number], table, rng, rng.randint(1, changes))
        if text not in seen:
            seen.add(text)
            if accept(number, text):
                found.append((number, text))
        if len(found) == count:
            break
    return found
