"""Answers are stored with their verdicts, and graded again without a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import config_of

from semalign.cli import main
from semalign.config import EvaluationConfig, TransferConfig, plain
from semalign.errors import CacheError, ConfigError, DataError
from semalign.evaluation import decoding, tasks
from semalign.run.files import find_json, write_yaml
from semalign.run.verify import verify
from semalign.steps.evaluate import regrade
from semalign.steps.pipeline import transfer


def item(number: int, answer: float) -> dict[str, object]:
    messages = [{"role": "user", "content": f"{number} and {number}"}]
    return {
        "id": f"i{number}",
        "task": "sums",
        "messages": messages,
        "check": {"kind": "number", "answer": answer},
    }


@pytest.fixture
def config(tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path) -> TransferConfig:
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps(item(n, 10_000 + n)) + "\n" for n in range(4)))
    config = config_of(tiny_pair, rows_file, tmp_path / "run")
    evaluation = EvaluationConfig(tasks=str(items), max_new_tokens=3, baselines=("cross_entropy",))
    return replace(config, evaluation=evaluation)


def test_every_answer_is_stored_and_graded_again(
    config: TransferConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = transfer(config)
    lines = [json.loads(line) for line in run.answers.read_text().splitlines()]
    assert [line["model"] for line in lines[::4]] == ["before", "after", "cross_entropy", "teacher"]
    assert [line["id"] for line in lines[:4]] == ["i0", "i1", "i2", "i3"]
    assert {"prompt", "gold", "text", "ended", "correct", "extracted", "reason"} <= set(lines[0])
    metrics = find_json(run.metrics)
    assert metrics["accuracy"]["after"] == 0 and "answers.jsonl" in metrics["files"]
    ended = [line["ended"] for line in lines if line["model"] == "after"]
    assert metrics["tasks"]["sums"]["after"]["ended"] == sum(ended) / 4
    assert regrade(config, run) == []
    assert {**find_json(run.metrics), "files": 0} == {**metrics, "files": 0}
    # A checker that finds what this one does not: the right number of one item of four.
    monkeypatch.setattr(tasks, "extract_number", lambda text: 10_002.0)
    write_yaml(tmp_path / "config.yaml", plain(config))
    assert main(["evaluate", str(tmp_path / "config.yaml"), "--regrade", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    models = ("before", "after", "cross_entropy", "teacher")
    assert said["changes"] == [f"{name}: 1 more and 0 fewer answers are right" for name in models]
    again = find_json(run.metrics)
    assert again["accuracy"] == dict.fromkeys(models, 0.25)
    assert run.report.exists(), "the page shows the new verdicts"
    assert again["closeness"] == metrics["closeness"] and again["steps"] == metrics["steps"]
    # What was graded again is done: nothing is answered anew.
    before = run.answers.read_bytes()
    transfer(config, ("evaluate", "report"))
    assert run.answers.read_bytes() == before and verify(run.root).is_sound


def test_a_stopped_evaluation_goes_on_with_the_next_batch_of_answers(
    config: TransferConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, evaluation=replace(config.evaluation, batch_size=2))
    straight = transfer(config)
    again = replace(config, output_dir=str(tmp_path / "again"))
    transfer(again, ("attribute", "pair", "cache", "train"))
    asked: list[int] = []
    original = decoding._generate_batch

    def generate_batch(model: object, tokenizer: object, rows: list[list[int]], count: int = 1) -> object:
        asked.append(len(rows))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return original(model, tokenizer, rows, count)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "_generate_batch", generate_batch)
    with pytest.raises(KeyboardInterrupt):
        transfer(again, ("evaluate",))
    assert verify(tmp_path / "again").is_sound
    run = transfer(again, ("evaluate",))
    # Four models of two batches each; the fourth of them was asked for twice.
    assert asked == [2] * 9
    assert run.answers.read_bytes() == straight.answers.read_bytes()
    assert not list(run.root.glob("*.part"))


def test_items_with_other_answers_are_graded_by_them_and_other_items_refused(
    config: TransferConfig, tmp_path: Path
) -> None:
    run = transfer(config)
    items = tmp_path / "items.jsonl"
    lines = [json.loads(line) for line in run.answers.read_text().splitlines()]
    given = [tasks.extract_number(line["text"]) for line in lines if line["model"] == "after"]
    wanted = [number if number is not None else 10_000 for number in given]
    items.write_text("".join(json.dumps(item(n, number)) + "\n" for n, number in enumerate(wanted)))
    regrade(config, run)
    share = sum(number is not None for number in given) / 4
    assert find_json(run.metrics)["accuracy"]["after"] == share
    items.write_text("".join(json.dumps(item(n + 1, 1)) + "\n" for n in range(4)))
    with pytest.raises(DataError, match="the items that the 4 stored answers were given to"):
        regrade(config, run)


def test_without_items_there_is_nothing_to_grade_again(config: TransferConfig) -> None:
    without = replace(config, evaluation=EvaluationConfig())
    with pytest.raises(ConfigError, match=r"evaluation\.tasks: expected the items"):
        regrade(without, transfer(without))


def test_damaged_answers_are_not_graded(config: TransferConfig) -> None:
    run = transfer(config)
    run.answers.write_bytes(run.answers.read_bytes()[:-5])
    with pytest.raises(CacheError, match=r"answers\.jsonl"):
        regrade(config, run)
