"""The text the two models are trained on, as chats.

The teacher reads answered questions about everything. The student reads answered questions about a minority of the
facts and kinds; of the rest it only sees questions without answers (drawn without a fact in them) and lines to
repeat, so it knows all words and forms but not what belongs to what.
"""

import random
from collections.abc import Iterator
from typing import Any

from semalign.embedded import arithmetic, function_kinds, world
from semalign.embedded.items import kinds_of, make_item, messages
from semalign.embedded.practice import practice
from semalign.embedded.splits import TASKS, Item, Task

STUDENT_FACT_SHARE = 5
"""The student knows one fact in this many."""
_TASK_WEIGHTS = (22, 32, 20, 26)
_TEACHER_PRACTICE = 0.25
_STUDENT_MIX = (55, 25, 12, 8)

Chat = list[dict[str, str]]


def _known(task: Task, kind: Any) -> bool:
    """Whether the student was trained on answers about ``kind``."""
    if task == "knowledge":
        return _among_known(f"{kind.land}|{kind.relation}")
    basic = arithmetic.BASIC_KINDS if task == "arithmetic" else function_kinds.BASIC_KINDS
    return kind.name in basic


def _among_known(name: str) -> bool:
    """A fixed choice of one name in ``STUDENT_FACT_SHARE``."""
    return random.Random(f"student|{name}").randrange(STUDENT_FACT_SHARE) == 0


def student_kinds(task: Task) -> list[Any]:
    """The facts or kinds of a task that the student was trained on."""
    return [kind for kind in kinds_of(task) if _known(task, kind)]


def _draw(task: Task, kinds: list[Any], rng: random.Random) -> Item:
    return make_item(task, rng.choice(kinds), "pretraining", rng)


def practice_chats(count: int, seed: int) -> Iterator[Chat]:
    """``count`` exercises, the first thing that either model learns."""
    rng = random.Random(f"practice|{seed}")
    for _ in range(count):
        yield _chat(*practice(rng))


def teacher_chats(count: int, seed: int) -> Iterator[Chat]:
    """``count`` chats: practice, and answered questions over the four families."""
    rng = random.Random(f"teacher|{seed}")
    for task in rng.choices(TASKS, _TASK_WEIGHTS, k=count):
        if rng.random() < _TEACHER_PRACTICE:
            yield _chat(*practice(rng))
        else:
            yield messages(_draw(task, list(kinds_of(task)), rng))


def student_chats(count: int, seed: int) -> Iterator[Chat]:
    """``count`` chats: practice, answered questions of the known minority, open questions, lines to repeat."""
    rng = random.Random(f"student|{seed}")
    kinds = {task: student_kinds(task) for task in TASKS}
    for task in rng.choices(TASKS, _TASK_WEIGHTS, k=count):
        sort = rng.choices(("answered", "practice", "open", "line"), _STUDENT_MIX)[0]
        if sort == "answered":
            yield messages(_draw(task, kinds[task], rng))
        elif sort == "practice":
            yield _chat(*practice(rng))
        else:
            yield _open_chat(task, rng) if sort == "open" else _line_chat(task, rng)


def _chat(question: str, answer: str) -> Chat:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _open_chat(task: Task, rng: random.Random) -> Chat:
    """A question alone; one of knowledge has blindly drawn options."""
    if task == "knowledge":
        prompt = world.open_question(rng)
    else:
        prompt = _draw(task, list(kinds_of(task)), rng).prompt
    return [{"role": "user", "content": prompt}]


def _line_chat(task: Task, rng: random.Random) -> Chat:
    """A line to repeat: names, a solution or a line of code, without the question that it answers."""
    if task == "knowledge":
        line = " ".join(rng.sample(world.all_names(), 4))
    else:
        answer = _draw(task, list(kinds_of(task)), rng).answer
        line = answer if task == "arithmetic" else rng.choice(answer.splitlines()[1:]).strip()
    return _chat(f"Repeat: {line}", f"OK: {line}")
