"""The cache step: what it leaves, what it keeps, what it makes again, where it stops."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from in_memory import CACHE, HEADS, cached, prepared
from tiny import full_weights, tiny_config
from torch.nn.functional import cosine_similarity

from semalign.config import CacheConfig, EvaluationConfig, PairingConfig, RecipeConfig
from semalign.errors import CacheError
from semalign.maths.similarity import linear_cka
from semalign.run.files import read_json, read_tensors
from semalign.run.folder import save_result
from semalign.signals import passes
from semalign.signals.passes import layer_states, stream_of
from semalign.signals.prepared import Prepared
from semalign.signals.request import PREFIX
from semalign.signals.shards import ShardStore
from semalign.steps import cache as step
from semalign.steps.cache import cache, error_figures
from semalign.steps.pipeline import transfer

COLLECT = gc.collect


@pytest.fixture(autouse=True)
def no_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection of garbage takes longer than a whole tiny cache."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A cache for the default recipe and a few baselines."""
    evaluation = EvaluationConfig(baselines=("cosine", "kl", "hidden_mse"), cka_rows=2)
    return cached(tmp_path_factory.mktemp("cached"), evaluation=evaluation)


def manifest(of: Prepared) -> dict[str, Any]:
    return json.loads(of.run.manifest.read_text())


@pytest.mark.parametrize("store", ["student", "teacher"])
def test_a_damaged_shard_is_rebuilt_alone_and_bit_by_bit(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, store: str
) -> None:
    options = {"pairing": PairingConfig(num_layers=2), "cache": CacheConfig(shard_rows=8)}
    config = tiny_config(tiny_pair, rows_file, tmp_path / "run", heldout_rows=0, **options)
    steps = ("attribute", "pair", "cache")
    run = transfer(config, steps)
    shards = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.targets.rglob("shard-*.safetensors")}
    broken = run.targets / store / "shard-00001.safetensors"
    broken.write_bytes(shards[broken][0][:-9])
    transfer(config, steps)
    for path, (data, changed) in shards.items():
        assert path.read_bytes() == data
        assert (path.stat().st_mtime_ns == changed) == (path != broken)


def test_the_manifest_counts_what_was_read_and_written(made: Prepared) -> None:
    found, rows = manifest(made), made.inputs.train
    assert found["samples"] == len(rows) and found["processes"] == 1 and found["top_k"] == CACHE.top_k
    assert found["tokens"] == sum(len(s.input_ids) for s in rows)
    assert found["supervised_tokens"] == sum(sum(s.mask) for s in rows)
    assert found["bytes"] == sum(p.stat().st_size for p in made.run.targets.rglob("shard-*.safetensors"))
    assert 0 < found["student_seconds"] <= found["seconds"] and found["peak_rss_bytes"] > 0
    assert found["prefix_error"] is None


def test_targets_are_the_raw_activations_through_the_maps_of_the_run(made: Prepared) -> None:
    maps, teacher = read_tensors(made.run.targets / "maps.safetensors"), made.inputs.load_teacher()
    request = replace(made.stores.request, top_k=0)
    for store, rows in ((made.stores.teacher, made.inputs.train), (made.stores.heldout, made.inputs.heldout)):
        raw = passes.teacher_signals(teacher, rows, request, [], teacher.head(), torch.tensor([1]))
        for number, record in enumerate(raw):
            stored = store.read(number)
            for k in ("2", "3"):
                block, mlp = record[f"positions.teacher.block.{k}"], record[f"positions.teacher.mlp.{k}"]
                expected = {
                    f"positions.target.ridge.block.{k}": block @ maps[f"ridge.block.{k}"].T
                    + maps[f"ridge.block.{k}.bias"],
                    f"positions.target.semantic.mlp.{k}": mlp
                    / mlp.norm(dim=1, keepdim=True)
                    @ maps["semantic"].T,
                    f"positions.target.none.block.{k}": block * maps[f"none.block.{k}"]
                    + maps[f"none.block.{k}.bias"],
                }
                for key, value in expected.items():
                    torch.testing.assert_close(stored[key], value, rtol=1e-3, atol=1e-4)
            assert not [key for key in stored if key.startswith("positions.teacher.")]
    assert not (made.run.targets / "raw").exists()


def test_held_out_rows_have_the_teachers_output_and_no_top_k(made: Prepared) -> None:
    keys = set(made.stores.heldout.read(0))
    assert "positions.teacher_output" in keys and "positions.target.ridge.block.2" in keys
    assert not keys & {"positions.ids", "positions.valid", "positions.rest.1"}


def test_alignment_is_the_mean_cosine_over_all_positions_of_every_pair_and_map(made: Prepared) -> None:
    found = {(line["map"], line["interface"], line["student"]): line for line in manifest(made)["alignment"]}
    assert set(found) == {(m, i, k) for m, i in (("ridge", "block"), ("semantic", "mlp")) for k in (2, 3)}
    for (name, interface, k), line in found.items():
        read = (made.stores.teacher.read, made.stores.student.read)
        keys = (f"positions.target.{name}.{interface}.{k}", f"positions.own.{interface}.{k}")
        x, y = (torch.cat([r(n, [key])[key] for n in range(6)]) for r, key in zip(read, keys, strict=True))
        assert line["cosine"] == pytest.approx(float(cosine_similarity(x, y, dim=1).mean()), rel=1e-5)
    assert found["ridge", "block", 2]["fraction"] == 0.5


def test_the_teachers_head_and_its_streams_on_a_few_rows_are_kept(made: Prepared) -> None:
    teacher = made.inputs.load_teacher()
    assert torch.equal(made.teacher_head.weight_VD, teacher.head().weight_VD)
    streams = read_tensors(made.run.targets / "cka.safetensors")
    assert set(streams) == {f"layer.{n}" for n in range(1, 6)}
    expected = layer_states(teacher, made.inputs.heldout[:2])
    for key, value in streams.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)
        assert linear_cka(value, value) == pytest.approx(1)


def test_no_streams_are_kept_where_no_heat_map_is_asked_for(tmp_path: Path) -> None:
    of = cached(tmp_path, evaluation=EvaluationConfig(cka_rows=0), recipe="kl")
    assert not (of.run.targets / "cka.safetensors").exists() and (of.run.targets / "manifest.json").exists()


def test_a_control_without_a_teacher_leaves_its_rows_streams_alone(tmp_path: Path) -> None:
    of = cached(tmp_path, recipe="cross_entropy")
    assert not list((tmp_path / "targets" / "teacher").glob("shard-*"))
    assert set(of.stores.student.read(0)) == {PREFIX}
    assert manifest(of)["alignment"] == [] and read_tensors(of.run.targets / "maps.safetensors") == {}


def test_pairs_of_heads_have_maps_and_targets_of_their_own(tmp_path: Path) -> None:
    of = cached(tmp_path, plan=HEADS, recipe=RecipeConfig("aligned", interface="head", layer_weight=1.0))
    assert {"ridge.head.2h1", "ridge.head.3h3"} <= read_tensors(of.run.targets / "maps.safetensors").keys()
    assert {"positions.target.ridge.head.2h1"} <= of.stores.teacher.read(0).keys()
    lines = manifest(of)["alignment"]
    assert [(line["student_head"], line["teacher_head"]) for line in lines] == [(1, 2), (3, 4)]


def test_the_error_of_eight_bit_streams_is_on_record(tmp_path: Path) -> None:
    eight = cached(tmp_path / "eight", cache=replace(CACHE, prefix_dtype="int8"), recipe="cross_entropy")
    exact = cached(tmp_path / "exact", recipe="cross_entropy")
    errors = []
    for n in range(6):
        kept, true = stream_of(eight.stores.student.read(n)), exact.stores.student.read(n)[PREFIX]
        errors.append((kept - true).norm(dim=1) / true.norm(dim=1))
    found = manifest(eight)["prefix_error"]
    assert found["mean"] == pytest.approx(float(torch.cat(errors).mean()), rel=1e-2)
    assert found["worst"] == pytest.approx(float(torch.cat(errors).max()), rel=1e-2)


def test_error_figures_are_of_tokens_not_of_rows() -> None:
    found = error_figures([torch.tensor([1.0]).half(), torch.tensor([2.0, 3.0, 6.0]).half()])
    assert found == {"mean": 3.0, "worst": 6.0}


def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("student_signals", "teacher_signals"):
        monkeypatch.setattr(step, name, lambda *_: pytest.fail("a model was run"))


def test_a_whole_cache_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(tmp_path, recipe="kl")
    refusing(monkeypatch)
    dates = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.*")}
    cached(tmp_path, recipe="kl")
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.*")} == dates


def test_a_stale_cache_is_named_and_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cached(tmp_path, recipe="kl")
    caplog.clear()
    of = cached(tmp_path, recipe="kl", cache=replace(CACHE, dtype="float16"))
    assert "cached activations are stale (dtype: 'float32' -> 'float16')" in caplog.text
    assert of.stores.student.read(0)[PREFIX].dtype == torch.float16
    assert manifest(of)["fingerprint"]["dtype"] == "float16"


class StopError(Exception):
    """A cache step was cut off by its test."""


@pytest.mark.parametrize("shards", [2, 6])
def test_a_step_that_was_cut_off_goes_on_to_the_same_records(
    made: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    options: dict[str, Any] = {"evaluation": made.config.evaluation}
    with monkeypatch.context() as patch:
        write, left = ShardStore.write, shards

        def stopping(self: ShardStore, *arguments: Any) -> int:
            nonlocal left
            left -= 1
            if left < 0:
                raise StopError
            return write(self, *arguments)

        patch.setattr(ShardStore, "write", stopping)
        with pytest.raises(StopError):
            cached(tmp_path, **options)
    assert not (tmp_path / "targets" / "manifest.json").exists()
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("shard-*.safetensors")}
    assert len(kept) == shards
    taken = tmp_path / "targets" / "seconds.part"
    save_result(taken, read_json(taken, "cache")["fingerprint"], {"seconds": 1000.0})
    of = cached(tmp_path, **options)
    assert read_json(of.run.manifest, "cache")["seconds"] > 1000 and not taken.exists(), "both tries count"
    assert all(p.stat().st_mtime_ns == date for p, date in kept.items() if p.exists())
    for name in ("student", "teacher", "heldout"):
        ours, expected = getattr(of.stores, name), getattr(made.stores, name)
        for number in (n for shard in expected.plan for n in shard):
            record = expected.read(number)
            assert all(torch.equal(ours.read(number)[key], value) for key, value in record.items())


def test_a_rebuilt_shard_goes_through_the_maps_that_made_the_others(tmp_path: Path) -> None:
    of = cached(tmp_path)
    before = of.run.targets / "maps.safetensors"
    date, broken = before.stat().st_mtime_ns, of.run.targets / "teacher" / "shard-00000.safetensors"
    data = broken.read_bytes()
    broken.unlink()
    cached(tmp_path)
    assert broken.read_bytes() == data and before.stat().st_mtime_ns == date


def test_a_cache_that_would_grow_too_large_stops_before_the_shard_and_names_the_options(
    tmp_path: Path,
) -> None:
    cached(tmp_path / "whole", recipe="kl")
    sizes = {p: p.stat().st_size for p in (tmp_path / "whole").rglob("*.safetensors")}
    (last,) = (size for p, size in sizes.items() if p.parent.name == "heldout")
    most = sum(sizes.values()) - last
    with pytest.raises(CacheError, match=rf"cache\.max_bytes: .*{most} .*data\.max_rows, cache\.top_k"):
        cached(tmp_path / "small", recipe="kl", cache=replace(CACHE, max_bytes=most))
    left = {p.relative_to(tmp_path / "small") for p in (tmp_path / "small").rglob("*.safetensors")}
    assert left == {p.relative_to(tmp_path / "whole") for p in sizes if p.parent.name != "heldout"}
    cached(tmp_path / "small", recipe="kl", cache=replace(CACHE, max_bytes=most + last))


def test_no_stream_is_kept_where_the_whole_student_is_trained(tmp_path: Path) -> None:
    of = cached(tmp_path, recipe="kl", train=full_weights(cache_prefix=False))
    assert not list((tmp_path / "targets" / "student").glob("shard-*"))
    assert of.stores.teacher.read(0).keys() == {"positions.teacher_output"}


def test_both_models_are_opened_once_and_never_together(tmp_path: Path) -> None:
    of = prepared(tmp_path)
    opened: list[str] = []
    alive: list[Any] = []

    def opening(name: str, make: Any) -> Any:
        def open_one() -> Any:
            if alive:
                COLLECT()
            assert not [ref for ref in alive if ref() is not None], "the other model is still in memory"
            opened.append(name)
            decoder = make()
            alive.append(weakref.ref(decoder.model))
            return decoder

        return open_one

    inputs = replace(
        of.inputs,
        open_teacher=opening("teacher", of.inputs.open_teacher),
        open_student=opening("student", of.inputs.open_student),
    )
    cache(replace(of, inputs=inputs))
    assert opened == ["student", "teacher"]
