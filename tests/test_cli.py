"""The command line: help, overrides, exit codes, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from semalign.cli import main
from semalign.config_file import load_config
from semalign.errors import ConfigError


@pytest.fixture
def config_file(tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path) -> Path:
    values = {
        "teacher": {"model_name_or_path": str(tiny_pair[0])},
        "student": {"model_name_or_path": str(tiny_pair[1])},
        "data": {"dataset_name": str(rows_file), "heldout_rows": 4, "max_length": 64},
        "output_dir": str(tmp_path / "run"),
        "train": {"num_train_epochs": 1, "per_device_train_batch_size": 8},
        "cache": {"shard_rows": 8},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


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
    assert main(["attribute", str(config_file), "--quiet", "--attribution.rows=3"]) == 3
    assert "attribution.rows: 64 -> 3" in capsys.readouterr().err


def test_check_shows_masks_heads_pairs_and_costs(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(config_file), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["heads"]["teacher"]["rank"] == 48 and found["heads"]["student"]["rank"] == 32
    assert found["estimate"]["cache_bytes"] > 0 and found["training_rows"] == 16
    assert "the answer is" in err and not (config_file.parent / "run").exists()


def test_the_cache_estimate_is_close_to_what_is_written(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(config_file), "--json", "--quiet"]) == 0
    estimated = json.loads(capsys.readouterr().out)["estimate"]["cache_bytes"]
    assert main(["transfer", str(config_file), "--quiet", "--json"]) == 0
    written = json.loads((config_file.parent / "run" / "targets" / "manifest.json").read_text())["bytes"]
    assert estimated == pytest.approx(written, rel=0.15)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data.dataset_name=nothing.jsonl"], 4, "nothing.jsonl"),
        (["--teacher.model_name_or_path=/nowhere/at/all"], 5, "expected a model folder"),
        (["--pairing.num_layers=9"], 3, "the student has 3 layers, got 9"),
        (["--data.heldout_rows=20"], 4, "expected fewer than the 20 rows"),
        (["--cache.max_bytes=10"], 6, "allowed are 10"),
    ],
)
def test_mistakes_have_one_sentence_and_their_own_exit_code(
    config_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main(["transfer", str(config_file), "--quiet", *arguments]) == code
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_unknown_key_is_refused(config_file: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["transfer", str(config_file), "--train.learning_rte=1"])
    assert stopped.value.code == 2


def test_help_fits_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert len(capsys.readouterr().out.splitlines()) <= 40


def test_bad_values_in_a_file_are_config_errors(config_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"cache\.top_k"):
        load_config(config_file, cache={"top_k": 0})
    with pytest.raises(ConfigError):
        load_config(config_file, seed="many")


def test_a_folder_in_use_names_the_owner(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import os

    run = config_file.parent / "run"
    run.mkdir()
    (run / ".lock").write_text(str(os.getppid()))
    assert main(["transfer", str(config_file), "--quiet"]) == 6
    assert f"in use by process {os.getppid()}" in " ".join(capsys.readouterr().err.split())
