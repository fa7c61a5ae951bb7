"""Step 0, where asked for: the teacher answers the rows' prompts, and new ones made from them. Writes rows.jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from semalign.cache import write_atomic
from semalign.config import DataConfig, TransferConfig, without_names
from semalign.data import prompt_of, variants
from semalign.data.chat import Message, asked, conversation
from semalign.data.kinds import Kind, Row, row_kind
from semalign.embedded.keys import splits_of
from semalign.errors import DataError
from semalign.evaluation.generate import answers
from semalign.folder import RunFolder, fingerprint, free_memory, hash_of, is_done, measured, save_result
from semalign.loading import identity, load
from semalign.progress import bar
from semalign.steps.inputs import split_rows, task_rows

Chat = list[Message]


def generate(config: TransferConfig, run: RunFolder) -> None:
    """Write rows.jsonl and rows.json; what was answered before a stop is kept.

    With `data.completions: teacher` every given prompt gets the teacher's greedy answer, else its own stays. With
    `data.variants` each prompt also gives that many new ones (see `semalign.data.variants`), answered by the teacher.
    An answer that does not end within `data.max_new_tokens` is dropped. No variant is a prompt that students are measured on.

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
    if is_done(run.generated, wanted) and run.rows.exists():
        return
    chats = [_chat(row, number) for number, row in enumerate(rows, start=1)]
    prompts = [asked(chat) for chat in chats]
    new = prompts if options.completions == "teacher" else []
    new = new + list(_varied(prompts, config, measured_on))
    given = chats if options.completions == "given" else []
    result: dict[str, Any] = {}
    with measured(result):
        part = run.rows.with_suffix(".part")
        texts = _answers(config, new, part, wanted)
        written = [[*p, {"role": "assistant", "content": t}] for p, t in zip(new, texts, strict=True) if t]
    if new and not written:
        raise DataError(
            f"data.max_new_tokens: none of the teacher's answers ended within {options.max_new_tokens} tokens; raise it."
        )
    write_atomic(run.rows, "".join(_line({"messages": chat}) for chat in [*given, *written]))
    counts = {"given": len(given), "written": len(written), "dropped": len(new) - len(written)}
    save_result(run.generated, wanted, result | counts)
    part.unlink()


def _chat(row: Row, number: int) -> Chat:
    kind = row_kind(row)
    if kind not in (Kind.MESSAGES, Kind.CHAT_PAIR):
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
    config: TransferConfig, prompts: Sequence[Chat], part: Path, wanted: Mapping[str, Any]
) -> list[str | None]:
    """The teacher's answer to each prompt, None where it does not end; kept in `part` batch by batch."""
    done = _kept(part, wanted)
    size = config.evaluation.batch_size
    if len(done) == len(prompts):
        return done
    teacher = load(config.teacher)
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
    del teacher
    free_memory()
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
