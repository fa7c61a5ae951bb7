"""The look before a run: its figures against pseudo-inverses and whole models, its words, and where it refuses."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from in_memory import config_of as in_memory_config
from in_memory import inputs_of, samples
from rich.console import Console
from tiny import full_weights, tiny_config
from torch.nn.functional import cosine_similarity, normalize
from transformers import AutoModelForCausalLM

from semalign.cli import main
from semalign.config import (
    AttributionConfig,
    CacheConfig,
    DataConfig,
    PairingConfig,
    RecipeConfig,
    TransferConfig,
)
from semalign.data.inputs import load_inputs
from semalign.errors import CacheError, ConfigError, DataError
from semalign.estimate import check as module
from semalign.estimate.check import check
from semalign.run.folder import RunFolder
from semalign.signals.plan import Plan
from semalign.steps.pipeline import transfer

config_of = partial(
    tiny_config,
    attribution=AttributionConfig(rows=4),
    pairing=PairingConfig(num_layers=2, heads=2, rows=4),
    recipe=RecipeConfig("aligned", interface="head", layer_weight=1.0),
    train=full_weights(num_train_epochs=4, per_device_train_batch_size=4),
)


@pytest.fixture(scope="module", autouse=True)
def no_collections() -> Iterator[None]:
    """A collection of garbage takes longer than a tiny training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gc.collect", lambda *_: 0)
        yield


def test_check_shows_masks_heads_pairs_and_costs(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(config_file), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["heads"]["teacher"]["rank"] == 48 and found["heads"]["student"]["rank"] == 32
    assert found["estimate"]["cache_bytes"] > 0 and found["training_rows"] == 16
    assert "the answer is" in err and not (config_file.parent / "run").exists()


def test_an_estimate_counts_as_many_heads_as_there_are(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_pair, rows_file, tmp_path / "run", pairing=PairingConfig(num_layers=2, heads=99))
    found = check(config, Console(file=io.StringIO()))
    assert [line["pair"] for line in found["pair_figures"]][:4] == [
        "T3h1 → S2h1",
        "T3h2 → S2h2",
        "T3h3 → S2h3",
        "T3h4 → S2h4",
    ]
    assert len(found["pair_figures"]) == 8 and found["pairs_are_provisional"] is False


def looked(config: TransferConfig) -> tuple[dict[str, Any], str]:
    """What is found and what is printed."""
    console = Console(file=io.StringIO(), record=True, width=160)
    return check(config, console), console.export_text()


@pytest.fixture(scope="module")
def plain(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TransferConfig, dict[str, Any], str]:
    """A run of the default recipe, all of whose rows are one batch."""
    config = tiny_config(
        tiny_pair,
        rows_file,
        tmp_path_factory.mktemp("check") / "run",
        pairing=PairingConfig(num_layers=2, interpolate=True),
        cache=CacheConfig(dtype="float32", top_k=8, batch_size=99),
        attribution=AttributionConfig(rows=4),
        train=full_weights(per_device_train_batch_size=4),
    )
    return config, *looked(config)


Looked = tuple[TransferConfig, dict[str, Any], str]


def test_rows_and_tokens_are_those_of_the_run(plain: Looked) -> None:
    config, found, said = plain
    inputs = load_inputs(config)
    assert (found["training_rows"], found["heldout_rows"]) == (16, 4)
    assert found["supervised_tokens"] == sum(sum(s.mask) for s in inputs.train)
    assert found["shared_vocabulary"] == 320 and found["templates_agree"] is True
    assert f"16 training rows, {found['supervised_tokens']} supervised tokens, 4 held-out rows" in said
    assert "the first 320 ids are shared; chat templates agree" in said


def test_heads_have_the_rank_and_condition_of_their_singular_values(plain: Looked) -> None:
    config, found, said = plain
    for name, model in (("teacher", config.teacher), ("student", config.student)):
        weight = (
            AutoModelForCausalLM.from_pretrained(model.model_name_or_path).lm_head.weight.detach().double()
        )
        values = torch.linalg.svdvals(weight)
        condition = float(values[0] / values[-1])
        assert found["heads"][name] == {
            "width": weight.shape[1],
            "rank": int(torch.linalg.matrix_rank(weight)),
            "condition": pytest.approx(condition, abs=0.06),
        }
        assert f"{name}: head rank {weight.shape[1]} of {weight.shape[1]}, condition number" in said


@torch.no_grad()
def test_figures_of_a_pair_are_those_of_whole_models(plain: Looked) -> None:
    config, found, said = plain
    models = [
        AutoModelForCausalLM.from_pretrained(c.model_name_or_path) for c in (config.teacher, config.student)
    ]
    heads = [m.lm_head.weight.double() for m in models]
    bases = [normalize(torch.linalg.pinv(w), dim=0) for w in heads]
    gammas = [m.model.norm.weight.double() for m in models]
    logit = torch.linalg.pinv(heads[1] * gammas[1]) @ (heads[0] * gammas[0])
    streams: list[list[torch.Tensor]] = [[], []]
    for sample in load_inputs(config).train:
        states = torch.tensor([*sample.mask[1:], False])
        for side, model in zip(streams, models, strict=True):
            hidden = model(torch.tensor([sample.input_ids]), output_hidden_states=True).hidden_states
            side.append(torch.stack([h[0, states] for h in hidden[:-1]]).double())
    theirs, own = (torch.cat(side, 1) for side in streams)
    lines = {line["pair"]: line for line in found["pair_figures"]}
    assert list(lines) == ["T3.3 → S2", "T5 → S3"], "student layer 2 of 3 looks at teacher layer 10/3"
    line, h_S = lines["T3.3 → S2"], own[2]
    h_T = (2 / 3) * theirs[3] + (1 / 3) * theirs[4]
    unit = normalize(h_T, dim=1)
    figures = {
        "recomposition": cosine_similarity(unit @ bases[0] @ bases[0].T, h_T, dim=1),
        "semantic": cosine_similarity(unit @ bases[0] @ bases[1].T, h_S, dim=1),
        "logit": cosine_similarity(h_T @ logit.T, h_S, dim=1),
    }
    for name, values in figures.items():
        assert line[name] == pytest.approx(float(values.mean()), abs=2e-3), name
        assert f"{line[name]:.3f}" in said


def test_one_row_is_shown_with_its_supervised_part_in_brackets(plain: Looked) -> None:
    _, _, said = plain
    assert "one row, supervised part in brackets" in said
    assert "⟦the answer is 0<|end|>⟧" in said.split("brackets:")[1].split("heads and pairs")[0]


def test_costs_are_told_and_no_run_is_started(plain: Looked) -> None:
    config, found, said = plain
    cost = found["estimate"]
    assert f"cache {cost['cache_bytes'] / 2**20:.1f} MiB of " in said and "on the GPU" not in said
    assert all(f" s to {step}" in said for step in ("attribute", "cache", "train"))
    assert json.loads(json.dumps(found)) == found and not Path(config.output_dir).exists()
    assert found["prefix_error"] is None and "eight-bit" not in said


def printed(found: dict[str, Any], **estimate: Any) -> str:
    console = Console(file=io.StringIO(), record=True, width=160)
    module._print(found | {"estimate": found["estimate"] | estimate}, console)
    return console.export_text()


def test_a_cache_for_which_there_is_no_room_is_refused_after_all_is_told(plain: Looked) -> None:
    _, found, _ = plain
    console = Console(file=io.StringIO(), record=True, width=160)
    tight = found["estimate"] | {"disk_bytes": 1001, "free_bytes": 1000}
    with pytest.raises(
        CacheError, match=r"output_dir: the cache needs about 1001 bytes, 1000 are free; .*data\.max_rows"
    ):
        module._print(found | {"estimate": tight}, console)
    assert "condition number" in console.export_text()
    printed(found, disk_bytes=1000, free_bytes=1000)


def test_the_memory_of_a_gpu_and_the_error_of_eight_bits_are_told_where_there_are_some(plain: Looked) -> None:
    _, found, _ = plain
    assert "3.0 GiB on the GPU" in printed(found, peak_gpu_bytes=3 * 2**30)
    said = printed(found | {"prefix_error": {"mean": 0.0123, "worst": 0.0456}})
    assert "relative error 1.23% a token on average, 4.56% at worst" in said


def test_datasets_of_a_mixture_are_listed() -> None:
    console = Console(file=io.StringIO(), record=True, width=160)
    sources = {"many": {"weight": 0.75, "available": 90, "train": 30, "heldout": 3}, "few": {"weight": 0.25}}
    sources["few"] |= {"available": 20, "train": 10, "heldout": 1}
    module._print_sources(sources, console)
    said = console.export_text()
    assert "0.750" in said and "90" in said and "0.250" in said and said.index("many") < said.index("few")


def test_answers_to_come_are_told_and_no_row_is_shown(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows = [json.loads(line)["messages"][:1] for line in rows_file.read_text().splitlines()]
    prompts.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    config = tiny_config(
        tiny_pair,
        rows_file,
        tmp_path / "run",
        data=DataConfig(str(prompts), completions="teacher", max_new_tokens=24, max_length=128),
        recipe=RecipeConfig("cross_entropy"),
        attribution=AttributionConfig(rows=2),
    )
    found, said = looked(config)
    assert "no model has answered the prompts yet" in said and "in brackets" not in said
    assert found["training_rows"] == 20 and found["supervised_tokens"] >= 20 * 24
    assert [line["interface"] for line in found["pair_figures"]] == ["block"], (
        "pairs are shown whatever the recipe"
    )


def test_a_run_that_cannot_be_is_refused_before_any_weight_is_read(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "probe_student", lambda *_: pytest.fail("the student was loaded"))
    config = tiny_config(tiny_pair, rows_file, tmp_path / "run", pairing=PairingConfig(num_layers=9))
    with pytest.raises(ConfigError, match="the student has 3 layers, got 9"):
        looked(config)


def test_a_folder_of_another_run_and_prompts_that_nobody_could_answer_are_refused_too(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "probe_student", lambda *_: pytest.fail("the student was loaded"))
    config = tiny_config(tiny_pair, rows_file, tmp_path / "run", pairing=PairingConfig(num_layers=1))
    transfer(config, ("attribute", "pair", "cache"))
    with pytest.raises(ConfigError, match=r"holds a run with another config \(pairing\.num_layers: 1 -> 2\)"):
        looked(replace(config, pairing=PairingConfig(num_layers=2)))
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"no question {n}"}) + "\n" for n in range(9)))
    data = replace(config.data, dataset_name=str(text), completions="teacher")
    with pytest.raises(DataError, match="need rows with messages"):
        looked(replace(config, data=data, output_dir=str(tmp_path / "other")))


def test_the_plan_of_other_options_is_not_obeyed(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_pair, rows_file, tmp_path / "run", pairing=PairingConfig(num_layers=1))
    run = transfer(config, ("attribute", "pair"))
    for count in (1, 2):
        changed = replace(config, pairing=PairingConfig(num_layers=count))
        plan, _ = module._plan(changed, inputs_of(samples(2)), run)
        assert len(plan.trained_layers) == count


def planned(folder: Path, **pairing: Any) -> tuple[Plan, bool]:
    config = in_memory_config(folder, pairing=PairingConfig(**pairing))
    return module._plan(config, inputs_of(samples(2)), RunFolder(Path(config.output_dir)))


@pytest.mark.parametrize(
    ("pairing", "students", "is_provisional"),
    [
        ({"num_layers": 2}, [2, 3], False),
        ({"selection": "all"}, [1, 2, 3], False),
        ({"selection": "attribution", "num_layers": 1}, [3], True),
        ({"selection": "all", "match": "cka"}, [1, 2, 3], True),
        ({"num_layers": 2, "match": "nearest"}, [2, 3], True),
        ({"layers": (1,)}, [1], False),
    ],
    ids=lambda given: str(given),
)
def test_the_deepest_layers_stand_for_those_that_are_yet_to_be_chosen(
    tmp_path: Path, pairing: dict[str, Any], students: list[int], is_provisional: bool
) -> None:
    plan, found = planned(tmp_path, **pairing)
    assert [p.student for p in plan.pairs] == students == list(plan.trained_layers)
    assert [p.teacher for p in plan.pairs] == [max(1, 5 * k // 3) for k in students]
    assert found is is_provisional and plan.heads == ()


def test_a_plan_that_is_there_is_obeyed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    pairs = [{"teacher": 2, "student": 1, "fraction": 0.5}]
    plan = {"teacher_layers": 5, "student_layers": 3, "pairs": pairs, "trained_layers": [1, 2]}
    run.pairs.write_text(json.dumps(plan))
    found, is_provisional = planned(tmp_path, selection="attribution", num_layers=1)
    assert [p.as_json() for p in found.pairs] == pairs and found.trained_layers == (1, 2)
    assert is_provisional is False
    run.pairs.write_text(json.dumps(plan | {"student_layers": 4}))
    with pytest.raises(
        ConfigError, match="a plan for 5 teacher and 4 student layers, where the models have 5 and 3"
    ):
        planned(tmp_path)


def test_what_is_provisional_says_so(plain: Looked) -> None:
    _, found, said = plain
    words = "pairs have not been chosen yet"
    assert found["pairs_are_provisional"] is False and words not in said
    assert words in printed(found | {"pairs_are_provisional": True})


def test_chat_templates_that_differ_are_told(
    plain: Looked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class StopError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise StopError

    monkeypatch.setattr(module, "templates_agree", lambda *_: False)
    monkeypatch.setattr(module, "probe_student", stop)
    console = Console(file=io.StringIO(), record=True, width=160)
    with pytest.raises(StopError):
        check(replace(plain[0], output_dir=str(tmp_path / "run")), console)
    assert "chat templates DIFFER, the student’s is used" in console.export_text()
