"""The harness' tasks that run code are graded in the jail, as pass@k."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from problems import problems

from semalign.errors import ConfigError
from semalign.evaluation.code_eval import CodeEval, graded_in_jail, program_of
from semalign.jail.process import offered

PROMPT = "from math import sqrt\n\ndef root(x):\n"
RIGHT, WRONG = PROMPT + "    return sqrt(x)\n", PROMPT + "    return 1\n"
TESTS = "def check(candidate):\n    assert candidate(4) == 2\ncheck(root)"


def test_of_an_item_the_entry_is_the_answer_s_and_the_rest_the_prompt_s() -> None:
    program = program_of(RIGHT, TESTS, PROMPT)
    assert program.entries == ("root",) and program.prefix == PROMPT and program.asserts == (TESTS,)
    plain = program_of("def f(x): return x\n", "assert f(1) == 1\nassert g(2) == 2", "write f")
    assert plain.entries == ("f", "g") and not plain.prefix
    assert program_of(RIGHT, "-" * 9000, PROMPT).entries == (), "of tests that Python cannot read"


@pytest.mark.skipif(offered() is None, reason="this machine offers no jail")
def test_pass_at_k_counts_right_answers_of_each_item() -> None:
    metric = CodeEval(True)
    metric.doc = {"prompt": PROMPT}
    rates, _ = metric.compute(
        references=[TESTS, TESTS], predictions=[[RIGHT, WRONG], [WRONG, WRONG]], k=[1, 2, 5]
    )
    assert rates == {"pass@1": 0.25, "pass@2": 0.5}


def test_code_without_permission_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"set evaluation\.allow_code_execution"):
        CodeEval(False).compute(references=[TESTS], predictions=[[RIGHT]], k=[1])


def test_a_helper_of_the_prompt_is_not_what_the_answer_makes_of_it() -> None:
    prompt = "def error(x):\n    return abs(x - 3)\n\ndef third(x):\n"
    tests = "def check(candidate):\n    assert error(candidate(9)) < 0.1\ncheck(third)"
    metric = CodeEval(True)
    metric.doc = {"prompt": prompt}
    cheat = prompt + "    return 0\ndef error(x):\n    return 0\n"
    rates, _ = metric.compute(
        references=[tests] * 2, predictions=[[prompt + "    return x / 3\n"], [cheat]], k=[1]
    )
    assert rates == {"pass@1": 0.5}


def figures(
    task: str, fields: dict[str, Any], answers: dict[str, str], folder: Path, permission: Any = True
) -> dict[str, float]:
    """What the harness makes of a model that gives the answer whose key is in its prompt."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class Answers(LM):
        def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
            return [next(a for key, a in answers.items() if key in request.args[0]) for request in requests]

        def loglikelihood(self, requests: list[Any], **_: Any) -> Any:
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    manager = TaskManager(include_path=str(folder))
    path = folder / "given.yaml"
    include = {"include": str(manager.task_index[task].yaml_path)} if task in manager.all_tasks else {}
    path.write_text(yaml.safe_dump({**include, **fields, "task": "given"}))
    with graded_in_jail(permission):
        found = lm_eval.simple_evaluate(
            model=Answers(), tasks=[str(path)], num_fewshot=0, task_manager=manager, confirm_run_unsafe_code=bool(permission),
            log_samples=False, bootstrap_iters=0,
        )  # fmt: skip
    return {key: value for key, value in found["results"]["given"].items() if isinstance(value, float)}


def rows(path: Path, items: list[dict[str, Any]]) -> dict[str, Any]:
    """Fields of a task that takes its items from a file."""
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(path)}},
    }


ITEM = {
    "task_id": "T/0",
    "prompt": PROMPT,
    "test": TESTS,
    "entry_point": "root",
    "canonical_solution": "    return sqrt(x)\n",
}


def test_humaneval_is_graded_in_the_jail(tmp_path: Path) -> None:
    fields = rows(tmp_path / "items.jsonl", [ITEM])
    for answer, rate in (
        ("    return sqrt(x)\n", 1.0),
        ("    return 1\n", 0.0),
        ("    import os\n    os._exit(0)\n", 0.0),
    ):
        assert figures("humaneval", fields, {"root": answer}, tmp_path)["pass@1,create_test"] == rate
    with pytest.raises(ConfigError, match=r"set evaluation\.allow_code_execution"):
        figures("humaneval", fields, {"root": "    return 1\n"}, tmp_path, permission=False)


def test_mbpp_is_graded_in_the_jail(tmp_path: Path) -> None:
    item = {"text": "Square.", "code": "", "test_list": [f"assert square({n}) == {n * n}" for n in (1, 3, 4)]}
    fields = rows(tmp_path / "items.jsonl", [{**item, "task_id": n} for n in range(2)])
    for answer, rate in (
        ("def square(x):\n    return x * x\n", 1.0),
        ("def square(x):\n    return x\n", 0.0),
    ):
        assert figures("mbpp", fields, {"square": answer}, tmp_path)["pass_at_1,none"] == rate


def test_a_task_that_runs_code_by_itself_is_refused(tmp_path: Path) -> None:
    fields = rows(tmp_path / "items.jsonl", [ITEM])
    fields |= {
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "x",
    }
    with pytest.raises(ConfigError, match="runs generated code by itself, outside the sandbox"):
        figures("none of the harness' own", {**fields, "unsafe_code": True}, {"root": "1"}, tmp_path)
    assert "exact_match,none" in figures("none of the harness' own", fields, {"root": "1"}, tmp_path)


def test_the_canonical_solutions_of_humaneval_pass_in_the_harness(tmp_path: Path) -> None:
    items = problems()
    fields = rows(tmp_path / "items.jsonl", items)
    answers = {item["prompt"]: item["canonical_solution"] for item in items}
    assert figures("humaneval", fields, answers, tmp_path)["pass@1,create_test"] == 1.0
