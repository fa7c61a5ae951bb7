"""metrics.json: shares of gaps, tasks with intervals, samples that changed, costs counted once."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from in_memory import HEADS, cached, config_of, prepared

from semalign.config import DataConfig, EvaluationConfig, ModelConfig, RecipeConfig
from semalign.errors import CacheError
from semalign.evaluation.statistics import interval_of_shares, mean_change, wilson_interval
from semalign.evaluation.summary import (
    SAMPLES_SHOWN,
    add_costs,
    store_answers,
    stored_answers,
    summarise,
    trained_model,
    trainings,
)
from semalign.run.files import read_json, write_json
from semalign.run.folder import RunFolder, is_done
from semalign.signals.prepared import Prepared

MOVED = [{"layer": 3, "relative_change": 0.1}]


def write(path: Path, values: dict[str, Any]) -> None:
    write_json(path, values)


def trained(run: RunFolder, *baselines: str) -> None:
    """The results of finished trainings: the run's own took 10 seconds, the first baseline 11, ..."""
    for n, name in enumerate((None, *baselines)):
        costs = {"seconds": 11.0 + n, "peak_rss_bytes": 1}
        write(run.training(name) / "train.json", costs | {"train_seconds": 10.0 + n, "movement": MOVED})


def unmeasured(folder: Path, *baselines: str) -> Prepared:
    """A run without held-out rows."""
    made = prepared(folder, heldout=[], evaluation=EvaluationConfig(baselines=baselines))
    trained(made.run, *baselines)
    return made


def answers(marks: str, task: str = "sums") -> list[dict[str, Any]]:
    """One answer a letter: r right, w wrong, - no answer in a known form."""
    return [
        {
            "task": task,
            "prompt": f"{task} {n}",
            "gold": "42",
            "text": mark,
            "correct": mark == "r",
            "extracted": mark != "-",
            "ended": mark != "-",
        }
        for n, mark in enumerate(marks)
    ]


def of_answers(teacher: str, before: str, after: str, **baselines: str) -> dict[str, dict[str, Any]]:
    given = {"teacher": teacher, "before": before, "after": after, **baselines}
    return {name: {"answers": answers(marks)} for name, marks in given.items()}


def test_every_student_of_a_run_has_a_folder(tmp_path: Path) -> None:
    config = config_of(tmp_path, evaluation=EvaluationConfig(baselines={"kl": {}, "tuned": {"name": "kl"}}))
    found = trainings(config, RunFolder(tmp_path))
    assert found == {
        "after": tmp_path,
        "kl": tmp_path / "baselines/kl",
        "tuned": tmp_path / "baselines/tuned",
    }


def test_a_trained_student_is_loaded_as_the_untouched_one_is(tmp_path: Path) -> None:
    given = ModelConfig(
        "org/name", model_revision="v1", dtype="bfloat16", attn_implementation="eager", load_in_4bit=True
    )
    found = trained_model(given, tmp_path)
    assert found == ModelConfig(str(tmp_path / "student"), dtype="bfloat16", attn_implementation="eager")
    assert trained_model(replace(given, trust_remote_code=True), tmp_path).trust_remote_code


def test_the_share_of_the_accuracy_gap_is_from_before_to_the_teacher(tmp_path: Path) -> None:
    found = summarise(unmeasured(tmp_path, "kl"), of_answers("rrrr", "rwww", "rrww", kl="wwww"))
    assert found["accuracy"] == {"teacher": 1.0, "before": 0.25, "after": 0.5, "kl": 0.0}
    assert found["accuracy_gap_closed"] == pytest.approx(1 / 3)
    assert found["baselines"] == {
        "kl": {"accuracy_gap_closed": pytest.approx(-1 / 3), "kl_gap_closed": None, "train_seconds": 11.0}
    }
    assert found["recipe"] == "aligned" and found["train_seconds"] == 10.0 and found["movement"] == MOVED


@pytest.mark.parametrize("before", ["rrww", "rrrw", "rwww"], ids=["level", "ahead", "behind by chance"])
def test_there_is_no_gap_to_close_where_the_teacher_is_not_ahead(tmp_path: Path, before: str) -> None:
    found = summarise(unmeasured(tmp_path), of_answers("rrww", before, "rrrr"))
    assert found["accuracy_gap_closed"] is None and found["accuracy"]["after"] == 1.0


def test_accuracy_is_the_mean_over_tasks_whatever_their_sizes(tmp_path: Path) -> None:
    marks = {"teacher": ("rr", "rrrr"), "before": ("ww", "rrrr"), "after": ("rw", "rrww")}
    given = {n: {"answers": answers(a, "large") + answers(b, "small")} for n, (a, b) in marks.items()}
    found = summarise(unmeasured(tmp_path), given)
    assert found["accuracy"] == {"teacher": 1.0, "before": 0.5, "after": 0.5}
    assert {name: task["n"] for name, task in found["tasks"].items()} == {"large": 2, "small": 4}


def test_a_task_has_its_accuracy_its_interval_and_its_share_without_an_answer(tmp_path: Path) -> None:
    found = summarise(unmeasured(tmp_path), of_answers("rrrrr", "rw---", "rrw--"))["tasks"]["sums"]
    assert found["n"] == 5
    assert [found[n]["extraction_failures"] for n in ("teacher", "before", "after")] == [0.0, 0.6, 0.4]
    assert [found[n]["ended"] for n in ("teacher", "before", "after")] == [1.0, 0.4, 0.6]
    for name, p in (("teacher", 1.0), ("before", 0.2), ("after", 0.4)):
        entry = found[name]
        assert entry["accuracy"] == p and 0 <= entry["low"] <= p <= entry["high"] <= 1
        for bound in {entry["low"], entry["high"]} - {0.0, 1.0}:
            # Wilson's bounds are the proportions from which p lies 1.96 of their own standard errors away.
            assert abs(p - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / 5), rel=1e-5)


def test_figures_of_the_harness_stand_beside_each_other(tmp_path: Path) -> None:
    def line(value: float, **changes: Any) -> dict[str, Any]:
        kinds = {"task": "gsm8k", "metric": "exact", "filter": "none", "n": 9} | changes
        return kinds | {"value": value, "low": value - 0.1, "high": value + 0.1, "stderr": 7}

    given: dict[str, dict[str, Any]] = {
        "before": {"harness": [line(0.1), line(0.2, filter="flexible")]},
        "after": {"harness": [line(0.3), line(0.4, filter="flexible")]},
        "teacher": {"harness": [line(0.5), line(0.6, metric="f1")]},
    }
    first, flexible, f1 = summarise(unmeasured(tmp_path), given)["harness"]
    assert {k: first[k] for k in ("task", "metric", "filter", "n")} == {
        "task": "gsm8k", "metric": "exact", "filter": "none", "n": 9,
    }  # fmt: skip
    values = [{k: v["value"] for k, v in e.items() if isinstance(v, dict)} for e in (first, flexible, f1)]
    assert values == [
        {"before": 0.1, "after": 0.3, "teacher": 0.5}, {"before": 0.2, "after": 0.4}, {"teacher": 0.6},
    ]  # fmt: skip
    assert first["after"] == {"value": 0.3, "low": 0.3 - 0.1, "high": 0.3 + 0.1}


def test_answers_that_changed_are_shown_first_and_a_few_a_task(tmp_path: Path) -> None:
    given = of_answers("rrrrrrrr", "rwwrwrrr", "rrwrrrrw")
    shown = summarise(unmeasured(tmp_path), given)["samples"]
    assert len(shown) == SAMPLES_SHOWN == 3
    assert {row["prompt"] for row in shown} == {"sums 1", "sums 4", "sums 7"}
    for row in shown:
        assert row["correct"]["before"] != row["correct"]["after"]
        n = int(row["prompt"].split()[1])
        assert [row[name] for name in ("teacher", "before", "after")] == [
            "rrrrrrrr"[n],
            "rwwrwrrr"[n],
            "rrwrrrrw"[n],
        ]
        assert row["gold"] == "42" and row["task"] == "sums"


def test_the_same_samples_are_shown_whatever_the_order_of_the_items(tmp_path: Path) -> None:
    given, made = of_answers("r" * 9, "w" * 9, "w" * 9), unmeasured(tmp_path)
    turned = {name: {"answers": figures["answers"][::-1]} for name, figures in given.items()}
    assert summarise(made, given)["samples"] == summarise(made, turned)["samples"]


def test_without_items_and_rows_there_is_nothing_to_say_of_them(tmp_path: Path) -> None:
    found = summarise(unmeasured(tmp_path), {"before": {}, "after": {}})
    assert found["accuracy"] == found["tasks"] == {} and found["samples"] == found["harness"] == []
    assert found["accuracy_gap_closed"] is found["kl_gap_closed"] is None
    assert not {"closeness", "alignment", "cka", "tokens"} & found.keys()


def test_a_missing_training_names_its_step(tmp_path: Path) -> None:
    made = unmeasured(tmp_path, "kl")
    (made.run.training("kl") / "train.json").unlink()
    with pytest.raises(CacheError, match=r"kl/train\.json: not there yet; run `semalign train` first"):
        summarise(made, {"before": {}, "after": {}})


def near(kl: float, places: str = "23", cka: Any = None) -> dict[str, Any]:
    """Figures on held-out rows, each its own number."""
    return {
        "closeness": {"kl": kl, "top1_agreement": 0.5, "nll": kl + 1},
        "teacher_nll": 0.25,
        "tokens": 24,
        "alignment": dict.fromkeys(places, kl / 10),
        "cka": cka,
        "token_view": [{"top": [f"{kl} {n}"]} for n in range(3)],
    }


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A cached run with three held-out rows and a baseline."""
    made = cached(tmp_path_factory.mktemp("run"), evaluation=EvaluationConfig(baselines=("kl",)))
    trained(made.run, "kl")
    return made


def test_closeness_of_every_student_stands_beside_the_teachers(measured: Prepared) -> None:
    found = summarise(
        measured, {"before": near(2.0, cka=[[1.0]]), "after": near(0.5, cka=[[2.0]]), "kl": near(1.0)}
    )
    assert found["kl_gap_closed"] == 0.75 and found["baselines"]["kl"]["kl_gap_closed"] == 0.5
    closeness = found["closeness"]
    assert {k: closeness[k] for k in ("rows", "tokens", "teacher")} == {
        "rows": 3, "tokens": 24, "teacher": {"nll": 0.25},
    }  # fmt: skip
    assert [closeness[n]["kl"] for n in ("before", "after", "kl")] == [2.0, 0.5, 1.0]
    assert found["cka"] == {"before": [[1.0]], "after": [[2.0]]}
    assert found["alignment"] == [
        {"teacher": 3, "student": 2, "fraction": 0.5, "interface": "block", "before": 0.2, "after": 0.05},
        {"teacher": 5, "student": 3, "fraction": 0.0, "interface": "block", "before": 0.2, "after": 0.05},
    ]


def test_what_was_not_aligned_and_not_mapped_is_left_out(measured: Prepared) -> None:
    found = summarise(measured, {name: near(2.0, "") for name in ("before", "after", "kl")})
    assert found["alignment"] == [] and found["cka"] is None


def test_tokens_of_a_few_rows_have_the_teachers_and_both_students_view(measured: Prepared) -> None:
    found = summarise(measured, {"before": near(2.0), "after": near(0.5), "kl": near(1.0)})["tokens"]
    assert [row["id"] for row in found] == [s.id for s in measured.inputs.heldout]
    for n, (row, sample) in enumerate(zip(found, measured.inputs.heldout, strict=True)):
        assert set(row) == {"id", "prompt", "expected", "teacher", "before", "after"}
        assert (
            len(row["expected"])
            == len(row["teacher"]["top"])
            == len(row["teacher"]["p"])
            == sample.supervised
        )
        assert row["before"] == {"top": [f"2.0 {n}"]} and row["after"] == {"top": [f"0.5 {n}"]}


def test_heads_are_named_where_heads_were_paired(tmp_path: Path) -> None:
    recipe = RecipeConfig("aligned", interface="head", layer_weight=1.0)
    made = cached(tmp_path, plan=HEADS, recipe=recipe)
    trained(made.run)
    places = dict.fromkeys(("2h1", "3h3"), 0.5)
    given = {name: near(1.0) | {"alignment": places} for name in ("before", "after")}
    lines = summarise(made, given)["alignment"]
    assert [(p["student"], p["student_head"], p["teacher_head"], p["interface"]) for p in lines] == [
        (2, 1, 2, "head"), (3, 3, 4, "head"),
    ]  # fmt: skip


def cost(seconds: float, rss: int, gpu: int | None = None) -> dict[str, Any]:
    on_gpu = {} if gpu is None else {"peak_gpu_bytes": gpu}
    return {"seconds": seconds, "peak_rss_bytes": rss, "other": 1, **on_gpu}


def finished(run: RunFolder, baselines: tuple[str, ...] = (), gpu: int | None = None) -> None:
    for n, path in enumerate((run.scores, run.pairs, run.manifest, run.root / "train.json"), start=1):
        write(path, cost(n, 10 * n, gpu and gpu + n))
    for n, name in enumerate(baselines):
        write(run.training(name) / "train.json", cost(100 + n, 7))
    write(run.metrics, cost(5, 25, gpu) | {"accuracy": {}, "fingerprint": {"a": 1}})


def test_every_step_is_counted_once_and_the_largest_memory_is_the_peak(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    finished(run, ("kl", "cosine"))
    found = add_costs(run, config_of(tmp_path, evaluation=EvaluationConfig(baselines=("kl", "cosine"))))
    names = ["attribute", "pair", "cache", "train", "train kl", "train cosine", "evaluate"]
    assert [step["name"] for step in found["steps"]] == names
    assert [step["seconds"] for step in found["steps"]] == [1, 2, 3, 4, 100, 101, 5]
    assert found["wall_seconds"] == 216 and found["peak_rss_bytes"] == 40
    assert "peak_gpu_bytes" not in found and not any(
        "peak_gpu_bytes" in s or "other" in s for s in found["steps"]
    )


def test_the_memory_of_a_gpu_is_told_where_there_is_one(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    finished(run, gpu=1000)
    found = add_costs(run, config_of(tmp_path))
    assert found["peak_gpu_bytes"] == 1004
    assert [step["peak_gpu_bytes"] for step in found["steps"]] == [1001, 1002, 1003, 1004, 1000]


def test_answers_of_the_teacher_are_a_step_where_they_are_trained_on(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    finished(run)
    config = config_of(tmp_path, data=DataConfig("rows", completions="teacher"))
    with pytest.raises(CacheError, match=r"rows\.json: not there yet; run `semalign generate` first"):
        add_costs(run, config)
    write(run.generated, cost(50, 99))
    found = add_costs(run, config)
    assert found["steps"][0] == {"name": "generate", "seconds": 50, "peak_rss_bytes": 99}
    assert found["wall_seconds"] == 65 and found["peak_rss_bytes"] == 99


def test_metrics_stay_valid_and_costs_are_not_added_twice(tmp_path: Path) -> None:
    run, config = RunFolder(tmp_path), config_of(tmp_path)
    finished(run)
    first = add_costs(run, config)
    assert is_done(run.metrics, {"a": 1})
    written = read_json(run.metrics, "evaluate")
    assert {k: v for k, v in written.items() if k != "files"} == first | {"fingerprint": {"a": 1}}
    assert set(written["files"]) >= {"scores.json", "pairs.json", "train.json"}
    again = add_costs(run, config)
    for key in ("wall_seconds", "peak_rss_bytes", "accuracy"):
        assert again[key] == first[key]


def test_a_finished_run_that_is_started_again_keeps_the_costs_of_every_step(tmp_path: Path) -> None:
    run, config = RunFolder(tmp_path), config_of(tmp_path)
    finished(run)
    assert add_costs(run, config)["steps"] == add_costs(run, config)["steps"]


def test_costs_before_the_measurement_name_the_step(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"metrics\.json: not there yet; run `semalign evaluate` first"):
        add_costs(RunFolder(tmp_path), config_of(tmp_path))


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.1), (9e-5, 3e-2), (-1e-8, 0.0)])
def test_a_student_that_is_its_teacher_has_no_gap_and_is_told_so(
    measured: Prepared, before: float, after: float
) -> None:
    found = summarise(measured, {"before": near(before), "after": near(after), "kl": near(after)})
    assert found["kl_gap_closed"] is None is found["baselines"]["kl"]["kl_gap_closed"]
    assert found["no_gap"] == "the untouched student predicts as its teacher does"
    known = {"teacher": {"files": {"a": "1"}}, "student": {"files": {"a": "1"}}}
    same = replace(measured, inputs=replace(measured.inputs, fingerprint=known))
    found = summarise(same, {"before": near(2.0), "after": near(after), "kl": near(after)})
    assert found["no_gap"] == "the teacher is the student"


def test_several_answers_an_item_make_one_share_and_a_narrower_interval(tmp_path: Path) -> None:
    """Four items of two answers: rr, rw, wr, ww."""

    def several(marks: str) -> list[dict[str, Any]]:
        return [a | {"prompt": f"{n // 2}", "sample": n % 2 + 1} for n, a in enumerate(answers(marks))]

    found = {name: {"answers": several(m)} for name, m in (("teacher", "r" * 8), ("before", "w" * 8))}
    summary = summarise(unmeasured(tmp_path), found | {"after": {"answers": several("rrrwwrww")}})
    entry = summary["tasks"]["sums"]
    assert entry["n"] == 4 and entry["samples"] == 2
    assert entry["after"]["accuracy"] == 0.5 and summary["accuracy_gap_closed"] == 0.5
    # Shares 1, 1/2, 1/2, 0 vary half as much as single answers would: as good as eight of them.
    assert (entry["after"]["low"], entry["after"]["high"]) == wilson_interval(4, 8)
    assert [s["prompt"] for s in summary["samples"]] != [] and len(
        {s["prompt"] for s in summary["samples"]}
    ) == 3


@pytest.mark.parametrize(
    ("shares", "answers", "trials"),
    [
        ([1.0, 0.0, 0.0, 0.0], 4, 4.0),
        # Answers to an item that always agree say no more than one.
        ([1.0, 0.0, 0.0, 0.0], 16, 4.0),
        ([0.5, 0.5, 0.5, 0.5], 8, 4.0),
        ([0.75, 0.25], 8, 8.0),
        ([1.0, 1.0], 2, 2.0),
    ],
)
def test_answers_to_one_item_count_as_many_as_they_are_worth(
    shares: list[float], answers: int, trials: float
) -> None:
    centre = sum(shares) / len(shares)
    assert interval_of_shares(shares, answers) == pytest.approx(wilson_interval(centre * trials, trials))


def test_without_items_nothing_is_known() -> None:
    assert interval_of_shares([], 0) == (0.0, 1.0)


def test_a_mean_change_over_tasks_has_the_interval_of_independent_items() -> None:
    sums = ([0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0])
    middle, low, high = mean_change([sums])
    assert middle == 0.5 and high - middle == pytest.approx(1.96 * math.sqrt(1 / 3 / 4), rel=1e-3)
    assert (middle - low) == pytest.approx(high - middle)
    # A second task in which nothing changes halves the change and its error.
    two = mean_change([sums, ([1.0] * 5, [1.0] * 5)])
    assert two == pytest.approx((0.25, (low - middle) / 2 + 0.25, (high - middle) / 2 + 0.25))
    assert mean_change([([0.0], [1.0])]) == (1.0, -math.inf, math.inf)


def test_answers_with_half_of_a_surrogate_pair_come_back_as_they_were(tmp_path: Path) -> None:
    given = {"after": [a | {"id": n, "prompt": "\ud800é"} for n, a in enumerate(answers("rw"))]}
    store_answers(tmp_path / "answers.jsonl", given)
    assert stored_answers(tmp_path / "answers.jsonl") == given
