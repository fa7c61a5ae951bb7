"""The benchmark scripts: their arithmetic, their output's form, and what the page says of a result."""

import importlib
import json
import multiprocessing
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """Import a benchmark script by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_ratios_are_of_neighbours_and_their_median_is_reported(module):
    ours, theirs = iter([1.0, 2.0, 1.0]), iter([4.0, 4.0, 12.0])
    result = module("common").ratios(lambda: next(ours), lambda: next(theirs), 3)
    assert (result["ratio"], result["low"], result["high"]) == (4.0, 2.0, 12.0)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_fitted_exponent_of_a_power_law_is_its_power(module, power):
    sizes = [1, 2, 4, 8]
    assert module("common").fitted_exponent(sizes, [3 * n**power for n in sizes]) == pytest.approx(power)


def test_every_claim_names_a_script_and_options_it_knows(module):
    claims = module("claims")
    names = [claim.name for claim in (*claims.FULL, *claims.QUICK)]
    assert len(set(names)) == len(names)
    for claim in (*claims.FULL, *claims.QUICK):
        text = (FOLDER / f"{claim.script}.py").read_text()
        shared = (FOLDER / "common.py").read_text() + (FOLDER / "peers.py").read_text()
        for option in claim.options:
            assert not option.startswith("--") or f'"{option}"' in text + shared, (claim.name, option)


def test_figures_that_are_older_than_the_code_are_listed(module, tmp_path, capsys):
    all_, claims = module("all"), module("claims")
    every = (*claims.FULL, *claims.QUICK)
    assert {claim.script for claim in every} == set(claims.TIMED)
    sources = FOLDER.parent / "src" / "semalign"
    assert all((sources / folder).is_dir() for folders in claims.TIMED.values() for folder in folders)
    shutil.copytree(FOLDER, tmp_path / "benchmarks")
    shutil.copytree(sources / "maths", tmp_path / "src" / "semalign" / "maths")
    before = all_.code_of("bases", tmp_path)
    assert before == all_.code_of("bases") != all_.code_of("losses")
    with (tmp_path / "src" / "semalign" / "maths" / "bases.py").open("a") as file:
        file.write("# slower\n")
    assert all_.code_of("bases", tmp_path) != before
    fresh = {"here": {"date": "2026-01-01", "code": before}, "there": {"date": "2025-01-01"}}
    assert all_.stale({"bases": fresh}) == ["bases: measured on 2025-01-01, and the code has changed since"]
    recorded = json.loads((FOLDER.parent / "docs" / "benchmarks.json").read_text())
    with capsys.disabled():
        print("", *all_.stale(recorded), sep="\n")


def test_the_page_shows_ratio_bar_and_failure(module, tmp_path):
    all_, claims = module("all"), module("claims")
    machine = {"cpu": "C", "cores": 2, "threads": 2, "memory_bytes": 2**30, "accelerator": None, "torch": "2"}
    common = {"machine": machine, "command": "python x", "date": "2026-01-01"}
    good = {"ratio": 25.0, "low": 20.0, "high": 30.0, "repetitions": 5, "ours": 1.0, "theirs": 25.0}
    good |= {"memory_ours": 1e9, "memory_theirs": 4e9, "memory_share": 0.25}
    results = {
        "gkd-last": {"here": common | good},
        "gkd-quarter": {"here": common | good | {"ratio": 7.0}},
        "sft-last": {"here": common | {"failed": "no room"}},
    }
    all_.write(all_.page(results), tmp_path / "page.md")
    lines = (tmp_path / "page.md").read_text().splitlines()
    by_name = {
        c.name: next(line for line in lines if f"(#{c.name})" in line)
        for c in claims.FULL
        if c.name in results
    }
    assert "25 (20 - 30)" in by_name["gkd-last"] and by_name["gkd-last"].endswith("| yes |")
    assert by_name["gkd-quarter"].endswith("| **no** |")
    assert by_name["sft-last"].endswith("| **failed** |")
    all_.write("other figures", tmp_path / "page.md")
    assert "25 (20 - 30)" not in (tmp_path / "page.md").read_text()


def test_what_a_worker_prints_stays_out_of_the_result(module, capfd):
    with module("common").Worker(Loud) as worker:
        assert worker.call("speak") == 3
        # SemAlign renders chat templates in a process of their own.
        assert worker.call("start_another") == 0
    assert capfd.readouterr().out == ""


class Loud:
    """A side that prints, as trl does."""

    def speak(self):
        print("a line for people")
        return 3

    def start_another(self):
        process = multiprocessing.get_context("spawn").Process(target=print)
        process.start()
        process.join()
        return process.exitcode


def test_an_estimate_of_a_step_that_nobody_took_has_no_ratio(module):
    estimated = {
        "cache_bytes": 20,
        "peak_bytes": 30,
        "seconds": {"attribute": 0.0, "cache": 4.0, "train": 1.0},
    }
    used = {"cache_bytes": 10, "peak_bytes": 30, "seconds": {"attribute": 0.0, "cache": 2.0, "train": 2.0}}
    found = module("estimates").compared(estimated, used)
    assert (found["ratio"], found["low"], found["high"]) == (2.0, 0.5, 2.0)
    assert [line["quantity"] for line in found["quantities"]] == [
        "cache_bytes",
        "peak_bytes",
        "cache_seconds",
        "train_seconds",
    ]
    estimated["seconds"]["attribute"] = 1.0
    assert module("estimates").compared(estimated, used)["high"] == float("inf")


def test_a_kl_that_was_not_reached_has_no_ratio(module):
    result = {"ratio": 2.0, "low": 2.0, "high": 2.0, "reached": False}
    assert module("all")._ratio(result) == "not reached"
    assert module("all")._ratio(result | {"reached": True}) == "2 (2 - 2)"


def test_a_script_prints_one_json_object_with_its_ratio():
    words = [sys.executable, str(FOLDER / "bases.py"), "--quick", "--json", "--repetitions", "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["low"] <= result["ratio"] <= result["high"]
    assert result["relative_difference"] < 1e-5
    assert result["memory_ours"] < result["memory_theirs"]


@pytest.fixture
def task(module):
    """The embedded pair on few rows."""
    return replace(module("sides").EMBEDDED, max_rows=24, batch=8, attribution_rows=4, heldout_rows=8)


def test_a_peer_has_rows_batch_and_rate_of_its_own_and_the_same_held_out_rows(module, task):
    sides = module("sides")
    both = replace(task, heldout=None, peer_rows=16, peer_batch=4, peer_learning_rate=1e-4)
    ours, theirs = (sides.load_inputs(sides.config_of(each, "unused")) for each in (both, both.of_peer()))
    assert (len(ours.train), len(theirs.train), both.of_peer().batch) == (24, 16, 4)
    assert both.of_peer().learning_rate == 1e-4
    assert [row.input_ids for row in ours.heldout] == [row.input_ids for row in theirs.heldout]
    assert task.of_peer() == task


def test_both_sides_of_the_comparisons_train(module, task):
    peers, sides = module("peers"), module("sides")
    side = sides.SemAlign(task, peers.v1(task, "v1"))
    try:
        assert set(side.prepare()) == {"attribute", "pair", "cache"}
        assert side.epoch() > 0
        assert side.whole_training(2) > 0
        assert json.loads((side.folder / "train.json").read_text())["steps"] == 6
        literal = module("trainers").LiteralV1(replace(task, seed=1))
        before = literal.heldout_kl()
        assert literal.epoch() > 0
        # LoRA is off again: the student is as it was.
        assert literal.heldout_kl() == before > 0
        assert literal.kl_of(side.student()) != before
    finally:
        side.close()
    assert not side.folder.exists()


def test_a_cached_prefix_changes_no_loss(module, task):
    sides, losses = module("sides"), []
    for changes in ({}, {"train": {"cache_prefix": False}}):
        side = sides.SemAlign(task, changes)
        side.prepare()
        side.epoch()
        losses.append(side.last_loss())
        side.close()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_estimates_and_what_a_run_used_have_the_same_quantities(module, task):
    checked = module("estimates").Checked(task)
    estimated = checked.estimate()
    used = checked.used()
    checked.close()
    assert used["seconds"].keys() == estimated["seconds"].keys()
    assert used["cache_bytes"] == pytest.approx(estimated["cache_bytes"], rel=0.15)


def test_every_loss_of_the_benchmark_has_a_gradient(module):
    losses = module("losses")
    for kind in losses.LABELS:
        assert torch.isfinite(losses.step(kind, 1024)()), kind


def test_steps_of_random_models_run(module):
    synthetic = module("synthetic")
    step, operations = synthetic.suffix_step(2, 8, layers=1, vocabulary=512, top_k=4)
    step()
    assert operations > 0
    synthetic.teacher_pass(2, 8, layers=1, vocabulary=512)()
