"""Step 0, where asked for: the teacher, the student or both together answer the rows' prompts, and new ones made from them.

Writes rows.jsonl and, with held-out rows, heldout.jsonl.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from semalign.config import UNTIL_CACHED, DataConfig, TransferConfig, without_names
from semalign.data.chat import (
    answered,
    conversation,
    encode_prompt,
    lacks_answer,
    prompt_row,
)
from semalign.data.drawing import split_rows, task_rows
from semalign.data.inputs import check_unedited, is_to_answer
from semalign.data.items import with_check
from semalign.data.kinds import CONVERSATIONS, Row, row_kind, tools_of
from semalign.data.shown import Shown, known_view
from semalign.data.tokens import special_tokens
from semalign.errors import DataError
from semalign.evaluation.tasks import check_items
from semalign.models.decoder import Decoder
from semalign.models.finding import identity, load_tokenizer
from semalign.models.loading import load
from semalign.run.files import hash_of, json_line, write_atomic
from semalign.run.folder import RunFolder, fingerprint, is_done, save_result
from semalign.run.meter import Tries, free_memory, measured
from semalign.steps.choice import choose, unusable
from semalign.steps.prompts import Chat, by_teacher, by_words
from semalign.steps.writers import Asking, Writer, alone, served, together

log = logging.getLogger(__name__)


def generate(config: TransferConfig, run: RunFolder) -> None:
    """Write rows.jsonl, heldout.jsonl and rows.json; what was answered before a stop is kept.

    With `data.completions` of teacher or student every given prompt gets `data.samples` answers of that model, greedy or as
    `data.sampling` says; with speculative the student writes and the teacher corrects; with given its own answer stays. The teacher
    is shown what `teacher.sees` says, which the rows do not have. With `data.variants` there are that many new prompts a row too (see
    `semalign.steps.prompts`), answered by whoever answers the given ones, or the teacher. An answer that does not end within
    `data.max_new_tokens` is dropped, and of the others those that `data.keep` leaves out. No new prompt is one that students are
    measured on. Held-out rows keep their answers, so that runs can be compared; those without one get the teacher's greedy one.

    Raises:
        DataError: rows that are no conversations, or no answer that is left.
    """
    options = config.data
    if not options.is_generated:
        return
    rows, heldout = split_rows(options)
    rows = _with_a_question(rows, options)
    measured_on = [*heldout, *task_rows(config)]
    shown = Shown(config.student if options.completions == "student" else config.teacher, rows, config.seed)
    models = _Models(config, shown)
    # Only new prompts may be those of items.
    wanted = _made_from(config, run, rows, measured_on if options.variants else heldout)
    check_unedited(run)
    if is_done(run.generated, wanted):
        return
    rows, chats = _to_ask(rows, config)
    own, given = ([prompt_row(chat) for chat in chats], []) if options.completions != "given" else ([], chats)
    unanswered = {n: _chat(row, n + 1) for n, row in enumerate(heldout) if is_to_answer(options, row)}
    tokenizer = load_tokenizer(config.student if _has_student(options) else config.teacher)
    controls = special_tokens(tokenizer)
    for number, (row, prompt) in enumerate(zip(rows, own, strict=False), start=1):
        # Before anything is written: a prompt that the chat template refuses.
        encode_prompt(shown.before(prompt), tokenizer, _name(row, number))

    def answer(prompts: Sequence[Chat]) -> list[list[str | None]]:
        asking = Asking(config, options.samples, options.sampling)
        return asking(models.writer, prompts, _part(run.rows), wanted)

    result: dict[str, Any] = {}
    with measured(result, Tries(run.root / "seconds.part", wanted)):
        new = _new_prompts(config, run, chats, measured_on, models.teacher, answer, controls, wanted)
        asked_for = [*own, *new]
        if options.completions == "student":
            models.leave("teacher")
        texts = answer(asked_for)
        models.leave("student")
        start = time.perf_counter()
        to_answer = list(unanswered.values())
        found = Asking(config)(models.teacher_alone, to_answer, _part(run.heldout), wanted)
        result["heldout_seconds"] = round(time.perf_counter() - start, 3)
        written, dropped = choose(config, rows, asked_for, texts, models.teacher, controls)
        models.leave("teacher")
    # The teacher's held-out answers are in its own tokens, whoever writes the others.
    theirs = (
        special_tokens(load_tokenizer(config.teacher)) if unanswered and _has_student(options) else controls
    )
    told = {n: text for n, [text] in zip(unanswered, found, strict=True)}
    unfit = {n: why for n, text in told.items() if (why := unusable(text, theirs))}
    kept = list(_with_answers(heldout, told | dict.fromkeys(unfit)))
    if asked_for and not written:
        raise DataError(f"data.completions: no answer to any of the prompts {_why_not(options, dropped)}.")
    if heldout and not kept:
        why_not = _why_not(options, Counter(unfit.values()))
        raise DataError(f"data.completions: no answer to any of the held-out prompts {why_not}.")
    write_atomic(run.heldout, "".join(map(json_line, kept)))
    write_atomic(run.rows, "".join(json_line(chat) for chat in [*given, *written]))
    counts = {
        "given": len(given),
        "written": len(written),
        "dropped": sum(dropped.values()),
        **{f"dropped_{reason}": count for reason, count in dropped.items() if count},
        "heldout_written": len(told) - len(unfit),
        "heldout_dropped": len(heldout) - len(kept),
    }
    save_result(run.generated, wanted, result | counts, [run.rows, run.heldout])
    for path in (run.rows, run.heldout, run.root / "prompts"):
        _part(path).unlink(missing_ok=True)


def check_prompts(config: TransferConfig, rows: list[Row]) -> None:
    """Refuse training rows that nobody could be asked, or whose answers could not be checked as `data.keep` wants it.

    Raises:
        DataError: some are; the sentence names the first.
    """
    if config.data.is_generated:
        _to_ask(_with_a_question(rows, config.data), config)


def _to_ask(rows: list[Row], config: TransferConfig) -> tuple[list[Row], list[Chat]]:
    """Rows, with their checks where these decide which answers are kept, and the conversations that they hold."""
    if config.data.keep != "ended":
        rows = [with_check(row, _name(row, number)) for number, row in enumerate(rows, 1)]
        check_items(rows, config.evaluation.allow_code_execution)
    return rows, [_chat(row, number) for number, row in enumerate(rows, start=1)]


def _has_student(options: DataConfig) -> bool:
    """Whether the student writes answers, alone or with the teacher's corrections, in its own tokens."""
    return options.completions in ("student", "speculative")


def _made_from(
    config: TransferConfig, run: RunFolder, rows: Sequence[Row], measured: Sequence[Row]
) -> dict[str, Any]:
    """What the answers depend on."""
    options = config.data
    asked = config.student if options.completions == "student" else config.teacher
    return fingerprint(
        teacher=identity(config.teacher, run.digests),
        **({"student": identity(config.student, run.digests)} if _has_student(options) else {}),
        **known_view(asked),
        rows=hash_of(rows),
        measured=hash_of(measured),
        data={k: v for k, v in without_names(options).items() if k not in _of_tokens(options)},
        seed=config.seed,
    )


def _of_tokens(options: DataConfig) -> tuple[str, ...]:
    """Options that say how written rows become tokens, and not what is written: the answers outlive a change of them."""
    used = ("max_length",) if options.keep == "best" else ()
    return tuple(name for name in UNTIL_CACHED if name not in used)


class _Models:
    """Both models, each read when it is first asked for, and who of them writes."""

    def __init__(self, config: TransferConfig, shown: Shown) -> None:
        self.config, self.shown = config, shown
        self._read: dict[str, Decoder] = {}

    def teacher(self) -> Decoder:
        """It need not be known layer by layer."""
        if "teacher" not in self._read:
            self._read["teacher"] = load(self.config.teacher, needs_layers=False)
        return self._read["teacher"]

    def student(self) -> Decoder:
        """As it is before it is trained."""
        if "student" not in self._read:
            self._read["student"] = load(self.config.student)
        return self._read["student"]

    def leave(self, name: str) -> None:
        """One model at a time where it can be: who has answered goes before the other comes."""
        self._read.pop(name, None)
        free_memory()

    def writer(self) -> Writer:
        """Who answers the rows' prompts; a teacher's are answered with what it is shown."""
        who = self.config.data.completions
        if who == "speculative":
            return together(self.student(), self.teacher(), self.shown.before)
        return alone(self.student()) if who == "student" else self.teacher_alone(self.shown.before)

    def teacher_alone(self, before: Callable[[Chat], Chat] = lambda prompt: prompt) -> Writer:
        """The teacher, here or on its server."""
        if self.config.teacher.server.url:
            return served(load_tokenizer(self.config.teacher), before)
        return alone(self.teacher(), before)


def _why_not(options: DataConfig, dropped: Mapping[str, int]) -> str:
    """What no answer does, by why they were dropped, and what to do about it."""
    reasons = {
        "wrong": "is right; take rows that the model can answer, raise data.samples, or set data.keep: ended",
        "control": "is plain text, for control tokens stand in them; take a model that answers in words",
        "blank": "says anything; take a model that was trained to answer",
    }
    unended = f"ended within {options.max_new_tokens} tokens; raise data.max_new_tokens"
    return next((said for name, said in reasons.items() if dropped.get(name)), unended)


def _part(path: Path) -> Path:
    """Where answers are kept until the file is whole."""
    return path.with_suffix(".part")


def _new_prompts(
    config: TransferConfig,
    run: RunFolder,
    chats: Sequence[Chat],
    measured_on: Sequence[Row],
    open_teacher: Callable[[], Decoder],
    answer: Callable[[Sequence[Chat]], list[list[str | None]]],
    controls: Collection[str],
    wanted: Mapping[str, Any],
) -> list[Chat]:
    """The prompts that `data.variants` asks for; the teacher goes on from its own answers where those are trained on."""
    options, prompts = config.data, [prompt_row(chat) for chat in chats]
    if not options.variants:
        return []
    if options.variants_by == "words":
        return list(by_words(prompts, config, measured_on))
    if options.completions == "teacher":
        texts = answer(prompts)
        firsts = [next((t for t in several if not unusable(t, controls)), None) for several in texts]
        shown = [answered(p, text) for p, text in zip(prompts, firsts, strict=True) if text]
    else:
        shown = [chat for chat in chats if not lacks_answer(chat)]
    known = [*measured_on, *prompts]
    return by_teacher(shown, len(chats), config, known, open_teacher, _part(run.root / "prompts"), wanted)


def _with_answers(rows: Sequence[Row], texts: Mapping[int, str | None]) -> Iterator[Row]:
    """Rows in their order, those asked with the teacher's text; one whose answer did not end is left out."""
    for number, row in enumerate(rows):
        if number not in texts:
            yield row
        elif text := texts[number]:
            yield answered(row, text)


def _with_a_question(rows: Sequence[Row], options: DataConfig) -> list[Row]:
    """Rows without those of messages in which nobody asks anything, which are no prompts."""
    asking = [row for row in rows if row_kind(row) not in CONVERSATIONS or prompt_row(row)["messages"]]
    if (lacking := len(rows) - len(asking)) > options.max_dropped * len(rows):
        raise DataError(
            f"data.dataset_name: {lacking} of {len(rows)} rows have no turn to answer, more than the share of {options.max_dropped:g} that is "
            "allowed; mend the rows, or raise data.max_dropped."
        )
    if lacking:
        log.warning("dropped %d of %d rows, which have no turn to answer", lacking, len(rows))
    return asking


def _name(row: Row, number: int) -> str:
    return f"row {row.get('id', number)}"


def _chat(row: Row, number: int) -> Chat:
    kind = row_kind(row)
    if kind not in CONVERSATIONS:
        raise DataError(
            f"data.variants and data.completions need rows with messages, row {number} has {kind}; "
            "turn prompts into a message of role user."
        )
    tools = tools_of(row)
    return {"messages": conversation(row, kind)} | ({"tools": tools} if tools else {})
