"""What the YAML files beside this one name: the embedded world's test items, and the verdict on an answer."""

from __future__ import annotations

from functools import partial
from typing import Any

import datasets

from semalign import embedded
from semalign.evaluation.tasks import check_answer


def _test(task: str, **_: Any) -> datasets.DatasetDict:
    rows = [row for row in embedded.rows("test") if row["task"] == task]
    # A column has one type in a dataset, and what a check holds differs from row to row.
    kept = [
        {"number": n, "prompt": row["messages"][0]["content"], "answer": row["messages"][-1]["content"]}
        for n, row in enumerate(rows)
    ]
    return datasets.DatasetDict({"test": datasets.Dataset.from_list([{**row, "task": task} for row in kept])})


knowledge = partial(_test, "knowledge")
arithmetic = partial(_test, "arithmetic")
code_complete = partial(_test, "code_complete")
code_write = partial(_test, "code_write")


def verdict(doc: dict[str, Any], results: list[str]) -> dict[str, int]:
    """Whether the answer is right; before a task that runs code the harness has asked for permission, and SemAlign for a jail."""
    rows = [row for row in embedded.rows("test") if row["task"] == doc["task"]]
    return {"acc": int(check_answer(rows[doc["number"]], results[0], allow_code_execution="unsafe").correct)}
