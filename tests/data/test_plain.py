"""What is no JSON matters in the columns that tokens are made of, and nowhere else; the same for files, datasets and lists in memory."""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from semalign.api.targets import _rows
from semalign.config import DataConfig
from semalign.data import load_rows
from semalign.data.check import check_rows
from semalign.data.kinds import plain_columns
from semalign.errors import DataError
from semalign.run.files import hash_of, json_line

from .marked import chat

WHEN = datetime.datetime(2025, 1, 2, 3, 4)
ODD = {
    "when": WHEN,
    "day": WHEN.date(),
    "price": decimal.Decimal("1.50"),
    "key": uuid.UUID(int=5),
    "count": np.int64(7),
    "vector": np.arange(3),
    "tensor": torch.ones(2),
    "nested": {"at": [WHEN], 3: np.bool_(True)},
    "sha": b"\x01",
    "picture": object(),
    "set": {1},
}
AS_JSON = {
    "when": "2025-01-02T03:04:00",
    "day": "2025-01-02",
    "price": "1.50",
    "key": "00000000-0000-0000-0000-000000000005",
    "count": 7,
    "vector": [0, 1, 2],
    "tensor": [1.0, 1.0],
    "nested": {"at": ["2025-01-02T03:04:00"], "3": True},
    "sha": None,
    "picture": None,
    "set": None,
}


def test_columns_that_nobody_reads_become_json() -> None:
    row = plain_columns({**chat("Q", "A"), **ODD})
    assert row == {**chat("Q", "A"), **AS_JSON} and json.loads(json_line(row)) == row and hash_of([row])


def test_a_dataset_with_such_columns_is_read(tmp_path: Path) -> None:
    rows = [{**chat(f"Q{n}", "A"), "when": WHEN, "sha": bytes([n]), "id": n} for n in range(3)]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    found = load_rows(str(tmp_path / "saved"))
    assert [row["messages"] for row in found] == [row["messages"] for row in rows]
    assert found[1]["when"] == "2025-01-02T03:04:00" and found[1]["id"] == 1 and hash_of(found)
    assert _rows(DataConfig("rows"), datasets.Dataset.from_list(rows), "train_dataset") == found


def test_pictures_are_not_decoded(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "picture": datasets.Image()})
    data = {"text": ["a"], "picture": [{"bytes": b"no picture", "path": None}]}
    datasets.Dataset.from_dict(data, features=features).save_to_disk(str(tmp_path / "saved"))
    assert load_rows(str(tmp_path / "saved")) == [{"text": "a"}]


BAD = [
    (
        {"messages": [{"role": "user", "content": "Q", "when": WHEN}, *chat("Q", "A")["messages"][1:]]},
        "another value",
    ),
    ({**chat("Q", "A"), "tools": [{"name": "f", "since": WHEN}]}, "another value"),
    (chat("Q \ud83d", "A"), "half of a surrogate pair"),
    (chat("Q", "A \udc00"), "half of a surrogate pair"),
    ({**chat("Q", "A"), "tools": [{"name": "\ud83d"}]}, "half of a surrogate pair"),
    ({"prompt": "\ud83d", "completion": "A"}, "half of a surrogate pair"),
    ({"text": "\ud83d"}, "half of a surrogate pair"),
    ({"messages": tuple(chat("Q", "A")["messages"])}, "messages is tuple, expected a list"),
    (chat("Q", 5), "message 2: content is a number, expected a string"),
    ({"input_ids": np.arange(3)}, "input_ids is not a list of token ids"),
    (["x"], "expected a dict, got list"),
    ("x", "expected a dict, got str"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD, ids=[reason[:20] for _, reason in BAD])
def test_columns_that_are_trained_on_are_refused_with_the_row(bad: Any, reason: str) -> None:
    good: dict[str, Any] = {"text": "a"} if isinstance(bad, list | str) else {**bad}
    for column, value in (
        ("messages", chat("P", "A")["messages"]),
        ("prompt", "P"),
        ("text", "T"),
        ("input_ids", [1]),
    ):
        if column in good:
            good = {column: value} | ({"completion": "A"} if column == "prompt" else {})
    with pytest.raises(DataError, match=rf"^train_dataset:2: .*{reason}.*; mend the row$") as raised:
        _rows(DataConfig("rows"), [good, bad, good], "train_dataset")
    assert len(str(raised.value)) < 400 and "on_bad_row" not in str(raised.value), (
        "no config names these rows"
    )
    if isinstance(bad, dict):
        found = check_rows([("a:1", good), ("a:2", bad)])
        assert [error["place"] for error in found["errors"]] == ["a:2"] and reason in found["errors"][0][
            "reason"
        ]


def test_half_a_surrogate_is_refused_in_other_columns_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    bad = {**chat("Q", "A"), "note": "\ud83d"}
    path.write_text(json.dumps(chat("Q", "A")) + "\n" + json.dumps(bad) + "\n")
    with pytest.raises(DataError, match=r"rows.jsonl:2: a string holds half of a surrogate pair"):
        load_rows(str(path))
    assert len(load_rows(str(path), on_bad_row="skip")) == 1
    with pytest.raises(DataError, match=r"^train_dataset:2: a string holds half of a surrogate pair"):
        _rows(DataConfig("rows"), [chat("Q", "A"), bad], "train_dataset")
