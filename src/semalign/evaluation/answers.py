"""A model's answers to the items of the tasks, each with its verdict, and verdicts given again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from semalign.config import TransferConfig
from semalign.data.chat import prompt_row, render
from semalign.data.drawing import task_rows
from semalign.data.kinds import Row, tools_of
from semalign.errors import DataError
from semalign.evaluation.asked import asked_answers
from semalign.evaluation.decoding import answers, in_order
from semalign.evaluation.extraction import thinking_opened
from semalign.evaluation.tasks import check_answers
from semalign.models.decoder import Decoder
from semalign.models.finding import load_tokenizer
from semalign.run.files import hash_of
from semalign.run.journal import Journal

Answer = dict[str, Any]


def answer_items(
    decoder: Decoder | None,
    config: TransferConfig,
    task: str | None = None,
    *,
    part: Path | None = None,
    wanted: Mapping[str, Any] | None = None,
) -> list[Answer]:
    """Answers to the items of all tasks, or of one, with their verdicts: evaluation.samples an item, one after the other.

    An answer has the item's `id` (its number where it has none), `task`, `prompt` and `gold`, where more than a user's turn was asked
    also a hash of all of that (`asked`), the `text`, with the mark of thinking where the prompt ends with it, whether it `ended` or was
    cut off at evaluation.max_new_tokens, and the verdict: `correct`, `extracted`, `reason`, and the `code` that was run. Where there are
    several an item, `sample` counts them from 1.

    Args:
        decoder: who answers; None asks the teacher's server.
        part: a file that keeps the answers batch by batch, so that a try that was stopped is gone on with. It is left there.
        wanted: what the answers are made from; those in `part` that were made from anything else are given again.
    """
    rows, options = task_rows(config, task), config.evaluation
    prompts = [prompt_row(row) for row in rows]
    # Engines ask in orders of their own.
    asked_by = "server" if decoder is None else options.engine
    journal = (
        None if part is None else Journal(part, {**(wanted or {}), "by": asked_by}, list[list[str | bool]])
    )
    tokenizer = load_tokenizer(config.teacher) if decoder is None else decoder.tokenizer
    assert tokenizer is not None
    # What the template opens is not the model's to write, but tells what it writes first from what it says.
    opened = [
        thinking_opened(render(p["messages"], tokenizer, f"prompt {n}", prompt=True, tools=tools_of(p)))
        for n, p in enumerate(prompts, 1)
    ]
    if decoder is None:
        found = _from_server(config, prompts, tokenizer, journal)
    else:
        found = answers(
            decoder.model,
            tokenizer,
            prompts,
            options.max_new_tokens,
            options.batch_size,
            engine=options.engine,
            server=options.server,
            samples=options.samples,
            sampling=options.sampling,
            seed=config.seed,
            journal=journal,
        )
    given: list[Answer] = [
        {"text": opened[n // options.samples] + text, "ended": has_ended}
        for n, (text, has_ended) in enumerate(found)
    ]
    if options.samples > 1:
        given = [answer | {"sample": n % options.samples + 1} for n, answer in enumerate(given)]
    return _graded(config, rows, given)


def _from_server(
    config: TransferConfig,
    prompts: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    journal: Journal | None,
) -> list[tuple[str, bool]]:
    """The teacher's answers to the prompts, which its server gives batch by batch."""
    options = config.evaluation

    def ask(batch: list[int]) -> list[tuple[str, bool]]:
        return asked_answers(
            config.teacher,
            tokenizer,
            [prompts[n] for n in batch],
            options.max_new_tokens,
            samples=options.samples,
            sampling=options.sampling,
            seed=config.seed + options.samples * batch[0],
        )

    order, size = list(range(len(prompts))), options.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return in_order(batches, options.samples, ask, journal)


def by_item(given: Sequence[Answer]) -> list[list[Answer]]:
    """The answers to each item."""
    items: list[list[Answer]] = []
    for answer in given:
        if answer.get("sample", 1) == 1:
            items.append([])
        items[-1].append(answer)
    return items


def graded_again(config: TransferConfig, given: Sequence[Answer], task: str | None = None) -> list[Answer]:
    """The same answers with the verdicts that the present items and checkers give.

    Raises:
        DataError: the answers are not to these items, in this order.
    """
    items = by_item(given)
    rows = task_rows(config, task)
    if [_asked(row) for row in rows] != [
        (answers[0]["prompt"], answers[0].get("asked")) for answers in items
    ]:
        raise DataError(
            f"evaluation.tasks: expected the items that the {len(given)} stored answers were given to, in their order, got others; "
            "answer them anew: run the evaluate step without regrade."
        )
    return _graded(config, rows, given)


def _asked(row: dict[str, Any]) -> tuple[str, str | None]:
    """The last turn of what is asked, and a hash of all of it where that is more than one user's turn."""
    whole = prompt_row(row)
    last = whole["messages"][-1]
    is_all = whole == {"messages": [{"role": "user", "content": last["content"]}]}
    return last["content"], None if is_all else hash_of(whole)


def _graded(config: TransferConfig, rows: Sequence[dict[str, Any]], given: Sequence[Answer]) -> list[Answer]:
    numbers = [number for number, answers in enumerate(by_item(given)) for _ in answers]
    rows, permission = [rows[n] for n in numbers], config.evaluation.allow_code_execution
    verdicts = check_answers(rows, [answer["text"] for answer in given], allow_code_execution=permission)
    return [
        {
            "id": row.get("id", number),
            "task": row["task"],
            "prompt": asked[0],
            **({"asked": asked[1]} if asked[1] else {}),
            "gold": gold_of(row),
            "text": answer["text"],
            "ended": answer["ended"],
            "correct": verdict.correct,
            "extracted": verdict.extracted,
            "reason": verdict.reason,
            **({"code": verdict.code} if verdict.code is not None else {}),
            **({"sample": answer["sample"]} if "sample" in answer else {}),
        }
        for number, row, asked, answer, verdict in zip(
            numbers, rows, map(_asked, rows), given, verdicts, strict=True
        )
    ]


def gold_of(row: dict[str, Any]) -> str:
    """The right answer in words: the last turn, or what the check wants where no turn answers."""
    last = row["messages"][-1]
    return str(last["content"] if last["role"] == "assistant" else row["check"].get("answer", ""))
