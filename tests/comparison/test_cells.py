"""One piece of a comparison at a time: what a cell trains, answers, costs and leaves behind."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_config, tiny_tokenizer

from semalign import embedded
from semalign.cli import main
from semalign.comparison import cells
from semalign.comparison import run as comparison_run
from semalign.comparison.cells import (
    CellJob,
    items_of,
    key_of,
    preparation_seconds,
    run_cell,
    steps_within,
    verdicts,
)
from semalign.comparison.plan import Cell, Source, read_comparison
from semalign.config import DataConfig, EvaluationConfig, ModelConfig, PairingConfig
from semalign.data.inputs import load_inputs
from semalign.errors import CacheError, ConfigError, DataError
from semalign.evaluation import answers as answering
from semalign.evaluation import tasks
from semalign.evaluation.extraction import extract_letter
from semalign.methods import method
from semalign.models.loading import load
from semalign.run.files import read_json, write_json
from semalign.run.folder import save_result
from semalign.run.verify import verify
from semalign.signals.prepared import Prepared

from .small import TASKS, results, write

ANSWER = {"id": "a", "correct": True, "extracted": True, "ended": False, "prompt": "1 + 1?", "text": "2"}
ITEM = {"measured": "sums", "item": "a", "correct": 1, "extracted": 1, "ended": 0}


def test_every_cell_answers_all_tasks_and_leaves_no_weights(straight: Path) -> None:
    out = straight.parent / "out"
    lines = results(out)
    for task in TASKS:
        for seed in range(2):
            for name, budget in (("aligned", "rows"), ("cross_entropy", "rows"), ("cross_entropy", "time")):
                cell = {"method": name, "trained": task, "seed": seed, "budget": budget}
                mine = [x for x in lines if all(x.get(k) == v for k, v in cell.items())]
                counts = {m: sum(x["kind"] == "item" and x["measured"] == m for x in mine) for m in TASKS}
                assert counts == {m: 6 if m == task else 3 for m in TASKS}
                costs = next(x for x in mine if x["kind"] == "cell")
                assert costs["wall_seconds"] == pytest.approx(
                    costs["preparation_seconds"] + costs["seconds"], abs=0.01
                )
                assert costs["rows"] == 12 or (name == "aligned" and 12 < costs["rows"] <= 24)
    assert not list(out.rglob("cells/**/*.safetensors"))
    assert (out / "page.html").exists() and (out / "environment.json").exists()
    orders = [
        [
            json.loads(x)["loss"]
            for x in (out / f"cells/knowledge/aligned/rows-{s}/train.jsonl").read_text().splitlines()
        ]
        for s in range(2)
    ]
    assert orders[0] != orders[1], "seeds differ in their order of rows"


def test_the_budget_at_equal_time_is_the_defaults_time_and_the_steps_are_what_fits(straight: Path) -> None:
    lines = [x for x in results(straight.parent / "out") if x["kind"] == "cell" and "trained" in x]
    for task in TASKS:
        mine = [x for x in lines if x["trained"] == task]
        default = sorted(x["wall_seconds"] for x in mine if x["method"] == "aligned")
        rows = [x for x in mine if x["method"] == "cross_entropy" and x["budget"] == "rows"]
        for x in (x for x in mine if x["budget"] == "time"):
            assert x["budget_seconds"] == pytest.approx(mean(default), abs=1e-6)
            assert x["steps"] == steps_within(x["budget_seconds"], x["preparation_seconds"], rows, "")


def test_a_recipe_pays_for_what_it_reads(straight: Path) -> None:
    source = read_comparison(straight).sources["knowledge", "aligned", 0]
    read = {
        name: json.loads(path.read_text())
        for name, path in (
            ("rows", source.run.generated),
            ("scores", source.run.scores),
            ("pairs", source.run.pairs),
            ("cache", source.run.manifest),
        )
    }
    generated = read["rows"]["seconds"] - read["rows"]["heldout_seconds"]
    everything = sum(part["seconds"] - part.get("heldout_seconds", 0.0) for part in read.values())
    assert 0 < read["cache"]["heldout_seconds"] < read["cache"]["seconds"]
    assert generated > 0 and 0 < read["cache"]["student_seconds"] < read["cache"]["seconds"]
    for name in ("aligned", "kl", "hidden_mse", "fisher"):
        assert preparation_seconds(source, method(name)) == pytest.approx(everything)
    prefix = generated + read["cache"]["student_seconds"]
    assert preparation_seconds(source, method("cross_entropy")) == pytest.approx(prefix)
    assert preparation_seconds(source, method("cross_entropy_all")) == pytest.approx(generated)


def test_only_the_source_that_students_are_measured_with_caches_held_out_rows(straight: Path) -> None:
    sources = read_comparison(straight).sources
    for label, is_measured_with in (("aligned", True), ("cross_entropy", False)):
        source = sources["knowledge", label, 0]
        assert source.is_measured_with == is_measured_with
        assert source.run.manifest.exists()
        assert bool(list((source.run.targets / "heldout").glob("*.safetensors"))) == is_measured_with


def test_no_step_fits_where_preparation_takes_the_whole_budget() -> None:
    same = [{"seconds": 3.0, "train_seconds": 2.0, "steps": 10}]
    assert steps_within(6.05, 1.0, same, "x") == 20
    with pytest.raises(ConfigError, match=r"x needs 5\.0 s before its first step"):
        steps_within(5.1, 4.0, same, "x")


def test_a_task_without_items_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "named", tasks={"maths": {"data.dataset_name": "embedded:transfer/arithmetic"}})
    assert main(["compare", str(path), "--quiet"]) == 4
    assert "has no items of task 'maths'" in " ".join(capsys.readouterr().err.split())
    assert not list((path.parent / "out").rglob("targets"))


def test_closeness_of_a_row_is_that_of_both_models_whole_logits(straight: Path) -> None:
    comparison = read_comparison(straight)
    source = comparison.reference("knowledge")
    inputs = load_inputs(source.config, source.run)
    student, teacher = (load(m).model for m in (source.config.student, source.config.teacher))
    lines = {
        x["row"]: x
        for x in results(straight.parent / "out")
        if x["kind"] == "row" and x["method"] == "untouched" and x["measured"] == "knowledge"
    }
    assert sorted(lines) == list(range(len(inputs.heldout))) == [0, 1, 2, 3]
    for number, sample in enumerate(inputs.heldout):
        ids = torch.tensor([sample.input_ids])
        with torch.no_grad():
            ours, theirs = (
                m(input_ids=ids).logits[0, :-1].double().log_softmax(-1) for m in (student, teacher)
            )
        supervised = torch.tensor(sample.mask[1:])
        labels = ids[0, 1:][supervised]
        ours, theirs = ours[supervised], theirs[supervised]
        line = lines[number]
        assert line["tokens"] == len(labels) == sample.supervised
        nll = -ours.gather(1, labels[:, None]).mean()
        assert line["nll"] == pytest.approx(float(nll), abs=1e-4)
        # The teacher's states are cached in bfloat16.
        kl = (theirs.exp() * (theirs - ours)).sum(-1).mean()
        assert line["kl"] == pytest.approx(float(kl), rel=0.03, abs=1e-3)
        same = (ours.argmax(-1) == theirs.argmax(-1)).double().mean()
        assert line["top1"] == pytest.approx(float(same), abs=1 / len(labels) + 1e-6)


def test_a_trained_cell_is_named_by_four_things_and_a_model_by_one() -> None:
    assert key_of(Cell("teacher")) == {"method": "teacher"}
    trained = {"method": "kl", "trained": "sums", "seed": 2, "budget": "time"}
    assert key_of(Cell("kl", "sums", 2, "time")) == trained


def source_of(pair: tuple[Path, Path], rows: Path, out: Path, **changes: Any) -> Source:
    """A source that is prepared as far as its result files say."""
    source = Source("sums", tiny_config(pair, rows, out, **changes))
    seconds = {
        source.run.generated: {"seconds": 1000.0, "heldout_seconds": 300.0},
        source.run.scores: {"seconds": 1.0},
        source.run.pairs: {"seconds": 2.0},
        source.run.manifest: {"seconds": 100.0, "heldout_seconds": 30.0, "student_seconds": 16.0},
    }
    for path, values in seconds.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, values | {"peak_rss_bytes": 1})
    return source


@pytest.mark.parametrize(
    ("name", "changes", "seconds"),
    [
        ("aligned", {}, 1 + 2 + 100 - 30),
        ("cross_entropy_all", {}, 0.0),
        ("cross_entropy_all", {"pairing": PairingConfig(selection="attribution")}, 1 + 2),
        ("cross_entropy_all", {"data": "teacher"}, 1000 - 300),
        ("kl", {"data": "teacher"}, 1000 - 300 + 1 + 2 + 100 - 30),
    ],
)
def test_preparation_is_paid_by_what_a_recipe_reads(
    tiny_pair: tuple[Path, Path],
    rows_file: Path,
    tmp_path: Path,
    name: str,
    changes: dict[str, Any],
    seconds: float,
) -> None:
    if changes.get("data") == "teacher":
        changes = {"data": DataConfig(str(rows_file), completions="teacher")}
    source = source_of(tiny_pair, rows_file, tmp_path, **changes)
    assert preparation_seconds(source, method(name)) == pytest.approx(seconds)


def test_steps_are_those_of_the_middle_seed() -> None:
    # 2 s of loading and half a second a step, but for two seeds of a busy machine.
    middle = {"seconds": 7.0, "train_seconds": 5.0, "steps": 10}
    slow = {"seconds": 90.0, "train_seconds": 50.0, "steps": 10}
    fast = {"seconds": 1.2, "train_seconds": 1.0, "steps": 10}
    for same in ([middle], [slow, middle, fast]):
        assert steps_within(11.0, 3.0, same, "x") == 12
    with pytest.raises(
        ConfigError, match=r"equal_time: x needs 5\.0 s .*the default takes 5\.4 s in all; take it off"
    ):
        steps_within(5.4, 3.0, [middle], "x")


def job_of(source: Source, folder: Path, cell: Cell, **changes: Any) -> CellJob:
    return replace(
        CellJob(cell, folder, source.config, {}, {"seed": 1}, source=source, recipe=method("kl")), **changes
    )


def test_without_a_finished_cell_the_time_of_a_budget_is_not_known(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    source = source_of(tiny_pair, rows_file, tmp_path)
    job = job_of(source, tmp_path / "cell", Cell("kl", "sums", 0, "time"), defaults=[tmp_path / "nothing"])
    with pytest.raises(ConfigError, match=r"no cell at equal rows is done.*see why it failed"):
        run_cell(job)
    assert not (tmp_path / "cell" / "cell.json").exists()


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Training, loading and measuring that only say what was asked of them."""
    calls: list[str] = []

    def train_student(prepared: Any, recipe: Any, folder: Path) -> None:
        calls.append(
            f"train {recipe.name} seed {prepared.config.seed} steps {prepared.config.train.max_steps}"
        )
        for part in ("student", "adapter"):
            (folder / part).mkdir(parents=True)
            (folder / part / "model.safetensors").write_text("weights")
        costs = {"steps": 4, "train_seconds": 3.0, "peak_rss_bytes": 5, "trained_parameters": 6, "loss": 0.5}
        parts = [folder / "student", folder / "adapter"]
        save_result(folder / "train.json", {}, costs | {"seconds": 7.0}, parts)

    def loaded(model: ModelConfig, *, needs_layers: bool) -> Any:
        calls.append(f"load {Path(model.model_name_or_path).name}")

    def measured(decoder: Any, job: CellJob) -> tuple[Any, list[Any]]:
        return {"sums": [ANSWER]}, [{"row": 0}]

    def prepared(source: Source) -> Any:
        class Found:
            train = (1, 2, 3)

        return Prepared(source.config, source.run, Found(), None, {}, None)  # type: ignore[arg-type]

    monkeypatch.setattr(cells, "train_student", train_student)
    monkeypatch.setattr(cells, "load", loaded)
    monkeypatch.setattr(cells, "measure", measured)
    monkeypatch.setattr(cells, "prepared_of", prepared)
    monkeypatch.setattr(cells, "inputs_of", lambda source: prepared(source).inputs)
    return calls


def test_a_cell_leaves_one_file_and_no_weights_and_is_not_run_twice(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, fakes: list[str]
) -> None:
    folder = tmp_path / "cell"
    source = source_of(tiny_pair, rows_file, tmp_path / "source")
    job = job_of(source, folder, Cell("kl", "sums", 2))
    job = replace(job, config=replace(job.config, seed=5))
    folder.mkdir()
    (folder / "train.jsonl").write_text("the rest of an interrupted training")
    run_cell(job)
    assert fakes == ["train kl seed 5 steps -1", "load student"]
    assert sorted(p.name for p in folder.iterdir()) == [
        ".lock",
        "answers.jsonl",
        "cell.json",
        "train.json",
    ]
    found = read_json(folder / "cell.json", "compare")
    assert found["fingerprint"] == {"seed": 1} and found["items"] == [ITEM]
    expected = {"method": "kl", "trained": "sums", "seed": 2, "budget": "rows", "rows": 3, "steps": 4}
    costs = {"preparation_seconds": 73.0, "seconds": 7.0, "wall_seconds": 80.0, "budget_seconds": None}
    assert (expected | costs).items() <= found["cell"].items()
    run_cell(job)
    assert len(fakes) == 2
    # From other inputs it is another cell.
    run_cell(replace(job, fingerprint={"seed": 2}))
    assert len(fakes) == 4


def test_models_that_are_measured_as_they_are_are_not_trained(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, fakes: list[str]
) -> None:
    source = source_of(tiny_pair, rows_file, tmp_path / "source")
    for name, folder in (("teacher", tiny_pair[0]), ("untouched", tiny_pair[1])):
        run_cell(CellJob(Cell(name), tmp_path / name, source.config, {}, {}))
        assert fakes[-1] == f"load {folder.name}"
        assert read_json(tmp_path / name / "cell.json", "compare")["cell"] == {"method": name}
    assert len(fakes) == 2


def test_at_equal_time_the_steps_are_those_that_fit_the_defaults_median(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, fakes: list[str]
) -> None:
    source = source_of(tiny_pair, rows_file, tmp_path / "source")
    walls = {"d0": 100.0, "d1": 400.0, "d2": 103.0}
    for name, wall in walls.items():
        write_json(tmp_path / name / "cell.json", {"cell": {"method": "aligned", "wall_seconds": wall}})
    same = {"method": "kl", "seconds": 7.0, "train_seconds": 5.0, "steps": 10}
    write_json(tmp_path / "same" / "cell.json", {"cell": same})
    job = job_of(
        source,
        tmp_path / "cell",
        Cell("kl", "sums", 0, "time"),
        same=[tmp_path / "same", tmp_path / "failed"],
        defaults=[tmp_path / name for name in walls],
    )
    run_cell(job)
    # 103 s less 73 of preparation and 2 of loading, at half a second a step.
    assert fakes[0] == "train kl seed 0 steps 56"
    assert read_json(tmp_path / "cell" / "cell.json", "compare")["cell"]["budget_seconds"] == 103.0


def items_file(path: Path) -> str:
    """Items of two tasks, of which only some have an id."""
    check = {"kind": "number", "answer": 2}
    messages = [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]
    rows = [{"task": t, "messages": messages, "check": check} for t in ("sums", "names") for _ in range(4)]
    rows[1]["id"] = "second"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("most", "limit", "names"),
    [
        (None, None, [0, "second", 2, 3]),
        (3, None, [0, "second", 2]),
        (3, 2, [0, "second"]),
        (1, 2, [0]),
        (None, 2, [0, "second"]),
    ],
)
def test_a_student_answers_as_many_items_as_the_lower_limit_says(
    tiny_pair: tuple[Path, Path],
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    most: int | None,
    limit: int | None,
    names: list[Any],
) -> None:
    def answers(*_: Any, **options: Any) -> list[tuple[str, bool]]:
        return [("2" if n % 2 == 0 else "6", True) for n in range(4)][: len(names)]

    def closeness(*_: Any) -> list[Any]:
        return []

    monkeypatch.setattr(answering, "answers", answers)
    monkeypatch.setattr(cells, "closeness", closeness)
    options = EvaluationConfig(tasks=items_file(tmp_path / "items.jsonl"), max_items=most)
    config = tiny_config(tiny_pair, rows_file, tmp_path, evaluation=options)
    source = Source("sums", config)
    job = CellJob(Cell("aligned", "names", 0), tmp_path, config, {"sums": source}, {}, retention_items=limit)
    decoder: Any = SimpleNamespace(model=None, tokenizer=tiny_tokenizer())
    found = verdicts(job, cells.measure(decoder, job)[0])
    assert [x["item"] for x in found] == names and {x["measured"] for x in found} == {"sums"}
    assert [x["correct"] for x in found] == [1, 0, 1, 0][: len(names)] and all(
        x["extracted"] == 1 for x in found
    )
    without = replace(source, config=replace(config, evaluation=EvaluationConfig()))
    assert cells.measure(decoder, replace(job, references={"sums": without}))[0] == {}


def test_answers_of_cells_are_graded_again_without_training(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "compare"
    shutil.copytree(straight.parent, root)
    path = root / straight.name
    path.write_text(path.read_text().replace(str(straight.parent), str(root)))
    out, cell = root / "out", root / "out/cells/knowledge/cross_entropy/rows-0"
    before, trained = results(out), (cell / "train.json").read_bytes()
    answers = [json.loads(line) for line in (cell / "answers.jsonl").read_text().splitlines()]
    assert [a["correct"] for a in answers] == [
        bool(x["correct"]) for x in read_json(cell / "cell.json", "compare")["items"]
    ]
    assert main(["compare", str(path), "--regrade", "--quiet", "--json"]) == 0
    assert results(out) == before
    # A checker that finds every letter right.
    monkeypatch.setattr(tasks, "_check_text", lambda *_: tasks.Verdict(True, True, "right"))
    capsys.readouterr()
    assert main(["compare", str(path), "--regrade", "--quiet", "--json"]) == 0
    assert all(x["correct"] for x in results(out) if x["kind"] == "item" and x["measured"] == "knowledge")
    assert (cell / "train.json").read_bytes() == trained and verify(out).is_sound
    (cell / "answers.jsonl").unlink()
    assert main(["compare", str(path), "--regrade", "--quiet"]) == CacheError.exit_code
    assert "answers.jsonl" in capsys.readouterr().err


def test_items_of_a_task_are_its_own_and_a_task_without_any_is_named(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    options = EvaluationConfig(tasks=items_file(tmp_path / "items.jsonl"))
    config = tiny_config(tiny_pair, rows_file, tmp_path, evaluation=options)
    assert [row["task"] for row in items_of(config, "names")] == ["names"] * 4
    with pytest.raises(DataError, match=r"tasks\.maths: .*items\.jsonl has no items of task 'maths'"):
        items_of(config, "maths")


def test_two_items_of_a_task_with_one_id_are_refused(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    path = Path(items_file(tmp_path / "items.jsonl"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for rows[3]["id"] in ("second", 0):  # 0 is the number of the first, which has no id
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = tiny_config(tiny_pair, rows_file, tmp_path, evaluation=EvaluationConfig(tasks=str(path)))
        with pytest.raises(DataError, match=rf"task 'sums' with an id each .*{rows[3]['id']!r} 2 times"):
            items_of(config, "sums")
        assert len(items_of(config, "names")) == 4


def test_an_item_whose_right_answer_was_mended_is_graded_again_and_nothing_is_trained(
    straight: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = tmp_path / "compare"
    shutil.copytree(straight.parent, root)
    path = root / straight.name
    items = root / "items.jsonl"
    rows = embedded.rows("test")
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = path.read_text().replace(str(straight.parent), str(root))
    path.write_text(text.replace("embedded:test\n", f"{items}\n"))
    out, cell = root / "out", root / "out/cells/knowledge/cross_entropy/rows-0"
    trained = (cell / "train.json").read_bytes()
    monkeypatch.setattr(
        comparison_run, "run_jobs", lambda *_: pytest.fail("something is trained or measured")
    )
    assert main(["compare", str(path), "--quiet", "--json"]) == 0
    before = {x["item"]: x["correct"] for x in _verdicts(cell)}
    first = next(row for row in rows if row["task"] == "knowledge")
    first["check"]["answer"] = "ABCD"["ABCD".index(first["check"]["answer"]) - 1]
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = next(json.loads(line) for line in (cell / "answers.jsonl").read_text().splitlines())
    found = extract_letter(answer["text"], 4)
    assert main(["compare", str(path), "--quiet", "--json"]) == 0
    after = {x["item"]: x["correct"] for x in _verdicts(cell)}
    assert after == before | {first["id"]: int(found == first["check"]["answer"])}
    assert (cell / "train.json").read_bytes() == trained and verify(out).is_sound
    # Another prompt was never answered; --regrade says so and trains nothing.
    capsys.readouterr()
    first["messages"][0]["content"] += " Please."
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["compare", str(path), "--regrade", "--quiet", "--json"]) == 0
    assert "nobody has answered these items" in caplog.text and "made again" not in caplog.text
    assert all("nobody" in x["error"] for x in json.loads(capsys.readouterr().out)["failed"])
    assert (cell / "cell.json").exists() and (cell / "train.json").read_bytes() == trained


def _verdicts(cell: Path) -> list[dict[str, Any]]:
    return [x for x in read_json(cell / "cell.json", "compare")["items"] if x["measured"] == "knowledge"]
