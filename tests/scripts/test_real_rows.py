"""The script that makes rows and items of real tasks keeps them apart and gives items that their own answers pass."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from semalign.evaluation.tasks import check_answers

SCRIPT = Path(__file__).parents[2] / "scripts" / "real_rows.py"


def rows(answer: str, count: int) -> str:
    """Rows whose answers end as the real ones do."""
    made = [
        {
            "id": f"r{n}",
            "messages": [
                {"role": "user", "content": f"q {n}"},
                {"role": "assistant", "content": answer.format(n)},
            ],
        }
        for n in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in made)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_split_and_items_are_graded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gsm_train.jsonl").write_text(rows("Answer: 2 + {0}. So the answer is {0}.", 90))
    (tmp_path / "mbpp_train.jsonl").write_text(rows("```python\ndef f(): return {0}\n```", 70))
    (tmp_path / "mmlu_train.jsonl").write_text(rows("The answer is: B", 5))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path), str(tmp_path / "out"), "--items", "4"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    out = tmp_path / "out"
    train, heldout = read(out / "math_train.jsonl"), read(out / "math_heldout.jsonl")
    items = read(out / "items.jsonl")
    for row, prompt in zip(heldout, read(out / "math_prompts.jsonl"), strict=True):
        assert prompt["id"] == row["id"] and prompt["messages"] == row["messages"][:1]
    math = [item for item in items if item["task"] == "math"]
    assert (len(train), len(heldout), len(math)) == (26, 60, 4)
    assert [row["check"]["answer"] for row in train] == list(range(26))
    ids = [row["id"] for row in [*train, *heldout, *math]]
    assert len(set(ids)) == len(ids) == 90
    assert (len(read(out / "code_train.jsonl")), len(read(out / "code_heldout.jsonl"))) == (10, 60)
    own = [item["messages"][-1]["content"] for item in items]
    assert all(v.correct for v in check_answers(items, own, allow_code_execution=True))
    assert not any(
        v.correct for v in check_answers(math, ["The answer is 999."] * 4, allow_code_execution=False)
    )


def test_more_rows_are_none_of_those_that_are_set_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = "Answer the following question.\n\nQuestion: "
    known = [json.loads(line) for line in rows("Answer: 1. So the answer is 1.", 70).splitlines()]
    for n, row in enumerate(known):
        row["messages"][0]["content"] = f"{asked}How many is {n}?"
    (tmp_path / "gsm_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in known))
    for name in ("mbpp_train.jsonl", "mmlu_train.jsonl"):
        (tmp_path / name).write_text(rows("The answer is: B", 65))
    published = [
        {"question": f"How  many is {n}?", "answer": f"It is {n}+0=<<{n}+0={n}>>{n}.\nSo.\n#### 1,{n:03d}"}
        for n in range(75)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in published))
    command = [str(SCRIPT), str(tmp_path), str(tmp_path / "out"), "--items", "4"]
    monkeypatch.setattr(sys, "argv", [*command, "--more", str(tmp_path / "train.jsonl")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    train, more = (read(tmp_path / "out" / f"math_{name}.jsonl") for name in ("train", "more"))
    assert more[: len(train)] == train and len(train) == 6
    assert [row["id"] for row in more[6:]] == [f"gsm_{n}" for n in range(70, 75)]
    assert more[-1]["messages"][1]["content"] == "Answer: It is 74+0=74. So. So the answer is 1,074."
    assert more[-1]["check"]["answer"] == 1074
