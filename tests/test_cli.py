"""The command line: help, overrides, exit codes, JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from semalign.cli import main
from semalign.errors import SemAlignError, require


def test_transfer_prints_one_json_object_and_leaves_every_file(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "transfer",
                str(config_file),
                "--json",
                "--quiet",
                "--evaluation.baselines=[cosine,cross_entropy]",
            ]
        )
        == 0
    )
    printed = json.loads(capsys.readouterr().out)
    assert set(printed["baselines"]) == {"cosine", "cross_entropy"}
    run = config_file.parent / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    for key in ("accuracy_gap_closed", "kl_gap_closed", "wall_seconds", "peak_rss_bytes", "baselines"):
        assert printed[key] == metrics[key]
    assert metrics["kl_gap_closed"] == pytest.approx(
        1 - metrics["closeness"]["after"]["kl"] / metrics["closeness"]["before"]["kl"]
    )
    assert metrics["closeness"]["tokens"] >= metrics["closeness"]["rows"] > 0
    names = {p.name for p in run.iterdir()}
    expected = {
        "config.yaml",
        "environment.json",
        "scores.json",
        "pairs.json",
        "targets",
        "student",
        "train.jsonl",
        "metrics.json",
    }
    assert expected | {"report.html"} <= names
    assert not [p for p in run.rglob("*") if p.suffix in (".pt", ".bin", ".pkl", ".pth")]


def test_steps_one_by_one_and_an_edited_plan_that_later_steps_obey(config_file: Path) -> None:
    for step in ("attribute", "pair"):
        assert main([step, str(config_file), "--quiet"]) == 0
    run = config_file.parent / "run"
    plan = json.loads((run / "pairs.json").read_text())
    assert plan["trained_layers"] == [3]
    plan["pairs"], plan["trained_layers"] = [{"teacher": 2, "student": 2, "fraction": 0.5}], [2]
    (run / "pairs.json").write_text(json.dumps(plan))
    for step in ("pair", "cache", "train", "evaluate", "report"):
        target = str(run) if step == "report" else str(config_file)
        assert main([step, target, "--quiet"]) == 0
    assert [m["layer"] for m in json.loads((run / "metrics.json").read_text())["movement"]] == [2]


def test_a_finished_run_is_not_run_again(config_file: Path) -> None:
    assert main(["transfer", str(config_file), "--quiet"]) == 0
    run = config_file.parent / "run"
    times = {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")}
    assert main(["transfer", str(config_file), "--quiet"]) == 0
    assert times == {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")}


def test_another_config_in_the_same_folder_stops_with_a_diff(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["attribute", str(config_file), "--quiet"]) == 0
    assert main(["attribute", str(config_file), "--quiet", "--data.max_rows=9"]) == 3
    assert "data.max_rows: None -> 9" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "compare"])
def test_what_one_process_does_is_refused_to_several(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([command, str(config_file), "--quiet"]) == 3
    assert f"{command}: expected one process, got a launch of several" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data.dataset_name=nothing.jsonl"], 4, "nothing.jsonl"),
        (["--evaluation.tasks=nothing.jsonl"], 4, "nothing.jsonl"),
        (["--evaluation.engine=server"], 3, "found no 'vllm'; install it"),
        (["--evaluation.baselines=[nosuch]"], 3, "nosuch"),
        (["--evaluation.harness_path=/nowhere"], 3, "expected a folder of task files"),
        (["--teacher.model_name_or_path=/nowhere/at/all"], 5, "expected a model folder"),
        (["--pairing.num_layers=9"], 3, "the student has 3 layers, got 9"),
        (["--data.heldout_rows=20"], 4, "expected fewer than the 20 rows"),
        (["--cache.max_bytes=10"], 6, "10 are allowed"),
    ],
)
def test_mistakes_have_one_sentence_and_their_own_exit_code(
    config_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main(["transfer", str(config_file), "--quiet", *arguments]) == code
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_file_that_does_not_parse_is_a_config_error_with_the_nearest_valid_key(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = config_file.with_name("wrong.yaml")
    wrong.write_text(config_file.read_text() + "\nrecipe: {learning_rte: 1}\n")
    assert main(["transfer", str(wrong)]) == 3
    assert "did you mean recipe.learning_rate?" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["transfer", "FILE", "--train.lora_rr=1"], "did you mean train.lora_r?"),
        (
            ["transfer", "FILE", "--learning_rate=1"],
            "did you mean train.learning_rate or recipe.learning_rate?",
        ),
        (["trasnfer", "FILE"], "did you mean transfer?"),
        (["data", "chek"], "did you mean check?"),
        (["data", "check", "rows.jsonl", "--modl=x"], "did you mean model?"),
        (["transfer", "FILE", "--zzzz=1"], "no field is named like it"),
        (["transfer", "FILE", "--quiet", "--verbose"], "got both"),
        (["transfer", "--seed=1"], "teacher.model_name_or_path"),
    ],
)
def test_what_does_not_parse_has_one_sentence_with_the_nearest_valid_key(
    config_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], hint: str
) -> None:
    given = [{"FILE": str(config_file)}.get(a, a) for a in arguments]
    assert main(given) == 2
    printed = capsys.readouterr()
    assert hint in printed.err and len(printed.err.splitlines()) == 1 and not printed.out
    assert main([*given, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert hint in found["error"] and found["exit_code"] == 2


def test_verbose_lets_the_libraries_speak(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as hf_logging

    levels = []
    monkeypatch.setattr("semalign.cli._run", lambda *_: levels.append(hf_logging.get_verbosity()) or {})
    before = hf_logging.get_verbosity()
    try:
        for option in ("--verbose", "--quiet"):
            assert main(["check", str(config_file), option]) == 0
    finally:
        hf_logging.set_verbosity(before)
    assert levels == [hf_logging.INFO, hf_logging.ERROR]


def test_an_interrupt_says_how_to_go_on(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise error

    error = KeyboardInterrupt("stopped after step 3; run the same command again to go on")
    monkeypatch.setattr("semalign.cli._run", interrupted)
    folder = config_file.parent / "two words"
    assert main(["transfer", str(config_file), f"--output_dir={folder}"]) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert "stopped after step 3; run the same command again to go on: " in said
    assert f"semalign transfer {config_file} '--output_dir={folder}'" in said
    error = KeyboardInterrupt()
    assert main(["check", str(config_file)]) == 130
    assert capsys.readouterr().err.strip() == "semalign: interrupted"


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_scripts_are_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "learning_rate" in script and "transfer" in script


def test_bash_completes_commands_and_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "semalign.bash"
    script.write_text(capsys.readouterr().out)
    ask = (
        "source {script}; COMP_WORDS=(semalign {words}); COMP_CWORD={at}; "
        "$(complete -p semalign | sed 's/.*-F \\([^ ]*\\) .*/\\1/'); printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    for words, at, expected in (("tra", 1, "transfer"), ("transfer --recipe.learning_r", 2, "learning_rate")):
        command = ask.format(script=script, words=words, at=at)
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert expected in done.stdout, done


def test_a_missing_extra_has_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert "pip install 'semalign[completion]'" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SemAlignError, match=r"no_such_package .* pip install 'semalign\[some\]'"):
        require("no_such_package", "some")
