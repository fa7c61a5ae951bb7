"""A teacher that only tells: one with a tokenizer of its own teaches from beginning to end."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import config_of, tiny_model
from tokenizers_apart import OTHER_TEMPLATE, byte_level
from transformers import AutoTokenizer

from semalign.config import EvaluationConfig, RecipeConfig, TransferConfig
from semalign.data.batches import batch_inputs, labels_of
from semalign.data.inputs import load_inputs
from semalign.errors import ConfigError, ModelError
from semalign.estimate.check import check
from semalign.models.loading import load
from semalign.run.files import read_json
from semalign.signals.telling import LoadedTeacher
from semalign.steps.pipeline import transfer


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with a tokenizer and a chat template of its own."""
    folder = tmp_path_factory.mktemp("stranger")
    tokenizer = byte_level()
    tiny_model("qwen2", layers=4, wide=True, seed=5, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def config(stranger: Path, tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path) -> TransferConfig:
    made = config_of((stranger, tiny_pair[1]), rows_file, tmp_path / "run", recipe=RecipeConfig())
    return replace(made, teacher=replace(made.teacher, tokenizer="own"))


def test_a_loaded_teacher_tells_its_likeliest_tokens(
    tiny_pair: tuple[Path, Path], config: TransferConfig
) -> None:
    decoder, inputs = load(str(config.teacher.model_name_or_path)), load_inputs(config)
    rows = inputs.train[:3]
    told = LoadedTeacher(decoder, 7).tell(rows)
    for sample, one in zip(rows, told, strict=True):
        read = sample.for_teacher
        ids, states = batch_inputs(decoder, [read])
        with torch.no_grad():
            logits = decoder.model(input_ids=ids).logits[states]
        logp = logits.float().log_softmax(1)
        assert torch.allclose(one.logp_NK, logp.topk(7).values, atol=1e-4)
        assert torch.allclose(one.label_logp_N, logp.gather(1, labels_of(read)[:, None])[:, 0], atol=1e-4)


def test_a_teacher_with_another_tokenizer_teaches_from_beginning_to_end(
    config: TransferConfig, tiny_pair: tuple[Path, Path]
) -> None:
    run = transfer(config)
    metrics = read_json(run.metrics, "evaluate")
    assert metrics["kl_over"] == "told_tokens"
    near = metrics["closeness"]
    assert near["after"]["kl"] < near["before"]["kl"]
    student = AutoTokenizer.from_pretrained(run.root / "student")
    assert student.get_vocab() == AutoTokenizer.from_pretrained(tiny_pair[1]).get_vocab()
    # The same teacher, read by the student's tokenizer, is another run.
    assert read_json(run.manifest, "cache")["fingerprint"]["teacher"]["tokenizer"] == "own"


def test_check_says_how_much_can_be_carried(config: TransferConfig) -> None:
    out = io.StringIO()
    found = check(config, Console(file=out, width=200))
    assert 0 < found["carried"]["exact_tokens"] < 1 and 0 < found["carried"]["carried_mass"] <= 1
    assert "tokens are tokens of the teacher's too" in out.getvalue() and found["served_drift"] is None
    assert "through its own tokenizer and chat template" in out.getvalue()


def test_an_estimate_before_the_answers_goes_through_a_template_that_trims_them(
    config: TransferConfig, tmp_path: Path
) -> None:
    theirs = AutoTokenizer.from_pretrained(config.teacher.model_name_or_path)
    theirs.chat_template = OTHER_TEMPLATE.replace("m.content", "m.content | trim")
    theirs.save_pretrained(shutil.copytree(config.teacher.model_name_or_path, tmp_path / "trims"))
    asked = tmp_path / "asked.jsonl"
    asked.write_text(
        "".join(f'{{"messages": [{{"role": "user", "content": "what is {n}"}}]}}\n' for n in range(8))
    )
    data = replace(
        config.data, dataset_name=str(asked), heldout_rows=2, completions="teacher", max_new_tokens=9
    )
    inputs = load_inputs(
        replace(
            config, teacher=replace(config.teacher, model_name_or_path=str(tmp_path / "trims")), data=data
        )
    )
    assert (len(inputs.train), len(inputs.heldout)) == (6, 2)


def test_without_the_option_the_sentence_names_it(config: TransferConfig) -> None:
    with pytest.raises(ModelError, match=r"do not share a vocabulary.*teacher\.tokenizer: own"):
        load_inputs(replace(config, teacher=replace(config.teacher, tokenizer="shared")))


@pytest.mark.parametrize(
    ("recipe", "baselines"), [(RecipeConfig("aligned"), {}), (RecipeConfig(), {"kl": {}})]
)
def test_what_cannot_be_carried_is_refused(
    recipe: RecipeConfig, baselines: dict[str, Any], config: TransferConfig
) -> None:
    made = replace(config, recipe=recipe, evaluation=EvaluationConfig(baselines=baselines))
    with pytest.raises(ConfigError, match=r"with a tokenizer of its own .*take recipe\.name: aligned_output"):
        transfer(made)


@pytest.mark.parametrize(
    ("group", "fields", "sentence"),
    [
        ("data", {"supervise": "all"}, r"data\.supervise: expected completion with teacher\.tokenizer: own"),
        ("data", {"completions": "speculative"}, r"data\.completions: expected given, teacher or student"),
        ("train", {"live_teacher": True, "cache_prefix": False}, r"train\.live_teacher: expected false"),
        ("teacher", {"sees": "shots"}, r"teacher\.sees: expected nothing with teacher\.tokenizer: own"),
        ("student", {"tokenizer": "own"}, r"student\.tokenizer: expected shared"),
    ],
)
def test_options_that_need_one_tokenizer_are_refused(
    group: str, fields: dict[str, Any], sentence: str, config: TransferConfig
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replace(config, **{group: replace(getattr(config, group), **fields)})
