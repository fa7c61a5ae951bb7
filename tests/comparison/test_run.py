"""A whole comparison on the embedded pair with a handful of steps: files, resume after a kill, failures."""

from __future__ import annotations

import json
import os
import re
import shutil
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
from rich.console import Console

from semalign import embedded
from semalign.cli import main
from semalign.comparison import cells, compare, run
from semalign.comparison.plan import Comparison, read_comparison
from semalign.comparison.pool import Done, Job
from semalign.comparison.run import environment_of, jobs_of, result_lines, run_comparison, workers
from semalign.comparison.sources import prepare
from semalign.errors import ConfigError, DataError
from semalign.evaluation import decoding
from semalign.models.loading import load
from semalign.run.files import json_line, write_json
from semalign.run.folder import save_result
from semalign.steps import train

from .small import METHODS, TASKS, here, results, task_of, write


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


def test_the_layers_targets_may_come_from_elsewhere_and_the_output_s_signals_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_jobs", here)
    methods: dict[str, Any] = {
        "aligned": {},
        "self": {},
        "shuffled_targets": {},
        "random_targets": {"recipe.name": "aligned", "targets": "random"},
    }
    path = write(
        tmp_path / "x",
        seeds=1,
        methods=methods,
        tasks={"knowledge": {"data.heldout_name": "embedded:test/knowledge"}},
    )
    assert compare(path, None, {}, Console(quiet=True))["methods"]
    first = {}
    for label in methods:
        folder = tmp_path / "x" / "out" / "cells" / "knowledge" / label / "rows-0"
        first[label] = json.loads((folder / "train.jsonl").read_text().splitlines()[0])
    outputs = {round(line["loss_output"], 5) for line in first.values()}
    layers = {label: line["loss_layer"] for label, line in first.items()}
    assert len(outputs) == 1 and layers["self"] < 1e-3, first
    assert len({round(value, 4) for value in layers.values()}) == 4, layers


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


def test_a_cell_that_was_stopped_while_it_answered_keeps_its_student_and_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_jobs", here)
    asked, fitted, stop = [0], [0], [None]
    generate_batch, fit = decoding._generate_batch, train.fit

    def counted(*arguments: Any) -> Any:
        if asked[0] == stop[0]:
            raise DataError("the machine is taken away")
        asked[0] += 1
        return generate_batch(*arguments)

    def fitting(*arguments: Any) -> Any:
        fitted[0] += 1
        return fit(*arguments)

    monkeypatch.setattr(decoding, "_generate_batch", counted)
    monkeypatch.setattr(train, "fit", fitting)

    def compared(name: str) -> Path:
        task = task_of("knowledge")
        options = {"seeds": 1, "methods": {"aligned": {}}, "tasks": {"knowledge": task}}
        path = write(tmp_path / name, **options)
        text = path.read_text().replace("max_items: 6", "max_items: 6\n    batch_size: 2")
        path.write_text(text)
        return path

    straight = compared("straight")
    assert main(["compare", str(straight), "--quiet"]) == 0
    assert (asked, fitted) == ([9], [1]), "untouched, student and teacher, three batches each"
    path = compared("stopped")
    stop[0] = 13
    main(["compare", str(path), "--quiet"])
    (cell,) = (path.parent / "out" / "cells").glob("*/*/*")
    assert (cell / "student").exists() and list(cell.glob("*.part"))
    stop[0] = None
    assert main(["compare", str(path), "--quiet"]) == 0
    assert (asked, fitted) == ([18], [2]), "neither trained nor asked twice"
    assert timeless(results(path.parent / "out")) == untimed(results(straight.parent / "out"))
    assert not (cell / "student").exists() and not list(cell.glob("*.part"))


def test_a_teacher_with_a_tokenizer_of_its_own_is_compared_by_its_answers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_jobs", here)
    task = task_of("knowledge")
    options = {"seeds": 1, "methods": {"aligned_output": {}}, "default": "aligned_output"}
    path = write(tmp_path / "own", tasks={"knowledge": task}, **options)
    path.write_text(path.read_text().replace("embedded:teacher", "embedded:teacher\n    tokenizer: own"))
    assert main(["compare", str(path), "--quiet"]) == 0
    found = json.loads((path.parent / "out" / "figures.json").read_text())
    teacher, student = found["models"]["teacher"]["tasks"]["knowledge"], found["methods"][0]
    assert teacher["accuracy"] is not None and teacher["kl"] is None
    assert student["kl_gap_closed"] is not None and not found["failed"]


def test_each_cell_comes_right_after_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def noting(jobs: Mapping[str, Job], workers: int, done: Done) -> dict[str, str]:
        order.extend(jobs)
        return dict.fromkeys(jobs, "not run")

    monkeypatch.setattr(run, "run_jobs", noting)
    path = write(
        tmp_path / "ordered", methods={"aligned": {}, "more": {"recipe.name": "kl", "data.max_rows": 6}}
    )
    assert main(["compare", str(path), "--quiet"]) == 0
    for task in TASKS:
        # The second seed's rows are prepared once the first seed's students are done.
        first, second = (order.index(f"{task}/more/rows-{seed}") for seed in range(2))
        between = [n for n in order[first + 1 : second] if n.startswith(task) and "rows" not in n]
        assert between and order.index(between[-1]) > first
    assert order.index("untouched") == len(TASKS)


def test_the_last_cell_is_measured_where_no_other_has_prepared_the_other_tasks(tmp_path: Path) -> None:
    path = write(tmp_path / "whole", seeds=1)
    assert main(["compare", str(path), "--quiet"]) == 0
    out = path.parent / "out"
    lines = results(out)
    shutil.rmtree(out / "sources")
    shutil.rmtree(out / "cells/knowledge/aligned/rows-0")
    assert main(["compare", str(path), "--quiet"]) == 0
    assert [x for x in results(out) if x["kind"] in ("failed", "item", "row")] == [
        x for x in lines if x["kind"] in ("failed", "item", "row")
    ]


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
        tasks={"knowledge": task_of("knowledge")},
    )
    assert main(["compare", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert [f["method"] for f in printed["failed"]] == ["broken"]
    assert "lower train.learning_rate" in printed["failed"][0]["error"] and "knowledge/broken/rows-0" in err
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


def test_students_that_something_else_has_trained_stand_in_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "run_jobs", here)
    tasks = {"knowledge": task_of("knowledge")}
    methods = {"aligned": METHODS["aligned"], "theirs": {"made": "theirs-{seed}"}}
    path = write(tmp_path / "made", seeds=2, methods=methods, tasks=tasks)
    student = load("embedded:student")
    folder = path.parent / "theirs-0"
    student.model.save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)  # type: ignore[union-attr]
    (folder / "made.json").write_text('{"wall_seconds": 12.5, "steps": 7}')
    assert main(["compare", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    # The folder holds the untouched student, so it closes nothing; the other seed's is not there yet.
    theirs = next(m for m in printed["methods"] if m["method"] == "theirs")
    assert (theirs["seeds"], theirs["wall_seconds"], theirs["steps"], theirs["rows"]) == (1, 12.5, 7, None)
    assert theirs["kl_gap_closed"] == pytest.approx(0, abs=1e-6)
    assert (
        theirs["tasks"]["knowledge"]["accuracy"]
        == printed["models"]["untouched"]["tasks"]["knowledge"]["accuracy"]
    )
    assert "theirs-1: expected a student that something else has trained, found no folder" in err
    assert folder.is_dir() and "theirs" in (path.parent / "out" / "page.html").read_text()
    (folder / "made.json").write_text('{"seconds": 12.5}')
    assert main(["compare", str(path), "--quiet"]) != 0
    assert "made.json: seconds" in capsys.readouterr().err


def labels(found: Comparison) -> list[str]:
    return list(found.options.methods)


def test_every_cell_has_a_place_a_seed_of_its_own_and_its_references(tmp_path: Path) -> None:
    path = write(tmp_path / "plan", equal_time=["cross_entropy", "aligned"])
    found = read_comparison(path)
    jobs = jobs_of(found, labels(found))
    names = list(jobs)
    assert names[:2] == ["untouched", "teacher"]
    # The default's time is the budget, so it has none of its own.
    timed = [n for n in names if "/time-" in n]
    assert timed == names[-4:] and all("/cross_entropy/" in n for n in timed)
    assert len(names) == 2 + 2 * 2 * 2 + 4
    for name, job in jobs.items():
        assert job.folder == found.root / "cells" / name and set(job.references) == set(TASKS)
        assert job.retention_items == 3
        if job.cell.task:
            assert job.config.seed == job.cell.seed and job.source is not None and job.recipe is not None
            assert job.recipe.name == job.cell.method
        is_timed = job.cell.budget == "time"
        own, default = (
            [found.root / "cells" / job.cell.task / m / f"rows-{s}" for s in range(2)]
            for m in (job.cell.method, "aligned")
        )
        assert (list(job.same), list(job.defaults)) == ((own, default) if is_timed else ([], []))


SUMS = {"data.dataset_name": "embedded:transfer/arithmetic", "data.heldout_name": "embedded:test/arithmetic"}


@pytest.mark.parametrize(
    ("changes", "touched"),
    [
        ({}, ""),
        ({"workers": 1}, ""),
        ({"methods": METHODS | {"cross_entropy": {"train.num_train_epochs": 9}}}, "cross_entropy"),
        # The default's cost is the budget of the others at equal time.
        ({"methods": METHODS | {"aligned": {"data.variants": 1, "recipe.layer_weight": 0.5}}}, "aligned/|/time-"),
        ({"methods": METHODS | {"aligned": {"data.variants": 2}}}, "."),  # held-out rows go with the default's
        ({"retention_items": 4}, "."),
        ({"tasks": {"knowledge": {"data.dataset_name": "embedded:transfer/knowledge", "data.heldout_name": "embedded:test/knowledge"},
                    "arithmetic": SUMS | {"data.max_rows": 11}}}, "."),
    ],
    ids=["nothing", "workers", "a method", "the default", "its rows", "items", "a task"],
)  # fmt: skip
def test_a_change_runs_again_what_depends_on_it_and_no_more(
    tmp_path: Path, changes: dict[str, Any], touched: str
) -> None:
    both = []
    for own in ({}, changes):
        found = read_comparison(write(tmp_path / "plan", equal_time=["cross_entropy"], **own))
        both.append({name: job.fingerprint for name, job in jobs_of(found, labels(found)).items()})
    before, after = both
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if touched and re.search(touched, name)}
    assert before.keys() == after.keys()


@pytest.mark.parametrize(
    "teacher",
    [
        {"sees": "shots", "shots": 2},
        {"sees": "answer"},
        {"tokenizer": "own"},
        {"server": {"url": "http://localhost:1", "model": "m"}},
        {"signals": "signals.parquet"},
    ],
    ids=lambda teacher: next(iter(teacher)),
)
def test_what_a_teacher_sees_and_how_it_tells_are_part_of_what_a_cell_is_made_from(
    tmp_path: Path, teacher: dict[str, Any]
) -> None:
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan/signals.parquet").write_bytes(b"1")

    def prints() -> list[Any]:
        base = {f"teacher.{k}": v for k, v in teacher.items()}
        methods = METHODS | {"other": {"recipe.name": "aligned_output"} | base}
        found = read_comparison(write(tmp_path / "plan", methods=methods))
        jobs = jobs_of(found, labels(found))
        return [jobs[f"knowledge/{name}/rows-0"].fingerprint for name in ("aligned", "other")]

    plain, first = prints()
    if "shots" in teacher:
        teacher = teacher | {"shots": 3}
    elif "signals" in teacher:
        (tmp_path / "plan/signals.parquet").write_bytes(b"2")
    elif "sees" in teacher:
        teacher = {"sees": "shots"}
    elif "server" in teacher:
        teacher = {"server": {"url": "http://localhost:2", "model": "n"}}
    else:
        teacher = {}
    assert prints()[0] == plain and prints()[1] != first


def test_rows_to_train_on_are_not_among_those_that_students_are_measured_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_jobs", lambda *_: pytest.fail("nothing is prepared"))
    rows = embedded.rows("transfer")[:30]
    for name, kept in (("few", rows[:20]), ("more", [*rows[:20], *rows[20:]])):
        (tmp_path / f"{name}.jsonl").write_text("".join(map(json_line, kept)))
    path = write(tmp_path / "plan", methods={"aligned": {}, "more": {"recipe.name": "aligned", "data.dataset_name": str(tmp_path / "more.jsonl")}},
                 tasks={t: {"data.dataset_name": str(tmp_path / "few.jsonl"), "data.max_rows": 30} for t in TASKS})  # fmt: skip
    found = read_comparison(path)
    # The last four of the twenty rows are held out; among thirty they are trained on.
    with pytest.raises(
        DataError, match=r"methods\.more: 4 held-out rows of task 'knowledge'.*take them out of .*more\.jsonl"
    ):
        run_comparison(found, labels(found))


def test_more_seeds_add_cells_and_touch_none(tmp_path: Path) -> None:
    both = []
    for seeds in (1, 2):
        found = read_comparison(write(tmp_path / "plan", seeds=seeds))
        both.append({name: job.fingerprint for name, job in jobs_of(found, labels(found)).items()})
    few, more = both
    assert few.items() <= more.items() and all(name.endswith("-1") for name in more.keys() - few.keys())
    seeds_of = {json.dumps(f, sort_keys=True) for f in more.values()}
    assert len(seeds_of) == len(more) - 1, "only the untouched student and the teacher are alike"


def test_what_a_piece_waits_for_is_what_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "plan", equal_time=["cross_entropy"])
    found = read_comparison(path)
    done = jobs_of(found, labels(found))["knowledge/aligned/rows-1"]
    save_result(
        done.folder / "cell.json", done.fingerprint, {"cell": {"method": "aligned"}, "items": [], "rows": []}
    )
    seen: dict[str, Job] = {}

    def record(jobs: Mapping[str, Job], workers: int, over: Done) -> dict[str, str]:
        seen.update(jobs)
        for name in jobs:
            over(name, "stopped here" if "cross_entropy" in name else None)
        return {name: "stopped here" for name in jobs if "cross_entropy" in name}

    monkeypatch.setattr(run, "run_jobs", record)
    said: list[str] = []
    lines = run_comparison(found, labels(found), said.append)
    sources = {name: job.argument for name, job in seen.items() if job.call is prepare}
    # Rows are drawn anew for every seed; nothing asks for those of the cell that is done.
    assert len(sources) == 7 and "knowledge/aligned/rows-1" not in seen

    def place(task: str, label: str, seed: int = 0) -> str:
        folder = found.sources[task, label, seed].run.root
        (name,) = (name for name, source in sources.items() if source.run.root == folder)
        return name

    # Everything is measured on every task, with the default's source: also where all that is left to do is one student.
    references = {place(task, "aligned") for task in TASKS}
    for name in ("untouched", "teacher"):
        assert set(seen[name].needs) == references
    for name, job in seen.items():
        if name.count("/") == 2:
            task, label, at = name.split("/")
            assert set(job.needs) == {*references, place(task, label, int(at[-1]))}
            before = {f"{task}/{m}/rows-{s}" for m in ("cross_entropy", "aligned") for s in range(2)}
            assert set(job.after) == (before & set(seen) if at.startswith("time") else set())
    assert said and all(s.endswith(": stopped here") and "cross_entropy" in s for s in said)
    errors = {x["error"] for x in lines if x["kind"] == "failed" and x["method"] == "cross_entropy"}
    assert errors == {"stopped here"}
    assert results(found.root) == lines


def test_the_plan_that_is_kept_is_the_plan_that_was_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_comparison(write(tmp_path / "plan", equal_time=["cross_entropy"]), seeds=1)
    monkeypatch.setattr(run, "run_jobs", lambda jobs, workers, done: {})
    run_comparison(found, labels(found))
    again = read_comparison(found.root / "compare.yaml")
    assert again.options == found.options and again.configs == found.configs


def test_each_cell_has_its_costs_items_and_rows_or_why_it_has_none(tmp_path: Path) -> None:
    found = read_comparison(write(tmp_path / "plan", seeds=1))
    jobs = jobs_of(found, ["aligned"])
    name = "arithmetic/aligned/rows-0"
    key = {"method": "aligned", "trained": "arithmetic", "seed": 0, "budget": "rows"}
    item = {"measured": "arithmetic", "item": "a", "correct": 1, "extracted": 1}
    row = {"measured": "arithmetic", "row": 0, "tokens": 3, "kl": 0.5, "top1": 1.0, "nll": 0.3}
    result = {
        "cell": key | {"steps": 7},
        "items": [item],
        "rows": [row],
    }
    save_result(jobs[name].folder / "cell.json", jobs[name].fingerprint, result)
    # A result of other inputs is none.
    stale = jobs["knowledge/aligned/rows-0"]
    save_result(stale.folder / "cell.json", {"of": "another"}, result)
    head, *lines = result_lines(found, ["aligned"], jobs, {"teacher": "no memory"})
    assert head["methods"] == ["aligned"] and head["tasks"] == list(TASKS) and head["equal_time"] == []
    assert lines == [
        {"kind": "failed", "method": "untouched", "error": "was not run"},
        {"kind": "failed", "method": "teacher", "error": "no memory"},
        {"kind": "failed", **key, "trained": "knowledge", "error": "was not run"},
        {"kind": "cell", **key, "steps": 7},
        {"kind": "item", **key, **item},
        {"kind": "row", **key, **row},
    ]


def test_a_local_model_goes_by_its_folder_and_another_by_its_name(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base = {
        "teacher": {"model_name_or_path": str(tiny_pair[0])},
        "student": {"model_name_or_path": "org/small"},
        "data.dataset_name": "embedded:transfer",
    }
    found = read_comparison(write(tmp_path / "plan", base=base))
    (head,) = result_lines(found, labels(found), {}, {})
    assert (head["teacher"], head["student"]) == ("teacher", "org/small")


def test_the_environment_is_that_of_the_beginning(tmp_path: Path) -> None:
    found = read_comparison(write(tmp_path / "plan"))
    first = environment_of(found)
    assert first["cores"] == os.cpu_count() and first["started"]
    path = found.root / "environment.json"
    write_json(path, first | {"cpu": "of then"})
    assert environment_of(found)["cpu"] == "of then"


@pytest.mark.parametrize(
    ("asked", "accelerator", "count"), [(None, False, 7), (None, True, 1), (3, False, 3), (3, True, 3)]
)
def test_workers_are_as_many_as_asked_for_or_one_a_core_or_one_with_an_accelerator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int | None, accelerator: bool, count: int
) -> None:
    found = read_comparison(write(tmp_path / "plan", workers=asked))
    monkeypatch.setattr("torch.cuda.is_available", lambda: accelerator)
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    assert workers(found) == count


def test_how_much_a_teacher_tells_is_part_of_what_closeness_is_measured_by(tmp_path: Path) -> None:
    def of_untouched(top_k: int, tokenizer: str) -> Any:
        path = write(tmp_path / "plan", methods={"aligned_output": {}}, default="aligned_output")
        values = yaml.safe_load(path.read_text())
        values["base"]["teacher"]["tokenizer"] = tokenizer
        values["base"]["cache"] = {"top_k": top_k}
        path.write_text(yaml.safe_dump(values))
        found = read_comparison(path)
        return jobs_of(found, labels(found))["untouched"].fingerprint

    assert of_untouched(8, "own") != of_untouched(16, "own") != of_untouched(32, "own")
    # One that is read whole is measured over the whole vocabulary.
    assert of_untouched(8, "shared") == of_untouched(32, "shared")


def test_items_that_could_not_be_answered_stop_a_comparison_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []
    monkeypatch.setattr(run, "run_jobs", lambda jobs, *_: started.extend(jobs) or {})
    task = task_of("code_write")
    path = write(tmp_path / "code", seeds=1, tasks={"code_write": task})
    assert main(["compare", str(path), "--quiet"]) == ConfigError.exit_code
    assert "graded by running generated code" in capsys.readouterr().err and not started


def test_every_method_of_a_shared_source_has_its_signals_in_every_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_jobs", here)
    task = task_of("knowledge") | {"train.rounds": 2}
    methods = {"aligned_output": {}, "kl": {}}
    path = write(
        tmp_path / "rounds", seeds=1, tasks={"knowledge": task}, methods=methods, default="aligned_output"
    )
    assert main(["compare", str(path), "--quiet"]) == 0
    found = json.loads((path.parent / "out" / "figures.json").read_text())
    assert not found["failed"] and [m["method"] for m in found["methods"]] == ["aligned_output", "kl"]
