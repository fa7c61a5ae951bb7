"""Maps from the teacher's space into the student's: against pseudo-inverses and least squares in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from in_memory import HEADS, PAIRS, prepared
from torch import Tensor

from semalign.config import EvaluationConfig, RecipeConfig
from semalign.errors import CacheError, ModelError
from semalign.maths.head import HeadOptions
from semalign.models.head import Head
from semalign.run.files import Record, write_tensors
from semalign.signals import maps
from semalign.signals.maps import Maps, fit_maps, head_maps, to_targets
from semalign.signals.plan import Plan
from semalign.signals.request import Request, own_name, position_name, target_name, teacher_name
from semalign.signals.stores import Stores

D, E = 7, 5
CPU = torch.device("cpu")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_maps_are_fitted_on_a_gpu_that_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 200))
    assert maps.with_room(gpu, 49) == gpu and maps.with_room(gpu, 50) == cpu and maps.with_room(cpu, 1) == cpu


def test_maps_from_the_heads_are_their_pseudo_inverses() -> None:
    theirs, own = drawn(40, D).double(), drawn(40, E, seed=1).double()
    norms = drawn(D, seed=2).abs() + 0.5, drawn(E, seed=3).abs() + 0.5
    found = head_maps(
        Head(theirs.float()), Head(own.float()), norms, [("semantic", "mlp"), ("logit", "block")]
    )
    bases = [torch.linalg.pinv(w) for w in (theirs, own)]
    semantic = [b / b.norm(dim=0) for b in bases]
    assert set(found) == {"semantic", "logit"}
    torch.testing.assert_close(found["semantic"].double(), semantic[1] @ semantic[0].T, rtol=1e-4, atol=1e-5)
    logit = torch.linalg.pinv(own * norms[1].double()) @ (theirs * norms[0].double())
    torch.testing.assert_close(found["logit"].double(), logit, rtol=1e-4, atol=1e-5)


def test_maps_that_are_fitted_or_none_are_not_made_from_heads() -> None:
    wanted = [
        (name, "block") for name in ("ridge", "agreement_ridge", "weighted_ridge", "procrustes", "none")
    ]
    assert head_maps(Head(drawn(9, D)), Head(drawn(9, E)), (drawn(D), drawn(E)), wanted) == {}


def stores(folder: Path, map_name: Any, plan: Plan = PAIRS) -> tuple[Stores, dict[int, Record]]:
    """A student's store and the teacher's raw records of six samples, of made-up numbers with D and E channels."""
    recipe = RecipeConfig(
        "aligned", map=map_name, layer_weight=1.0, interface="head" if plan.heads else "block"
    )
    made = prepared(folder, plan=plan, recipe=recipe).stores
    draw, raw = torch.Generator().manual_seed(0), {}
    places = [(i, p.place) for i in made.request.interfaces for p in made.request.at(i)]
    mixing = torch.randn(D, E, generator=draw)
    own: dict[int, Record] = {}
    for number in range(6):
        rows = 5 + number
        x = {key: torch.randn(rows, D, generator=draw) + 1 for key in places}
        raw[number] = {teacher_name(*key): x[key] for key in places}
        logp = torch.randn(rows, 4, generator=draw).mul(3).log_softmax(1)
        raw[number] |= {position_name("teacher_logp"): logp, position_name("valid"): logp < -0.1}
        student = logp + torch.randn(rows, 4, generator=torch.Generator().manual_seed(number))
        raw[number][position_name("student_logp")] = student.log_softmax(1)
        own[number] = {
            own_name(*key): x[key] @ mixing + 0.3 * torch.randn(rows, E, generator=draw) - 2 for key in places
        }
    for shard, numbers in enumerate(made.student.plan):
        made.student.write(shard, [own[n] for n in numbers])
    return made, raw


def fitted(made: Stores, raw: dict[int, Record], penalty: float = 0.1) -> dict[str, Tensor]:
    return fit_maps(made, lambda batch: [raw[n] for n in batch], penalty, (D, E), CPU)


def solved(x: Tensor, y: Tensor, weights: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weighted ridge regression with a bias as one plain least-squares problem, the penalty as further rows."""
    x, y, weights = x.double(), y.double(), weights.double()
    means = [(weights[:, None] * z).sum(0) / weights.sum() for z in (x, y)]
    root = weights.sqrt()[:, None]
    x0, y0 = (root * (z - mean) for z, mean in zip((x, y), means, strict=True))
    shift = (penalty * x0.square().sum(0).mean()).sqrt() * torch.eye(D, dtype=torch.float64)
    rows, aims = torch.cat([x0, shift]), torch.cat([y0, torch.zeros(D, E, dtype=torch.float64)])
    matrix = torch.linalg.lstsq(rows, aims).solution.T
    return matrix, means[1] - matrix @ means[0]


@pytest.mark.parametrize("map_name", ["ridge", "weighted_ridge", "agreement_ridge"])
def test_fitted_maps_are_those_of_least_squares_over_all_rows(tmp_path: Path, map_name: str) -> None:
    made, raw = stores(tmp_path, map_name)
    found = fitted(made, raw)
    assert {key for key in found if not key.endswith(".bias")} == {
        f"{map_name}.block.2",
        f"{map_name}.block.3",
    }
    logp, own, valid = (
        torch.cat([raw[n][position_name(key)] for n in range(6)])
        for key in ("teacher_logp", "student_logp", "valid")
    )
    weights = torch.ones(len(logp))
    if map_name == "weighted_ridge":
        weights = 1 - torch.where(valid, logp.exp() ** 2, 0.0).sum(1)
    if map_name == "agreement_ridge":
        p, q = (torch.where(valid, one.exp(), 0.0) for one in (logp, own))
        # What is left outside, which rounding may not make 0.
        p, q = (torch.cat((x, (1 - x.sum(1, keepdim=True)).clamp_min(1.2e-7)), 1) for x in (p, q))
        weights = (-torch.where(p > 0, p * (p / q).log(), 0.0).sum(1)).exp()
    if map_name != "ridge":
        assert float(weights.min()) > 1e-3 and float(weights.max() / weights.min()) > 2
    for place in ("2", "3"):
        x = torch.cat([raw[n][teacher_name("block", place)] for n in range(6)])
        y = torch.cat([made.student.read(n)[own_name("block", place)] for n in range(6)])
        matrix, bias = solved(x, y, weights, 0.1)
        torch.testing.assert_close(found[f"{map_name}.block.{place}"].double(), matrix, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            found[f"{map_name}.block.{place}.bias"].double(), bias, rtol=1e-4, atol=1e-5
        )


def test_a_position_of_which_the_teacher_is_sure_still_counts_a_little(tmp_path: Path) -> None:
    made, raw = stores(tmp_path, "weighted_ridge")
    for record in raw.values():
        record[position_name("teacher_logp")][:, 0] = 0.0
        record[position_name("teacher_logp")][:, 1:] = -60.0
        record[position_name("valid")][:] = True
    x = torch.cat([raw[n][teacher_name("block", "2")] for n in range(6)])
    y = torch.cat([made.student.read(n)[own_name("block", "2")] for n in range(6)])
    matrix, _ = solved(x, y, torch.ones(len(x)), 0.1)
    torch.testing.assert_close(
        fitted(made, raw)["weighted_ridge.block.2"].double(), matrix, rtol=1e-4, atol=1e-5
    )


def test_a_procrustes_map_is_a_scaled_rotation(tmp_path: Path) -> None:
    made, raw = stores(tmp_path, "procrustes")
    matrix = fitted(made, raw)["procrustes.block.3"].double()
    square = matrix @ matrix.T
    torch.testing.assert_close(square, square[0, 0] * torch.eye(E).double(), rtol=1e-4, atol=1e-5)


def test_heads_have_maps_of_their_own(tmp_path: Path) -> None:
    made, raw = stores(tmp_path, "ridge", HEADS)
    assert {k for k in fitted(made, raw) if not k.endswith(".bias")} == {"ridge.head.2h1", "ridge.head.3h3"}


def test_nothing_is_fitted_where_no_map_is(tmp_path: Path) -> None:
    assert fitted(*stores(tmp_path, "semantic")) == {}


def test_each_process_adds_up_the_shards_that_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, raw = stores(tmp_path, "ridge")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    asked: list[int] = []

    def source(batch: list[int]) -> list[Record]:
        asked.extend(batch)
        return [raw[n] for n in batch]

    fit_maps(made, source, 0.1, (D, E), CPU)
    assert asked == made.teacher.plan[1]


def test_a_fitted_map_is_applied_with_its_bias_at_its_own_place() -> None:
    matrices = {f"ridge.block.{k}": drawn(E, D, seed=k) for k in (2, 3)}
    biases = {f"ridge.block.{k}.bias": drawn(E, seed=9 + k) for k in (2, 3)}
    hidden = drawn(4, D)
    for k in (2, 3):
        found = Maps(matrices | biases).apply(hidden, "ridge", "block", str(k))
        expected = hidden @ matrices[f"ridge.block.{k}"].T + biases[f"ridge.block.{k}.bias"]
        torch.testing.assert_close(found, expected)


def test_a_map_from_the_heads_serves_every_place_and_a_semantic_one_reads_directions() -> None:
    made, hidden = Maps({"logit": drawn(E, D), "semantic": drawn(E, D, seed=1)}), drawn(4, D)
    torch.testing.assert_close(made.apply(hidden, "logit", "mlp", "1"), hidden @ drawn(E, D).T)
    assert torch.equal(made.apply(hidden, "logit", "mlp", "1"), made.apply(hidden, "logit", "block", "2"))
    unit = hidden / hidden.norm(dim=1, keepdim=True)
    torch.testing.assert_close(made.apply(hidden, "semantic", "mlp", "1"), unit @ drawn(E, D, seed=1).T)
    torch.testing.assert_close(made.apply(7 * hidden, "semantic", "mlp", "1"), unit @ drawn(E, D, seed=1).T)


def test_half_precision_activations_are_mapped_in_float32() -> None:
    hidden = drawn(4, D).bfloat16()
    found = Maps({"logit": drawn(E, D)}).apply(hidden, "logit", "block", "1")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, hidden.float() @ drawn(E, D).T)


def test_maps_come_back_from_their_file_and_a_missing_one_names_the_step(tmp_path: Path) -> None:
    tensors = {"ridge.block.2": drawn(E, D), "ridge.block.2.bias": drawn(E)}
    write_tensors(tmp_path / "maps.safetensors", tensors)
    found = Maps.read(tmp_path / "maps.safetensors").tensors
    assert found.keys() == tensors.keys() and all(torch.equal(found[k], v) for k, v in tensors.items())
    with pytest.raises(CacheError, match=r"nothing\.safetensors: cannot be read.*run `semalign cache` again"):
        Maps.read(tmp_path / "nothing.safetensors")


def test_targets_replace_raw_activations_and_the_rest_stays() -> None:
    request = Request(pairs=PAIRS.pairs)
    wanted = [("ridge", "block"), ("none", "block")]
    raw = {teacher_name("block", k): drawn(4, D, seed=n).half() for n, k in enumerate(("2", "3"))}
    others = {"positions.ids": torch.arange(8).view(4, 2), "positions.teacher_output": drawn(4, D)}
    raws = {f"none.block.{k}": torch.full((1,), 0.5) for k in ("2", "3")}
    raws |= {f"none.block.{k}.bias": drawn(1, D)[0] for k in ("2", "3")}
    made = Maps({"ridge.block.2": drawn(E, D), "ridge.block.3": drawn(E, D, seed=1)} | raws)
    found = to_targets(raw | others, made, wanted, request)
    targets = {target_name(name, "block", k) for name in ("ridge", "none") for k in ("2", "3")}
    assert found.keys() == targets | others.keys()
    assert all(found[key] is value for key, value in others.items())
    for n, k in enumerate(("2", "3")):
        standard = raw[teacher_name("block", k)].float() / 2 + drawn(1, D)
        torch.testing.assert_close(
            found[target_name("none", "block", k)].float(), standard, rtol=1e-3, atol=1e-3
        )
        target = found[target_name("ridge", "block", k)]
        expected = raw[teacher_name("block", k)].float() @ drawn(E, D, seed=n).T
        assert target.dtype == torch.float16
        torch.testing.assert_close(target.float(), expected, rtol=1e-3, atol=1e-3)


def test_targets_that_the_stored_type_cannot_hold_are_refused() -> None:
    request, wanted = Request(pairs=PAIRS.pairs[:1]), [("ridge", "block")]
    raw = {teacher_name("block", "2"): torch.full((4, D), 100.0).half()}
    large = Maps({"ridge.block.2": torch.full((E, D), 100.0)})
    with pytest.raises(
        ModelError,
        match=r"positions\.target\.ridge\.block\.2 holds values up to 7e\+04, too large for cache\.dtype: float16",
    ):
        to_targets(raw, large, wanted, request)
    whole = {key: value.bfloat16() for key, value in raw.items()}
    assert torch.isfinite(to_targets(whole, large, wanted, request)[target_name("ridge", "block", "2")]).all()
    broken = Maps({"ridge.block.2": torch.full((E, D), torch.nan)})
    with pytest.raises(ModelError, match=r"target\.ridge\.block\.2 holds NaN .*; choose another recipe\.map"):
        to_targets(raw, broken, wanted, request)


def test_a_run_with_baselines_has_a_target_for_every_map_and_interface(tmp_path: Path) -> None:
    made = prepared(tmp_path, evaluation=EvaluationConfig(baselines=("cosine", "hidden_mse"))).stores
    record = {teacher_name(i, k): drawn(4, D) for i in ("block", "mlp") for k in ("2", "3")}
    tensors = {"ridge.block.2": drawn(E, D), "ridge.block.3": drawn(E, D), "semantic": drawn(E, D)}
    tensors |= {f"none.block.{k}{end}": torch.ones(1) for k in ("2", "3") for end in ("", ".bias")}
    found = to_targets(record, Maps(tensors), made.wanted, made.request)
    kinds = (("ridge", "block"), ("semantic", "mlp"), ("none", "block"))
    assert found.keys() == {target_name(*kind, k) for kind in kinds for k in ("2", "3")}


def test_a_bias_of_the_heads_changes_no_map() -> None:
    own, theirs, norms = drawn(40, E), drawn(40, D), (torch.ones(D), torch.ones(E))
    plain = head_maps(Head(theirs), Head(own), norms, [("semantic", "mlp")])
    biased = Head(theirs, HeadOptions(drawn(40), 2.0, 30.0))
    assert torch.equal(
        head_maps(biased, Head(own), norms, [("semantic", "mlp")])["semantic"], plain["semantic"]
    )
