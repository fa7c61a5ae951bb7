"""lm-evaluation-harness in process, on the embedded pair; needs the extra `harness`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from semalign.config import EvaluationConfig, by_name
from semalign.errors import ConfigError, SemAlignError
from semalign.evaluation.answers import answer_items
from semalign.evaluation.harness import check_harness, harness_figures
from semalign.models.loading import load

CONFIG = EvaluationConfig(harness=("semalign_arithmetic",), max_items=12, batch_size=12)


def test_without_the_package_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(SemAlignError, match=r"pip install 'semalign\[harness\]'"):
        harness_figures(load("embedded:student"), CONFIG)


def test_tasks_may_have_fields_of_their_own() -> None:
    given = replace(CONFIG, harness={"gsm8k": {"dataset_path": "json"}, "mmlu": {}})
    assert by_name(given.harness) == {"gsm8k": {"dataset_path": "json"}, "mmlu": {}}
    assert by_name(CONFIG.harness) == {"semalign_arithmetic": {}}


def test_an_embedded_task_gives_the_accuracy_of_the_runs_own_measurement() -> None:
    pytest.importorskip("lm_eval")
    from semalign.config import DataConfig, ModelConfig, TransferConfig

    decoder = load("embedded:teacher")
    (line,) = harness_figures(decoder, CONFIG)
    assert (line["task"], line["metric"], line["n"]) == ("semalign_arithmetic", "acc", 12)
    assert line["low"] <= line["value"] <= line["high"]
    config = TransferConfig(
        ModelConfig("embedded:teacher"),
        ModelConfig("embedded:student"),
        DataConfig("embedded:transfer"),
        "unused",
        evaluation=replace(CONFIG, tasks="embedded:test/arithmetic", harness=()),
    )
    own = answer_items(decoder, config)
    assert line["value"] == pytest.approx(sum(item["correct"] for item in own) / 12)


def test_rows_may_come_from_a_file(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    rows = tmp_path / "test.jsonl"
    rows.write_text(
        "".join(json.dumps({"question": f"{n} + 1?", "answer": f"#### {n + 1}"}) + "\n" for n in range(4))
    )
    files = {"dataset_kwargs": {"data_files": {"train": str(rows), "test": str(rows)}}}
    given = {"gsm8k": {"dataset_path": "json", "dataset_name": None, **files}}
    lines = harness_figures(load("embedded:student"), replace(CONFIG, harness=given, max_items=2))
    assert {(line["metric"], line["filter"]) for line in lines} == {
        ("exact_match", "strict-match"),
        ("exact_match", "flexible-extract"),
    }
    assert all(line["n"] == 2 for line in lines)


def test_unknown_tasks_and_code_without_permission_are_refused() -> None:
    pytest.importorskip("lm_eval")
    student = load("embedded:student")
    with pytest.raises(ConfigError, match="did you mean gsm8k"):
        harness_figures(student, replace(CONFIG, harness=("gsm8kk",)))
    with pytest.raises(ConfigError, match="got a group"):
        harness_figures(student, replace(CONFIG, harness={"mmlu": {"dataset_path": "json"}}))
    with pytest.raises(ConfigError, match="allow_code_execution"):
        harness_figures(student, replace(CONFIG, harness=("semalign_code_write",)))


@pytest.mark.parametrize("task", ["semalign_code_write", "humaneval_instruct", "code", "tagged"])
def test_a_task_that_runs_code_is_found_out_before_anything_is_trained(tmp_path: Path, task: str) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "group.yaml").write_text("group: code\ntask: [semalign_arithmetic, semalign_code_write]\n")
    (tmp_path / "tagged.yaml").write_text("task: mine\ntag: tagged\nunsafe_code: true\ndataset_path: json\n")
    options = replace(CONFIG, harness=(task,), harness_path=str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"runs generated code, which is off; set evaluation\.allow_code_execution"
    ):
        check_harness(options)
    check_harness(replace(options, allow_code_execution="unsafe"))
    check_harness(replace(options, harness=("semalign_arithmetic", "mmlu")))


def test_an_error_without_a_text_is_named_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    lm_eval = pytest.importorskip("lm_eval")

    def failing(**_: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(lm_eval, "simple_evaluate", failing)
    with pytest.raises(ConfigError, match=r"a task's rows cannot be had \(ConnectionError\)"):
        harness_figures(load("embedded:student"), CONFIG)
