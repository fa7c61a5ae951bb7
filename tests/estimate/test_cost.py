"""What a run will cost: bytes counted against real records, seconds and rows by hand."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from in_memory import CACHE, HEADS, PAIRS, prepared, samples
from tiny import full_weights

from semalign.cli import main
from semalign.config import AttributionConfig, EvaluationConfig, RecipeConfig
from semalign.estimate import cost
from semalign.estimate.cost import Sizes, estimate, record_sizes
from semalign.estimate.probe import Costs
from semalign.run.files import Record
from semalign.signals.maps import Maps, to_targets
from semalign.signals.passes import student_signals, teacher_signals
from semalign.signals.prepared import Prepared


def test_the_cache_estimate_is_close_to_what_is_written(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(config_file), "--json", "--quiet"]) == 0
    estimated = json.loads(capsys.readouterr().out)["estimate"]["cache_bytes"]
    assert main(["transfer", str(config_file), "--quiet", "--json"]) == 0
    written = json.loads((config_file.parent / "run" / "targets" / "manifest.json").read_text())["bytes"]
    assert estimated == pytest.approx(written, rel=0.15)


def nbytes(records: list[Record], kind: str) -> int:
    """Of all tensors with one row a token, or one a supervised position."""
    return sum(t.nbytes for record in records for key, t in record.items() if key.startswith(kind))


RUNS: dict[str, dict[str, Any]] = {
    "default": {},
    "half precision": {"cache": replace(CACHE, dtype="bfloat16", top_k=3)},
    "from the heads": {"recipe": "cosine"},
    "outputs": {"recipe": "kl"},
    "raw targets": {"recipe": "hidden_mse"},
    "no teacher": {"recipe": "cross_entropy"},
    "weighted": {"recipe": RecipeConfig("aligned", map="weighted_ridge")},
    "rotation": {"recipe": RecipeConfig("cosine", map="procrustes")},
    "several": {"evaluation": EvaluationConfig(baselines=("cosine", "kl", "hidden_mse", "fisher"))},
    "heads": {"plan": HEADS, "recipe": RecipeConfig("aligned", interface="head", layer_weight=1.0)},
    "eight bits": {"cache": replace(CACHE, prefix_dtype="int8")},
    "whole student": {"train": full_weights(cache_prefix=False)},
    "one pair": {"plan": replace(PAIRS, pairs=PAIRS.pairs[:1])},
}


@pytest.mark.parametrize("name", RUNS)
def test_bytes_are_those_of_the_records_that_a_run_stores(name: str, tmp_path: Path) -> None:
    of = prepared(tmp_path, **RUNS[name])
    request, wanted, inputs = of.stores.request, of.stores.wanted, of.inputs
    student, teacher = inputs.load_student(), inputs.load_teacher()
    head, quiet = student.head(), replace(request, top_k=0, teacher_output=True)
    # The maps' values change no size.
    tensors = {
        f"{m}.{i}.{p.place}": torch.zeros(1) if m == "none" else torch.zeros(32, 48)
        for m, i in wanted
        for p in request.at(i)
    }
    tensors |= {f"{key}.bias": torch.zeros(1) for key in list(tensors) if key.startswith("none.")}
    maps = Maps(tensors | {name: torch.zeros(32, 48) for name, _ in wanted})

    def targets(records: list[Record]) -> list[Record]:
        return [to_targets(record, maps, wanted, request) for record in records]

    own = student_signals(student, inputs.train, request) if request.needs_student else []
    theirs: list[Record] = []
    if request.needs_teacher:
        theirs = teacher_signals(teacher, inputs.train, request, own, head, inputs.candidates)
    heldout = teacher_signals(teacher, inputs.heldout, quiet, [], head, inputs.candidates)
    tokens = sum(len(s.input_ids) for s in inputs.train)
    positions, held = (sum(s.supervised for s in rows) for rows in (inputs.train, inputs.heldout))
    found = record_sizes(request, wanted, 48, 32)
    assert found.token * tokens == nbytes(own, "tokens")
    assert found.position * positions == nbytes([*own, *targets(theirs)], "positions")
    assert found.heldout * held == nbytes(targets(heldout), "positions")
    is_fitted = bool({name for name, _ in wanted} & {"ridge", "weighted_ridge", "procrustes", "none"})
    assert found.raw * positions == (nbytes(theirs, "positions") if is_fitted else 0)
    assert found.raw_heldout * held == (nbytes(heldout, "positions") if is_fitted else 0)


SIZES = Sizes(token=3, position=10, heldout=100, raw=1_000, raw_heldout=10_000)
RATES = {
    "load_teacher": 1.0,
    "load_student": 10.0,
    "collect": 100.0,
    "attribute": 0.5,
    "cache_student": 0.25,
    "cache_teacher": 0.125,
    "train": 2.0,
}


@pytest.fixture
def estimated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The estimate of a run of 6 training rows (73 tokens, 49 supervised) and 3 held-out ones (36 and 24)."""
    monkeypatch.setattr(cost, "record_sizes", lambda *_: SIZES)

    def of(peak_gpu: int | None = None, **options: Any) -> dict[str, Any]:
        made: Prepared = prepared(tmp_path / "run", **options)
        return estimate(made.config, made.inputs, made.plan, Costs(dict(RATES), 77, peak_gpu))

    return of


def counted(rows: list[Any]) -> tuple[int, int]:
    return sum(len(s.input_ids) for s in rows), sum(sum(s.mask) for s in rows)


def test_bytes_are_counted_a_token_and_a_position(estimated: Any) -> None:
    (tokens, positions), (_, held) = counted(samples(6)), counted(samples(3, first=6))
    found = estimated()
    assert found["cache_bytes"] == 3 * tokens + 10 * positions + 100 * held
    assert found["disk_bytes"] - found["cache_bytes"] == 1_000 * positions + 10_000 * held
    assert found["peak_bytes"] == 77 and "peak_gpu_bytes" not in found
    assert estimated(peak_gpu=5)["peak_gpu_bytes"] == 5


def test_seconds_are_scaled_to_all_rows(estimated: Any) -> None:
    tokens, held = counted(samples(6))[0], counted(samples(3, first=6))[0]
    found = estimated(train=full_weights(num_train_epochs=4))["seconds"]
    assert found["attribute"] == pytest.approx(1 + 0.5 * tokens, abs=0.01)
    expected = 1 + 10 + 0.25 * tokens + 0.125 * (tokens + held) + 300
    assert found["cache"] == pytest.approx(expected, abs=0.01)
    assert found["train"] == pytest.approx(2 * 4 * tokens + 110, abs=0.01)


def test_attribution_reads_so_many_rows(estimated: Any) -> None:
    found = estimated(attribution=AttributionConfig(rows=2))["seconds"]["attribute"]
    assert found == pytest.approx(1 + 0.5 * counted(samples(2))[0], abs=0.01)


def test_a_number_of_steps_stands_in_place_of_epochs(estimated: Any) -> None:
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    found = estimated(train=full_weights(max_steps=5, num_train_epochs=99, **options))["seconds"]["train"]
    assert found == pytest.approx(2 * 5 * counted(samples(6))[0] + 110, abs=0.01), (
        "a step of six rows is an epoch"
    )


def test_every_baseline_opens_a_student_of_its_own(estimated: Any) -> None:
    alone = estimated()["seconds"]["train"]
    both = estimated(evaluation=EvaluationConfig(baselines=("kl", "cosine")))["seconds"]["train"]
    assert both - alone == pytest.approx(2 * (10 + 100), abs=0.01)


def test_every_round_caches_and_trains_and_the_held_out_rows_are_read_once(estimated: Any) -> None:
    held = counted(samples(3, first=6))[0]
    once, thrice = (estimated(train=full_weights(num_train_epochs=2, rounds=n)) for n in (1, 3))
    cached, trained = (thrice["seconds"][step] for step in ("cache", "train"))
    assert cached == pytest.approx(3 * once["seconds"]["cache"] - 2 * 0.125 * held, abs=0.1)
    assert trained == pytest.approx(3 * once["seconds"]["train"], abs=0.1)
    assert thrice["disk_bytes"] - once["disk_bytes"] == once["cache_bytes"], "two caches at most"


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("folder", "expected"),
    [(None, "."), ("disk/not/yet/there", "disk"), ("s3://bucket/run", ".")],
    ids=["targets", "a local folder", "a remote one is written here first"],
)
def test_free_space_is_that_of_the_disk_where_shards_are_written(
    estimated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str | None, expected: str
) -> None:
    (tmp_path / "disk").mkdir()
    asked: list[Path] = []
    monkeypatch.setattr(cost, "is_remote", lambda name: "://" in name)
    monkeypatch.setattr(cost.shutil, "disk_usage", lambda path: asked.append(path) or Usage(9, 5, 4))
    given = str(tmp_path / folder) if folder == "disk/not/yet/there" else folder
    config = replace(prepared(tmp_path / "run").config, cache=replace(CACHE, folder=given))
    inputs = prepared(tmp_path / "run").inputs
    found = estimate(config, inputs, PAIRS, Costs(dict(RATES)))
    assert found["free_bytes"] == 4 and asked == [(tmp_path / expected).resolve()]
