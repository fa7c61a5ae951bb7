"""Step 0, where asked for: the teacher answers the rows' prompts, and new ones made from them.

Writes rows.jsonl and, with held-out rows, heldout.jsonl.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from semalign.cache import write_atomic
from semalign.config import DataConfig, TransferConfig, without_names
from semalign.data import prompt_of, variants
from semalign.data.chat import Message, answered, asked, conversation
from semalign.data.kinds import CONVERSATIONS, Row, row_kind
from semalign.embedded.keys import splits_of
from semalign.errors import DataError
from semalign.evaluation.generate import answers
from semalign.folder import RunFolder, fingerprint, free_memory, hash_of, is_done, measured, save_result
from semalign.loading import identity, load
from semalign.models import Decoder
from semalign.progress import bar
from semalign.steps.inputs import is_to_answer, split_rows, task_rows

Chat = list[Message]


def generate(config: TransferConfig, run: RunFolder) -> None:
    """Write rows.jsonl, heldout.jsonl and rows.json; what was answered before a stop is kept.

    With `data.completions: teacher` every given prompt gets the teacher's greedy answer, else its own stays. With
    `data.variants` each prompt also gives that many new ones (see `semalign.data.variants`), answered by the teacher.
    An answer that does not end within `data.max_new_tokens` is dropped. No variant is a prompt that students are measured on.
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
        teacher=identity(config.teacher),
        rows=hash_of(rows),
        measured=hash_of(measured_on),
        data=without_names(options),
        seed=config.seed,
    )
    if is_done(run.generated, wanted) and run.rows.exists() and run.heldout.exists():
        return
    is_teachers = options.completions == "teacher"
    chats = [_chat(row, number) for number, row in enumerate(rows, start=1)]
    prompts = [asked(chat) for chat in chats]
    new = [*(prompts if is_teachers else []), *_varied(prompts, config, measured_on)]
    given = [] if is_teachers else chats
    unanswered = {n: _chat(row, n + 1) for n, row in enumerate(heldout) if is_to_answer(options, row)}
    open_teacher = functools.cache(lambda: load(config.teacher))
    result: dict[str, Any] = {}
    with measured(result):
        texts = _answers(config, open_teacher, new, _part(run.rows), wanted)
        start = time.perf_counter()
        found = _answers(config, open_teacher, list(unanswered.values()), _part(run.heldout), wanted)
        result["heldout_seconds"] = round(time.perf_counter() - start, 3)
        open_teacher.cache_clear()
        free_memory()
    written = [[*p, {"role": "assistant", "content": t}] for p, t in zip(new, texts, strict=True) if t]
    kept = list(_with_answers(heldout, dict(zip(unanswered, found, strict=True))))
    if (new and not written) or (heldout and not kept):
        raise DataError(
            f"data.max_new_tokens: none of the teacher's answers ended within {options.max_new_tokens} tokens; raise it."
        )
    write_atomic(run.heldout, "".join(map(_line, kept)))
    write_atomic(run.rows, "".join(_line({"messages": chat}) for chat in [*given, *written]))
    counts = {
        "given": len(given),
        "written": len(written),
        "dropped": len(new) - len(written),
        "heldout_written": sum(map(bool, found)),
        "heldout_dropped": len(heldout) - len(kept),
    }
    save_result(run.generated, wanted, result | counts)
    for path in (run.rows, run.heldout):
        _part(path).unlink()


def _part(path: Path) -> Path:
    """Where answers are kept until the file is whole."""
    return path.with_suffix(".part")


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
    return conversation(row, kind)


def _varied(prompts: Sequence[Chat], config: TransferConfig, measured_on: Sequence[Row]) -> Iterator[Chat]:
    """Prompts whose last turn is a variant of a given one; none is a prompt that students are measured on."""
    texts = [prompt[-1]["content"] or "" for prompt in prompts]
    known = {prompt_of(row) for row in measured_on}
    is_kept_apart = _kept_apart(config.data)

    def chat(number: int, text: str) -> Chat:
        return [*prompts[number][:-1], {**prompts[number][-1], "content": text}]

    def accept(number: int, text: str) -> bool:
        return prompt_of({"messages": chat(number, text)}) not in known and not is_kept_apart(text)

    count = config.data.variants * len(texts)
    for number, text in variants(texts, count, seed=config.seed, accept=accept):
        yield chat(number, text)


def _kept_apart(data: DataConfig) -> Callable[[str], bool]:
    """Whether a prompt states a problem of the embedded world that is kept for validation or test, in whatever words."""
    names = [
        name.removeprefix("embedded:").split("/")[0] for name in data.weights if name.startswith("embedded:")
    ]
    apart = {"validation", "test"} - set(names)
    return lambda text: bool(names) and not apart.isdisjoint(splits_of(text))


def _answers(
    config: TransferConfig,
    open_teacher: Callable[[], Decoder],
    prompts: Sequence[Chat],
    part: Path,
    wanted: Mapping[str, Any],
) -> list[str | None]:
    """The teacher's answer to each prompt, None where it does not end; kept in `part` batch by batch."""
    done = _kept(part, wanted)
    size = config.evaluation.batch_size
    if len(done) == len(prompts):
        return done
    teacher = open_teacher()
    assert teacher.tokenizer is not None
    with bar(len(prompts), "teacher's answers") as progress, part.open("a", encoding="utf-8") as file:
        progress.update(len(done))
        for start in range(len(done), len(prompts), size):
            batch = prompts[start : start + size]
            found = answers(
                teacher.model,
                teacher.tokenizer,
                batch,
                config.data.max_new_tokens,
                size,
                engine=config.evaluation.engine,
            )
            texts = [text if has_ended and text.strip() else None for text, has_ended in found]
            file.write("".join(map(_line, texts)))
            file.flush()
            done += texts
            progress.update(len(batch))
    return done


def _kept(part: Path, wanted: Mapping[str, Any]) -> list[str | None]:
    """Answers of an earlier try with the same inputs, without a last line that was cut off."""
    # Only at line feeds: an answer may hold any other character that ends a line.
    lines = part.read_text(encoding="utf-8").split("\n") if part.exists() else []
    whole = [json.loads(line) for line in lines[:-1]]
    done = whole[1:] if whole and whole[0] == wanted else []
    write_atomic(part, "".join(map(_line, [dict(wanted), *done])))
    return done


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
