"""What the evaluate step needs is found out before a model is read, and may change in a run that is trained already."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from semalign.cli import main
from semalign.config.parsing import load_config
from semalign.errors import ConfigError, DataError, SemAlignError
from semalign.evaluation.readiness import check_evaluation

NUMBER = {"kind": "number", "answer": 2}
CODE = {"kind": "python", "entry": "f", "asserts": ["assert f() == 1"]}


def items(folder: Path, check: Any) -> str:
    path = folder / "items.jsonl"
    turns = [{"role": "user", "content": "add one and one"}, {"role": "assistant", "content": "2"}]
    path.write_text(json.dumps({"task": "sum", "messages": turns, "check": check}))
    return str(path)


def checked(config_file: Path, **evaluation: Any) -> None:
    check_evaluation(load_config(config_file, evaluation=evaluation))


def test_a_run_that_lacks_nothing_is_ready(config_file: Path, tmp_path: Path) -> None:
    checked(config_file)
    checked(config_file, tasks=items(tmp_path, NUMBER), baselines=["kl"])
    checked(config_file, tasks=items(tmp_path, CODE), allow_code_execution=True)


def test_what_is_missing_is_one_sentence(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    cases: list[tuple[dict[str, Any], type[SemAlignError], str]] = [
        ({"tasks": items(tmp_path, CODE)}, ConfigError, "allow_code_execution"),
        ({"engine": "server", "server": "nosuch {folder} {port}"}, ConfigError, "found no 'nosuch'"),
        ({"harness": ["gsm8k"]}, SemAlignError, r"semalign\[harness\]"),
        ({"harness_path": str(tmp_path / "none")}, ConfigError, "expected a folder of task files"),
        ({"baselines": ["nosuch"]}, ConfigError, "nosuch"),
        ({"tasks": str(tmp_path / "none.jsonl")}, DataError, r"none\.jsonl"),
    ]
    for evaluation, error, said in cases:
        with pytest.raises(error, match=said):
            checked(config_file, **evaluation)
    with pytest.raises(DataError, match=r"item 1: .*2 apples"):
        checked(config_file, tasks=items(tmp_path, {"kind": "number", "answer": "2 apples"}))


@pytest.mark.parametrize("command", ["check", "transfer"])
def test_it_stops_before_a_model_is_read(
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    for module in ("semalign.estimate.check", "semalign.steps.pipeline"):
        monkeypatch.setattr(f"{module}.load_inputs", lambda *_: pytest.fail("models were read first"))
    tasks = items(tmp_path, {"kind": "number"})
    assert main([command, str(config_file), f"--evaluation.tasks={tasks}"]) == 4
    assert "check.number.answer" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_what_is_measured_may_change_in_a_trained_run(config_file: Path, tmp_path: Path) -> None:
    assert main(["transfer", str(config_file), "--quiet"]) == 0
    run = tmp_path / "run"
    weights = (run / "student" / "model.safetensors").stat().st_mtime_ns
    changed = [
        "--evaluation.tasks",
        items(tmp_path, NUMBER),
        "--evaluation.max_new_tokens=4",
        "--evaluation.batch_size=2",
    ]
    assert main(["evaluate", str(config_file), "--quiet", *changed]) == 0
    assert json.loads((run / "metrics.json").read_text())["tasks"]["sum"]["n"] == 1
    assert (run / "student" / "model.safetensors").stat().st_mtime_ns == weights
    assert yaml.safe_load((run / "config.yaml").read_text())["evaluation"]["batch_size"] == 2
    assert main(["evaluate", str(config_file), "--quiet", *changed, "--evaluation.baselines=[kl]"]) == 3
