"""A teacher that a server holds fills the same cache as one that is loaded; what it cannot give is refused before it is asked."""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tiny import config_of, full_weights, tiny_tokenizer

from semalign import embedded
from semalign.config import (
    CacheConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    RecipeConfig,
    ServerConfig,
    TransferConfig,
)
from semalign.data import Sample, prepare
from semalign.errors import ConfigError, ModelError
from semalign.estimate.check import check
from semalign.evaluation.server import serving
from semalign.models.loading import load
from semalign.run import web
from semalign.run.files import read_json
from semalign.signals import served as module
from semalign.signals.served import ServedTeacher, Told
from semalign.steps.pipeline import transfer

STAND_IN = Path(__file__).parents[1] / "evaluation" / "stand_in_server.py"
VOCABULARY = 320
VLLM = os.environ.get("SEMALIGN_VLLM")
SAMPLES = [Sample(list(range(6 + n, 20 + 2 * n)), [i > 4 for i in range(14 + n)], str(n)) for n in range(3)]


@contextmanager
def server(folder: Path, *fault: str) -> Iterator[str]:
    command = " ".join([shlex.quote(sys.executable), shlex.quote(str(STAND_IN)), "{folder} {port}", *fault])
    with serving(command, folder) as address:
        yield address


@pytest.fixture(scope="module")
def address(tiny_pair: tuple[Path, Path]) -> Iterator[str]:
    with server(tiny_pair[0]) as found:
        yield found


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "FIRST_WAIT", 0.001)


def teacher(address: str, **options: Any) -> ServedTeacher:
    return ServedTeacher(ServerConfig(address, **options), tiny_tokenizer(), VOCABULARY, 8)


def config(pair: tuple[Path, Path], rows: Path, out: Path, url: str | None, **changes: Any) -> TransferConfig:
    made = config_of(pair, rows, out, recipe=RecipeConfig(), **changes)
    return replace(made, teacher=ModelConfig(str(pair[0]), server=ServerConfig(url, requests=3)))


def of_the_model(folder: Path, sample: Sample) -> Told:
    """What the model itself says of a row."""
    with torch.no_grad():
        model = load(ModelConfig(str(folder), dtype="float32")).model
        logp = model(torch.tensor([sample.input_ids])).logits[0].log_softmax(1)
    before = torch.tensor([n - 1 for n, is_supervised in enumerate(sample.mask) if is_supervised])
    top = logp[before].topk(8)
    labels = torch.tensor(sample.input_ids)[before + 1]
    return Told(top.indices, top.values, logp[before].gather(1, labels[:, None])[:, 0])


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_it_tells_what_the_model_says(address: str, engine: Any, tiny_pair: tuple[Path, Path]) -> None:
    found = teacher(address, engine=engine)
    assert found.self_test(SAMPLES[0]) == 0.0
    for told, sample in zip(found.tell(SAMPLES), SAMPLES, strict=True):
        expected = of_the_model(tiny_pair[0], sample)
        assert torch.equal(told.ids_NK, expected.ids_NK)
        torch.testing.assert_close(told.logp_NK, expected.logp_NK, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(told.label_logp_N, expected.label_logp_N, rtol=1e-4, atol=1e-5)


def test_a_run_ends_with_the_student_of_a_loaded_teacher(
    address: str, tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    # With every token told nothing is left of the difference.
    cache = CacheConfig(shard_rows=6, dtype="float32", top_k=VOCABULARY)
    runs = [
        transfer(config(tiny_pair, rows_file, tmp_path / name, url, cache=cache))
        for name, url in (("here", None), ("there", address))
    ]
    here, there = (load_file(run.root / "student" / "model.safetensors") for run in runs)
    for name, weight in here.items():
        torch.testing.assert_close(there[name], weight, rtol=1e-3, atol=1e-4)
    before, after = (read_json(run.metrics, "evaluate") for run in runs)
    for part in ("before", "after"):
        for figure, value in before["closeness"][part].items():
            assert after["closeness"][part][figure] == pytest.approx(value, rel=1e-3, abs=1e-4)
    shown = [[row["teacher"]["top"] for row in found["tokens"]] for found in (before, after)]
    assert runs[1].report.is_file() and shown[0] == shown[1] and any(shown[0])


def test_with_few_tokens_told_the_kl_is_at_most_the_whole_one(
    address: str, tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    runs = [
        transfer(config(tiny_pair, rows_file, tmp_path / name, url))
        for name, url in (("here", None), ("there", address))
    ]
    found = [read_json(run.metrics, "evaluate") for run in runs]
    here, there = (metrics["closeness"] for metrics in found)
    assert 0.3 * here["before"]["kl"] < there["before"]["kl"] < here["before"]["kl"]
    assert there["after"]["kl"] < there["before"]["kl"]
    assert [metrics["kl_over"] for metrics in found] == ["vocabulary", "told_tokens"]
    assert "takes all others as one" in runs[1].report.read_text(encoding="utf-8")
    for figure in ("top1_agreement", "nll"):
        assert there["before"][figure] == pytest.approx(here["before"][figure], rel=1e-4)


def test_requests_that_fail_change_nothing(tiny_pair: tuple[Path, Path], address: str) -> None:
    wanted = teacher(address).tell(SAMPLES)
    with server(tiny_pair[0], "0.3") as unsteady:
        found = teacher(unsteady, retries=20).tell(SAMPLES)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.ids_NK, other.ids_NK) and torch.equal(one.logp_NK, other.logp_NK)


def test_a_run_that_was_stopped_goes_on_at_the_next_shard(
    address: str,
    tiny_pair: tuple[Path, Path],
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    straight = transfer(config(tiny_pair, rows_file, tmp_path / "straight", address))
    asked: list[int] = []
    tell = ServedTeacher.tell

    def broken(self: ServedTeacher, samples: list[Sample]) -> list[Told]:
        if sum(asked) >= 9:
            raise ModelError("the server gave no answer")
        asked.append(len(samples))
        return tell(self, samples)

    made = config(tiny_pair, rows_file, tmp_path / "run", address)
    with monkeypatch.context() as patch:
        patch.setattr(ServedTeacher, "tell", broken)
        with pytest.raises(ModelError, match="no answer"):
            transfer(made)
    assert sum(asked) == 9
    later: list[int] = []

    def counted(self: ServedTeacher, samples: list[Sample]) -> list[Told]:
        later.append(len(samples))
        return tell(self, samples)

    monkeypatch.setattr(ServedTeacher, "tell", counted)
    run = transfer(made)
    counts = read_json(run.data, "transfer")
    # Shards hold six rows: of the nine that were told, the last three are asked for again.
    assert sum(later) == counts["training_rows"] + counts["heldout_rows"] - 6
    first, second = (load_file(one.root / "student" / "model.safetensors") for one in (straight, run))
    assert all(torch.equal(second[name], weight) for name, weight in first.items())


def test_it_answers_prompts_too(
    address: str, tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    data = DataConfig(
        str(rows_file), max_length=128, heldout_rows=4, max_rows=6, completions="teacher", max_new_tokens=40
    )
    rows = []
    for name, url in (("here", None), ("there", address)):
        made = config(tiny_pair, rows_file, tmp_path / name, url, data=data)
        try:
            rows.append(transfer(made, ("generate",)).rows.read_text())
        except Exception as error:  # a random teacher may end no answer; both say so alike
            rows.append(str(error))
    assert rows[0] == rows[1]


def test_check_asks_it(address: str, tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path) -> None:
    out = io.StringIO()
    found = check(config(tiny_pair, rows_file, tmp_path / "run", address), Console(file=out, width=200))
    assert found["served_drift"] == 0.0 and "teacher" not in found["heads"]
    assert found["estimate"]["seconds"]["cache"] > 0 and "tells the same twice" in out.getvalue()


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({"recipe": RecipeConfig("aligned")}, "recipe: aligned"),
        ({"recipe": RecipeConfig("kl")}, "recipe: kl"),
        ({"recipe": RecipeConfig(temperature=2.0)}, "recipe: aligned_output"),
        ({"evaluation": EvaluationConfig(baselines={"kl": {}})}, "kl: kl"),
    ],
)
def test_what_a_server_cannot_tell_is_refused(
    changes: dict[str, Any], asked: str, tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    made = replace(config(tiny_pair, rows_file, tmp_path / "run", "http://127.0.0.1:9"), **changes)
    with pytest.raises(ConfigError, match=f"for {asked}, got a server's, which tells its likeliest tokens"):
        transfer(made)


def test_other_weights_tokens_and_probabilities_are_noticed(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = teacher(address)
    honest = found._entries

    def changed(change: Any) -> None:
        monkeypatch.setattr(found, "_entries", lambda ids: change(honest(ids)))

    def louder(entries: module.Entries) -> module.Entries:
        return [{i: (logp + 9.0, text) for i, (logp, text) in one.items()} for one in entries]

    changed(louder)
    with pytest.raises(ModelError, match=r"sum to .* \(expected at most 1\); the server changes them"):
        found.self_test(SAMPLES[0])
    changed(lambda entries: [{i: (p, "other") for i, (p, _) in one.items()} for one in entries])
    with pytest.raises(ModelError, match="expected the student's tokenizer, got another: token 7 is 'other'"):
        found.self_test(SAMPLES[0])
    changed(lambda entries: [{i + 1000: told for i, told in one.items()} for one in entries])
    with pytest.raises(ModelError, match="expected the row's own token"):
        found.self_test(SAMPLES[0])
    turns = iter([0.0, 0.5])

    def drifting(entries: module.Entries) -> module.Entries:
        by = next(turns)
        return [{i: (logp - by, text) for i, (logp, text) in one.items()} for one in entries]

    changed(drifting)
    with pytest.raises(ModelError, match=r"two answers to one row differ by 0\.5 nats"):
        found.self_test(SAMPLES[0])


def test_a_wrong_address_engine_or_key_is_one_sentence(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"the server gave no answer .*It was asked 2 times"):
        teacher("http://127.0.0.1:9", retries=1).tell(SAMPLES[:1])
    with pytest.raises(ConfigError, match="an environment variable that is set, got 'NO_SUCH_KEY'"):
        teacher(address, key_variable="NO_SUCH_KEY")
    monkeypatch.setenv("SERVER_KEY", "secret-word")
    with pytest.raises(ModelError) as caught:
        teacher("http://127.0.0.1:9", retries=0, key_variable="SERVER_KEY").tell(SAMPLES[:1])
    assert "secret-word" not in str(caught.value)
    with pytest.raises(ConfigError, match="an address with http"):
        ServerConfig("localhost:8000")
    found = teacher(address, model="named")
    monkeypatch.setattr(module.Server, "json", lambda *a, **k: {"choices": [{"text": "hello"}]})
    with pytest.raises(
        ModelError, match=r"expected log-probabilities of a prompt's tokens from vllm.*KeyError"
    ):
        found.tell(SAMPLES[:1])


@pytest.mark.skipif(VLLM is None, reason="SEMALIGN_VLLM names no vllm program")
def test_a_real_vllm_tells_what_the_model_says(tmp_path: Path) -> None:
    folder = embedded.model_path("teacher")
    command = f"{VLLM} serve {{folder}} --host 127.0.0.1 --port {{port}} --dtype float32 --max-logprobs 8"
    decoder = load(str(folder))
    assert decoder.tokenizer is not None
    rows = prepare(embedded.rows("validation")[::40], decoder.tokenizer, max_length=128)
    with serving(command, folder) as address:
        found = ServedTeacher(
            ServerConfig(address, requests=4), decoder.tokenizer, decoder.shape.vocabulary, 8
        )
        assert found.self_test(rows[0]) < 1e-3
        told = found.tell(rows)
        with pytest.raises(ModelError, match="start vLLM with --max-logprobs 9"):
            ServedTeacher(ServerConfig(address), decoder.tokenizer, decoder.shape.vocabulary, 9).tell(
                rows[:1]
            )
    for one, row in zip(told, rows, strict=True):
        expected = of_the_model(folder, row)
        torch.testing.assert_close(one.logp_NK, expected.logp_NK, rtol=0, atol=1e-3)
        torch.testing.assert_close(one.label_logp_N, expected.label_logp_N, rtol=0, atol=1e-3)
        assert (one.ids_NK == expected.ids_NK).float().mean() > 0.99


def test_its_weights_are_not_here(tiny_pair: tuple[Path, Path]) -> None:
    with pytest.raises(ModelError, match=r"holds the weights of .* needs them here"):
        load(ModelConfig(str(tiny_pair[0]), server=ServerConfig("http://127.0.0.1:9")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student": ModelConfig("x", server=ServerConfig("http://h"))}, "student.server.url: expected null"),
        (
            {"train": full_weights(live_teacher=True, cache_prefix=False)},
            "train.live_teacher: expected false with",
        ),
    ],
)
def test_a_config_that_cannot_be_served_is_refused(
    changes: dict[str, Any], said: str, tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    made = config(tiny_pair, rows_file, tmp_path, "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=said):
        replace(made, **changes)
