"""Step 0, where asked for: the teacher answers the rows' prompts, and new ones made from them.

Writes rows.jsonl and, with held-out rows, heldout.jsonl.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from semalign.config import TransferConfig, without_names
from semalign.data.chat import answered, conversation, lacks_answer, prompt_row
from semalign.data.drawing import split_rows, task_rows
from semalign.data.inputs import check_unedited, is_to_answer
from semalign.data.kinds import CONVERSATIONS, Row, row_kind, tools_of
from semalign.errors import DataError
from semalign.evaluation.decoding import answers
from semalign.models.decoder import Decoder
from semalign.models.loading import identity, load
from semalign.run.files import hash_of, json_line, write_atomic
from semalign.run.folder import RunFolder, fingerprint, is_done, save_result
from semalign.run.journal import Journal
from semalign.run.meter import free_memory, measured
from semalign.run.progress import bar
from semalign.steps.prompts import Chat, by_teacher, by_words


def generate(config: TransferConfig, run: RunFolder) -> None:
    """Write rows.jsonl, heldout.jsonl and rows.json; what was answered before a stop is kept.

    With `data.completions: teacher` every given prompt gets the teacher's greedy answer, else its own stays. With
    `data.variants` there are that many new prompts a row too (see `semalign.steps.prompts`), answered by the teacher.
    An answer that does not end within `data.max_new_tokens` is dropped. No new prompt is one that students are measured on.
    Held-out rows keep their answers, so that runs can be compared; with `data.completions: teacher` those without one get the
    teacher's.

    Raises:
        DataError: rows that are no conversations, or no answer that ends.
    """
    options = config.data
    if not options.is_generated:
        return
    rows, heldout = split_rows(options)
    measured_on = [*heldout, *task_rows(config)]
    wanted = fingerprint(
        teacher=identity(config.teacher, run.digests),
        rows=hash_of(rows),
        measured=hash_of(measured_on),
        data=without_names(options),
        seed=config.seed,
    )
    check_unedited(run)
    if is_done(run.generated, wanted):
        return
    is_teachers = options.completions == "teacher"
    chats = [_chat(row, number) for number, row in enumerate(rows, start=1)]
    own, given = ([prompt_row(chat) for chat in chats], []) if is_teachers else ([], chats)
    unanswered = {n: _chat(row, n + 1) for n, row in enumerate(heldout) if is_to_answer(options, row)}
    open_teacher = functools.cache(lambda: load(config.teacher))
    result: dict[str, Any] = {}
    with measured(result):
        asked_for = [*own, *_new_prompts(config, run, chats, measured_on, open_teacher, wanted)]
        texts = _answers(config, open_teacher, asked_for, _part(run.rows), wanted)
        start = time.perf_counter()
        found = _answers(config, open_teacher, list(unanswered.values()), _part(run.heldout), wanted)
        result["heldout_seconds"] = round(time.perf_counter() - start, 3)
        open_teacher.cache_clear()
        free_memory()
    written = _answered(asked_for, texts)
    kept = list(_with_answers(heldout, dict(zip(unanswered, found, strict=True))))
    if (asked_for and not written) or (heldout and not kept):
        raise DataError(
            f"data.max_new_tokens: none of the teacher's answers ended within {options.max_new_tokens} tokens; raise it."
        )
    write_atomic(run.heldout, "".join(map(json_line, kept)))
    write_atomic(run.rows, "".join(json_line(chat) for chat in [*given, *written]))
    counts = {
        "given": len(given),
        "written": len(written),
        "dropped": len(asked_for) - len(written),
        "heldout_written": sum(map(bool, found)),
        "heldout_dropped": len(heldout) - len(kept),
    }
    save_result(run.generated, wanted, result | counts, [run.rows, run.heldout])
    for path in (run.rows, run.heldout, run.root / "prompts"):
        _part(path).unlink(missing_ok=True)


def _part(path: Path) -> Path:
    """Where answers are kept until the file is whole."""
    return path.with_suffix(".part")


def _new_prompts(
    config: TransferConfig,
    run: RunFolder,
    chats: Sequence[Chat],
    measured_on: Sequence[Row],
    open_teacher: Callable[[], Decoder],
    wanted: Mapping[str, Any],
) -> list[Chat]:
    """The prompts that `data.variants` asks for; the teacher goes on from its own answers where those are trained on."""
    options, prompts = config.data, [prompt_row(chat) for chat in chats]
    if not options.variants:
        return []
    if options.variants_by == "words":
        return list(by_words(prompts, config, measured_on))
    if options.completions == "teacher":
        shown = _answered(prompts, _answers(config, open_teacher, prompts, _part(run.rows), wanted))
    else:
        shown = [chat for chat in chats if not lacks_answer(chat)]
    known = [*measured_on, *prompts]
    return by_teacher(shown, len(chats), config, known, open_teacher, _part(run.root / "prompts"), wanted)


def _answered(prompts: Sequence[Chat], texts: Sequence[str | None]) -> list[Chat]:
    """Conversations of the prompts whose answer ended."""
    return [answered(prompt, text) for prompt, text in zip(prompts, texts, strict=True) if text]


def _with_answers(rows: Sequence[Row], texts: Mapping[int, str | None]) -> Iterator[Row]:
    """Rows in their order, those asked with the teacher's text; one whose answer did not end is left out."""
    for number, row in enumerate(rows):
        if number not in texts:
            yield row
        elif text := texts[number]:
            yield answered(row, text)


def _chat(row: Row, number: int) -> Chat:
    kind = row_kind(row)
    if kind not in CONVERSATIONS:
        raise DataError(
            f"data.variants and data.completions need rows with messages, row {number} has {kind}; "
            "turn prompts into a message of role user."
        )
    tools = tools_of(row)
    return {"messages": conversation(row, kind)} | ({"tools": tools} if tools else {})


def _answers(
    config: TransferConfig,
    open_teacher: Callable[[], Decoder],
    prompts: Sequence[Chat],
    part: Path,
    wanted: Mapping[str, Any],
) -> list[str | None]:
    """The teacher's answer to each prompt, None where it does not end; kept in `part` batch by batch."""
    journal = Journal(part, wanted, str | None)
    size = config.evaluation.batch_size
    if len(journal.values) >= len(prompts):
        return journal.values[: len(prompts)]
    teacher = open_teacher()
    assert teacher.tokenizer is not None
    with bar(len(prompts), "teacher's answers") as progress:
        progress.update(len(journal.values))
        for start in range(len(journal.values), len(prompts), size):
            batch = prompts[start : start + size]
            found = answers(
                teacher.model,
                teacher.tokenizer,
                batch,
                config.data.max_new_tokens,
                size,
                engine=config.evaluation.engine,
            )
            journal.add(text if has_ended and text.strip() else None for text, has_ended in found)
            progress.update(len(batch))
    return journal.values
