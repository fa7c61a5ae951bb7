"""What training needs of both models: from memory or by name, kept where it fits, and the teacher let go."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any
from unittest.mock import patch

import peft
import pytest
import torch
import yaml
from tiny import save_model, tiny_tokenizer

from semalign import SemAlignTrainer, cache_targets
from semalign.api.targets import adapted as layers_of_adapters
from semalign.api.targets import open_student
from semalign.config import ModelConfig, PairingConfig, plain
from semalign.errors import ConfigError, DataError, ModelError
from semalign.models.decoder import Decoder
from semalign.run.files import find_json
from semalign.signals.prepared import Prepared

from .small import HELDOUT, TRAIN, arguments, made, models


def test_the_teacher_is_gone_when_the_trainer_is_made(tmp_path: Path) -> None:
    student, teacher = models()
    known = weakref.ref(teacher)
    trainer = SemAlignTrainer(student, teacher, arguments(tmp_path), TRAIN, processing_class=tiny_tokenizer())
    del teacher
    assert known() is None
    trainer.train()


def test_targets_made_before_serve_a_trainer_without_teacher(tmp_path: Path) -> None:
    student, teacher = models()
    args = arguments(tmp_path)
    targets = cache_targets(
        student, teacher, args, TRAIN, eval_dataset=HELDOUT, processing_class=tiny_tokenizer()
    )
    assert [p.student for p in targets.plan.pairs] == [3]
    trainer = SemAlignTrainer(student, args=args, targets=targets, processing_class=tiny_tokenizer())
    first = trainer.evaluate()["eval_kl"]
    trainer.train()
    assert trainer.evaluate()["eval_kl"] < first


def test_cached_signals_are_kept_for_the_same_models_and_made_anew_for_others(tmp_path: Path) -> None:
    student, teacher = models()
    made(tmp_path, student, teacher)
    manifest = tmp_path / "targets" / "manifest.json"
    time = manifest.stat().st_mtime_ns
    made(tmp_path, student, teacher)
    assert manifest.stat().st_mtime_ns == time
    with torch.no_grad():
        student.model.layers[0].mlp.up_proj.weight.mul_(1.01)
    made(tmp_path, student, teacher)
    assert manifest.stat().st_mtime_ns > time


def test_adapters_on_every_layer_train_every_layer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    student, teacher = models()
    adapted = peft.get_peft_model(student, peft.LoraConfig(r=2, target_modules=["up_proj"]))
    trainer = made(tmp_path, adapted, teacher, args=arguments(tmp_path, pairing={}))
    assert trainer.cut == 0 and trainer.targets.plan.trained_layers == (1, 2, 3)
    assert "adapters on every layer" in caplog.text


def test_rows_and_layers_that_do_not_fit_are_refused_in_one_sentence(tmp_path: Path) -> None:
    student, _ = models()
    with pytest.raises(DataError, match="among the training rows"):
        made(tmp_path, eval_dataset=TRAIN[:2])
    with pytest.raises(DataError, match=r"^train_dataset:1: expected a dict, got str; mend the row$"):
        made(tmp_path, train_dataset=["text"])
    with pytest.raises(DataError, match=r"^eval_dataset: expected rows, got a dict; give"):
        made(tmp_path, eval_dataset={"a": HELDOUT})
    wrong = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": 5}]}
    with pytest.raises(
        DataError, match=r"^eval_dataset:2: messages, message 2: content is a number, expected"
    ):
        made(tmp_path, eval_dataset=[HELDOUT[0], wrong])
    adapted = peft.get_peft_model(student, peft.LoraConfig(r=2, target_modules=["up_proj"]))
    with pytest.raises(ConfigError, match="whose adapters choose them"):
        made(tmp_path, adapted)


def targets(
    folder: Path, student: Any = None, teacher: Any = None, rows: Any = TRAIN, **options: Any
) -> Prepared:
    """What is cached of the tiny pair."""
    own, theirs = models()
    args = options.pop("args", None) or arguments(folder)
    given = {"processing_class": tiny_tokenizer()} | options
    # A collection of garbage takes longer than all the rest.
    with patch("gc.collect"):
        return cache_targets(student or own, teacher or theirs, args, rows, **given)


CHANGES: dict[str, Any] = {
    "recipe": {"name": "cosine", "layer_weight": 0.5},
    "learning_rate": 2e-3,
    "max_length": 32,
    "supervise": "all",
    "thinking": "drop",
    "cache_prefix": False,
    "weight_decay": 0.1,
    "lr_scheduler_type": "linear",
    "seed": 7,
    "hub_model_id": "org/name",
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Targets of models in memory with a few options of their own."""
    folder = tmp_path_factory.mktemp("targets")
    return targets(folder, args=arguments(folder, **CHANGES), eval_dataset=HELDOUT)


def test_options_of_the_trainer_are_those_of_the_steps(prepared: Prepared) -> None:
    config = prepared.config
    assert (config.recipe.name, config.recipe.layer_weight, config.train.learning_rate) == (
        "cosine",
        0.5,
        2e-3,
    )
    assert (config.data.max_length, config.data.supervise, config.seed) == (32, "all", 7)
    train = config.train
    assert (train.cache_prefix, train.weight_decay, train.lr_scheduler_type) == (False, 0.1, "linear")
    assert (train.num_train_epochs, train.per_device_train_batch_size, train.bf16) == (2, 4, False)
    assert (config.pairing.num_layers, config.cache.top_k, config.attribution.rows) == (1, 8, 4)
    assert config.hub_model_id == "org/name" and config.data.dataset_name == "rows"
    assert config.teacher.model_name_or_path == config.student.model_name_or_path == "LlamaForCausalLM"


def test_the_folder_says_what_it_was_made_from(prepared: Prepared) -> None:
    run = prepared.run
    assert yaml.safe_load(run.config.read_text()) == json.loads(
        json.dumps(plain(prepared.config), default=list)
    )
    counts = json.loads(run.data.read_text())
    assert (counts["training_rows"], counts["heldout_rows"]) == (len(TRAIN), len(HELDOUT))
    assert counts["sources"]["rows"] == {"weight": 1.0, "available": 20, "train": 20, "heldout": 8}
    assert set(find_json(run.models)) == {"teacher", "student"}
    assert run.environment.exists() and run.pairs.exists() and run.manifest.exists()
    with run.lock():
        pass  # the folder is free again


def test_rows_are_tokenised_as_the_options_say(prepared: Prepared) -> None:
    rows = prepared.inputs.train
    assert len(rows) == len(TRAIN) and max(len(s.input_ids) for s in rows) <= 32
    assert all(s.supervised == len(s.input_ids) - 1 for s in rows), "supervise: all"


def test_neither_model_can_be_opened_again(prepared: Prepared) -> None:
    for open_again in (prepared.inputs.load_teacher, prepared.inputs.load_student):
        with pytest.raises(ModelError, match="the teacher and the untouched student are no longer in memory"):
            open_again()


def test_what_is_cached_has_no_reference_to_the_teacher(tmp_path: Path) -> None:
    student, teacher = models()
    known = weakref.ref(teacher)
    kept = targets(tmp_path, student, teacher)
    del teacher
    assert known() is None and kept.stores.teacher.missing() == []


def test_models_by_name_give_the_targets_of_models_in_memory(tmp_path: Path) -> None:
    student, teacher = models()
    folders = [save_model(m, tmp_path / n) for n, m in (("student", student), ("teacher", teacher))]
    memory = targets(tmp_path / "memory", student, teacher)
    named = targets(tmp_path / "named", str(folders[0]), ModelConfig(str(folders[1])), processing_class=None)
    assert named.config.student.model_name_or_path == str(folders[0])
    for number in (0, 7):
        ours, expected = named.stores.teacher.read(number), memory.stores.teacher.read(number)
        assert ours.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-4)


def test_rows_may_be_read_once_or_be_named(tmp_path: Path) -> None:
    once = targets(tmp_path / "once", rows=iter(TRAIN))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TRAIN))
    kept = tmp_path / "heldout.jsonl"
    kept.write_text("".join(json.dumps(row) + "\n" for row in HELDOUT))
    named = targets(tmp_path / "named", rows=str(path), eval_dataset=str(kept))
    assert [s.input_ids for s in named.inputs.train] == [s.input_ids for s in once.inputs.train]
    assert (len(once.inputs.heldout), len(named.inputs.heldout)) == (0, len(HELDOUT))
    assert (named.config.data.dataset_name, named.config.data.heldout_name) == (str(path), str(kept))


def test_held_out_rows_as_text_are_refused_by_their_own_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^eval_dataset:1: expected a dict, got str; mend the row$"):
        targets(tmp_path, eval_dataset=["text"])
    with pytest.raises(DataError, match="eval_dataset: 2 of its prompts are among the training rows"):
        targets(tmp_path, eval_dataset=[*HELDOUT, *TRAIN[3:5]])


def lora(student: Any, **options: Any) -> Any:
    return peft.get_peft_model(student, peft.LoraConfig(r=2, target_modules=["up_proj"], **options))


def decoder_of(student: Any) -> Decoder:
    return open_student(student, tiny_tokenizer())[0]


def test_a_students_decoder_is_the_very_model_that_is_trained() -> None:
    student, _ = models()
    decoder, known = open_student(student, tokenizer := tiny_tokenizer())
    assert decoder.model is student is known and decoder.tokenizer is tokenizer
    adapted = lora(student)
    decoder, known = open_student(adapted, tokenizer)
    assert known is adapted and decoder.model is adapted.get_base_model()
    assert decoder.num_layers == 3 and any("lora_" in n for n, _ in decoder.model.named_parameters())


def test_without_a_tokenizer_the_models_own_folder_has_one(tmp_path: Path) -> None:
    student, _ = models()
    student.name_or_path = str(save_model(student, tmp_path / "student"))
    decoder, _ = open_student(student, None)
    assert (
        decoder.tokenizer.get_vocab() == tiny_tokenizer().get_vocab() and decoder.name == student.name_or_path
    )
    named, model = open_student(ModelConfig(student.name_or_path, dtype="bfloat16"), None)
    assert model is named.model and model.dtype == torch.bfloat16


def test_a_model_from_nowhere_needs_its_tokenizer() -> None:
    student, _ = models()
    with pytest.raises(
        ModelError, match=r"^LlamaForCausalLM: expected a tokenizer .* give it as processing_class"
    ):
        open_student(student, None)


def test_adapters_outside_the_layers_are_refused() -> None:
    student, _ = models()
    prompted = peft.get_peft_model(
        student, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(
        ModelError, match=r"expected adapters inside the layers, got .*PROMPT_TUNING; use LoRA"
    ):
        open_student(prompted, tiny_tokenizer())


def test_the_layers_of_the_adapters_are_the_plan() -> None:
    student = decoder_of(lora(models()[0], layers_to_transform=[0, 2]))
    options = PairingConfig(match="cka", rows=3)
    assert layers_of_adapters(options, student) == PairingConfig(match="cka", rows=3, layers=(1, 3))


@pytest.mark.parametrize(
    "pairing",
    [
        {"num_layers": 1},
        {"layers": (2,)},
        {"cost": 2.0},
        {"selection": "all"},
        {"interpolate": True},
        {"heads": 1},
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_choice_of_layers_beside_adapters_is_refused(pairing: dict[str, Any]) -> None:
    student = decoder_of(lora(models()[0]))
    with pytest.raises(ConfigError, match=r"no choice of layers beside a PeftModel.*use layers_to_transform"):
        layers_of_adapters(PairingConfig(**pairing), student)


def test_adapters_that_train_more_than_layers_or_nothing_are_refused() -> None:
    student = decoder_of(lora(models()[0], modules_to_save=["norm"]))
    with pytest.raises(
        ConfigError, match=r"trains modules of layers alone, got \S*norm\S*; leave modules_to_save empty"
    ):
        layers_of_adapters(PairingConfig(), student)
    student = decoder_of(lora(models()[0], inference_mode=True))
    with pytest.raises(
        ConfigError, match="got nothing to train; leave modules_to_save empty and is_trainable true"
    ):
        layers_of_adapters(PairingConfig(), student)
