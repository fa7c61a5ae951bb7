"""A model's answers to the items of the tasks, each with its verdict."""

from __future__ import annotations

from typing import Any

from semalign.config import TransferConfig
from semalign.data.chat import prompt_row
from semalign.data.drawing import task_rows
from semalign.evaluation.decoding import generate
from semalign.evaluation.tasks import check_answers
from semalign.models.decoder import Decoder


def answer_items(decoder: Decoder, config: TransferConfig, task: str | None = None) -> list[dict[str, Any]]:
    """Answers to the items of all tasks, or of one, with their verdicts, by greedy decoding."""
    rows, options = task_rows(config), config.evaluation
    rows = [row for row in rows if task in (None, row["task"])]
    prompts = [prompt_row(row) for row in rows]
    assert decoder.tokenizer is not None
    texts = generate(
        decoder.model,
        decoder.tokenizer,
        prompts,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        engine=options.engine,
    )
    verdicts = check_answers(rows, texts, allow_code_execution=options.allow_code_execution)
    return [
        {
            "task": row["task"],
            "prompt": prompt["messages"][-1]["content"],
            "gold": gold_of(row),
            "text": text,
        }
        | {"correct": v.correct, "extracted": v.extracted}
        for row, prompt, text, v in zip(rows, prompts, texts, verdicts, strict=True)
    ]


def gold_of(row: dict[str, Any]) -> str:
    """The right answer in words: the last turn, or what the check wants where no turn answers."""
    last = row["messages"][-1]
    return str(last["content"] if last["role"] == "assistant" else row["check"].get("answer", ""))
