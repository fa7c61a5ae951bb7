"""A whole comparison on the embedded pair with a handful of steps: files, resume after a kill, failures, costs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import yaml

from semalign.cli import main
from semalign.comparison import cells, run
from semalign.comparison.cells import preparation_seconds, steps_within
from semalign.comparison.plan import read_comparison
from semalign.comparison.pool import Done, Job
from semalign.errors import ConfigError, SemAlignError
from semalign.methods import method
from semalign.models.loading import load

TASKS = ("knowledge", "arithmetic")
METHODS: dict[str, Any] = {"aligned": {"data.variants": 1}, "cross_entropy": {}}


def write(folder: Path, **changes: Any) -> Path:
    values = {
        "output_dir": str(folder / "out"),
        "seeds": 2,
        "default": "aligned",
        "workers": 2,
        "retention_items": 3,
        "base": {
            "teacher": {"model_name_or_path": "embedded:teacher", "dtype": "float32"},
            "student": {"model_name_or_path": "embedded:student", "dtype": "float32"},
            "data": {
                "dataset_name": "embedded:transfer",
                "max_rows": 12,
                "heldout_rows": 4,
                "max_length": 256,
            },
            "train": {"num_train_epochs": 2, "per_device_train_batch_size": 8},
            "evaluation": {"tasks": "embedded:test", "max_items": 6, "max_new_tokens": 24},
        },
        "tasks": {
            t: {"data.dataset_name": f"embedded:transfer/{t}", "data.heldout_name": f"embedded:test/{t}"}
            for t in TASKS
        },
        "methods": METHODS,
    }
    folder.mkdir(exist_ok=True)
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False))
    return path


def here(jobs: Mapping[str, Job], workers: int, done: Done) -> dict[str, str]:
    """The pool's rules without its processes, for tests that look inside."""
    failures: dict[str, str] = {}
    for name, job in jobs.items():
        assert {*job.needs, *job.after} <= set(list(jobs)[: list(jobs).index(name)]), (
            "written in an order that works"
        )
        try:
            if not set(job.needs) & set(failures):
                job.call(job.argument)
        except SemAlignError as error:
            failures[name] = str(error)
        done(name, failures.get(name))
    return failures


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def untimed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines at equal rows without what a clock or a memory counter says."""
    noisy = ("_seconds", "seconds", "_bytes")
    kept = [x for x in lines if x.get("budget") != "time" and x["kind"] != "comparison"]
    # Sums may differ in their last bits from process to process.
    return [
        {
            k: pytest.approx(v, abs=1e-4) if isinstance(v, float) else v
            for k, v in x.items()
            if not k.endswith(noisy)
        }
        for x in kept
    ]


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same lines with plain numbers."""
    return [{k: getattr(v, "expected", v) for k, v in x.items()} for x in untimed(lines)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison from beginning to end in worker processes, one method at equal time too."""
    path = write(tmp_path_factory.mktemp("compare") / "straight", equal_time=["cross_entropy"])
    assert main(["compare", str(path), "--quiet"]) == 0
    return path


def test_one_json_object_with_everything_that_is_asked_of_it(
    straight: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_jobs", None)  # a finished comparison runs nothing
    capsys.readouterr()
    assert main(["compare", str(straight), "--quiet", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    by_name = {m["method"]: m for m in printed["methods"]}
    assert list(by_name) == list(METHODS)
    assert [m["default"] for m in printed["methods"]] == [True, False]
    lines = results(straight.parent / "out")
    for name, entry in by_name.items():
        for figure in (entry, entry["equal_time"]):
            assert figure["seeds"] == 2 and figure["wall_seconds"] > 0
            for key in ("accuracy_gap_closed", "kl_gap_closed", "retention"):
                low, high = figure[f"{key}_interval"]
                assert low <= figure[key] <= high
        shares = []
        for task in TASKS:
            kl = {}
            for model, budget in (("untouched", None), (name, "rows")):
                rows = [
                    x for x in lines
                    if x["kind"] == "row" and x["method"] == model and x.get("budget") == budget
                    and x.get("trained") in (None, task) and x["measured"] == task
                ]  # fmt: skip
                assert len(rows) == 4 * (2 if budget else 1)
                kl[model] = sum(x["kl"] * x["tokens"] for x in rows) / sum(x["tokens"] for x in rows)
            shares.append(1 - kl[name] / kl["untouched"])
        assert entry["kl_gap_closed"] == pytest.approx(mean(shares), abs=1e-5)
    assert by_name["aligned"]["kl_gap_closed_minus_default"] == 0
    assert printed["models"]["teacher"]["tasks"]["arithmetic"]["kl"] < 1e-3
    assert printed["failed"] == []


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


def test_a_comparison_killed_in_the_middle_goes_on_to_the_same_results(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "killed")
    out = path.parent / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "semalign", "compare", str(path), "--quiet"], start_new_session=True
    )
    deadline = time.monotonic() + 600
    try:
        while len(finished(out)) < 3 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    while _alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(process.pid), "workers end with their parent"
    done = {p: p.stat().st_mtime_ns for p in finished(out)}
    assert 3 <= len(done) < 8
    trained: list[Path] = []
    original = cells.train_student
    monkeypatch.setattr(cells, "train_student", lambda *a: trained.append(a[-1]) or original(*a))
    monkeypatch.setattr(run, "run_jobs", here)
    assert main(["compare", str(path), "--quiet"]) == 0
    assert {p: p.stat().st_mtime_ns for p in done} == done
    assert not {p.parent for p in done} & set(trained) and len(trained) == 8 - len(done)
    assert timeless(results(out)) == untimed(results(straight.parent / "out"))


def finished(out: Path) -> list[Path]:
    """Results of trained cells; looks into no folder whose contents come and go."""
    return list((out / "cells").glob("*/*/*/cell.json"))


def _alive(session: int) -> bool:
    """Whether a process of that session still runs."""
    import psutil

    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                return True
        except (psutil.Error, OSError):
            continue
    return False


def test_a_failing_method_is_reported_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "run_jobs", here)
    broken = {"recipe.name": "cross_entropy", "recipe.learning_rate": 1e30}
    path = write(
        tmp_path / "broken",
        seeds=1,
        methods=METHODS | {"broken": broken, "random": {"recipe.name": "aligned", "teacher": "random"}},
        tasks={
            "knowledge": {
                "data.dataset_name": "embedded:transfer/knowledge",
                "data.heldout_name": "embedded:test/knowledge",
            }
        },
    )
    assert main(["compare", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert [f["method"] for f in printed["failed"]] == ["broken"]
    assert "lower recipe.learning_rate" in printed["failed"][0]["error"] and "knowledge/broken/rows-0" in err
    by_name = {m["method"]: m for m in printed["methods"]}
    assert by_name["broken"]["kl_gap_closed"] is None
    assert by_name["random"]["kl_gap_closed"] < by_name["aligned"]["kl_gap_closed"]
    assert printed["models"]["teacher"]["tasks"]["knowledge"]["kl"] < 1e-3, (
        "measured against the real teacher"
    )
    fresh = load(read_comparison(path).configs["knowledge", "random"].teacher)
    real = load(read_comparison(path).configs["knowledge", "aligned"].teacher)
    assert [p.shape for p in fresh.model.parameters()] == [p.shape for p in real.model.parameters()]
    # Only what is missing runs again: the failed cell.
    started: list[str] = []

    def noting(jobs: Mapping[str, Job], workers: int, done: Done) -> dict[str, str]:
        started.extend(name for name in jobs if "rows" in name)
        return here(jobs, workers, done)

    monkeypatch.setattr(run, "run_jobs", noting)
    assert main(["compare", str(path), "--quiet"]) == 0
    assert started == ["knowledge/broken/rows-0"]
    assert main(["compare", str(path), "--quiet", "--methods", "cross_entropy"]) == 0
    assert started == ["knowledge/broken/rows-0"]
    assert results(path.parent / "out")[0]["methods"] == ["aligned", "cross_entropy"]


def test_a_recipe_pays_for_what_it_reads(straight: Path) -> None:
    source = read_comparison(straight).sources["knowledge", "aligned"]
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
        source = sources["knowledge", label]
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
