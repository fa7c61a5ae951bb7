"""What training needs of both models: from memory or by name, kept where it fits, and the teacher let go."""

from __future__ import annotations

import json
import pickle
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import peft
import pytest
import torch
import yaml
from tiny import STEPS, config_of, save_model, tiny_model, tiny_tokenizer
from tokenizers_apart import byte_level
from transformers import AutoModelForCausalLM, TrainingArguments

from semalign import SemAlignTrainer, cache_targets
from semalign.api.targets import adapted as layers_of_adapters
from semalign.api.targets import open_student
from semalign.config import EvaluationConfig, ModelConfig, PairingConfig, TransferConfig, plain
from semalign.errors import ConfigError, DataError, ModelError
from semalign.models.decoder import Decoder
from semalign.run.files import find_json
from semalign.signals.prepared import Prepared
from semalign.steps.pipeline import transfer

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
        ConfigError, match=r"trains modules of layers alone, got \S*norm\S*; leave modules_to_save and"
    ):
        layers_of_adapters(PairingConfig(), student)
    student = decoder_of(lora(models()[0], inference_mode=True))
    with pytest.raises(
        ConfigError, match=r"got nothing to train; leave modules_to_save .* and is_trainable true"
    ):
        layers_of_adapters(PairingConfig(), student)


def caches(config: TransferConfig) -> None:
    """As far as the cache."""
    transfer(config, STEPS[:-1])


def trains_without_comparing(config: TransferConfig) -> None:
    """A finished run whose options say what a trainer's say."""
    transfer(replace(config, evaluation=EvaluationConfig(cka_rows=0)), STEPS)


def says_something_else(config: TransferConfig) -> None:
    """A file of somebody else's under the name of a run's options."""
    Path(config.output_dir).mkdir()
    Path(config.output_dir, "config.yaml").write_text("evaluation: [1, 2]\nmine: true\n")


@pytest.mark.parametrize("fills", [caches, trains_without_comparing, says_something_else])
def test_a_folder_of_the_command_line_s_is_refused_and_stays_as_it_is(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, fills: Callable[[TransferConfig], None]
) -> None:
    fills(config_of(tiny_pair, rows_file, tmp_path / "run"))
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(
        ConfigError, match=r"run: .*got one that holds a run of the command line; choose another"
    ):
        targets(tmp_path / "run")
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("folder", ["disk/cache", None])
def test_the_cache_lies_where_the_options_say(tmp_path: Path, folder: str | None) -> None:
    place = tmp_path / folder if folder else tmp_path / "run" / "targets"
    cache = {"top_k": 8, "dtype": "float32", "folder": str(place) if folder else None}
    kept = targets(tmp_path / "run", args=arguments(tmp_path / "run", cache=cache))
    assert (place / "manifest.json").is_file() and kept.stores.teacher.missing() == []
    assert (tmp_path / "run" / "targets").is_symlink() == bool(folder)


@pytest.mark.parametrize("prefix_dtype", [None, "int8", "fp8"])
@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({}, None),
        ({"seed": 3}, r"its stream after layer 2 is \d+% off"),
        ({"layers": 2}, "2 layers instead of 3"),
        ({"hidden_size": 40}, "40 channels instead of 32"),
    ],
    ids=["same", "weights", "layers", "channels"],
)
def test_targets_of_another_student_are_refused(
    tmp_path: Path, student: dict[str, Any], said: str | None, prefix_dtype: Any
) -> None:
    """One that was cached in half precision and trains in float32 is the same."""
    args = arguments(tmp_path, cache={"top_k": 8, "prefix_dtype": prefix_dtype})
    kept = targets(tmp_path, models()[0].bfloat16(), args=args)
    given = tiny_model("llama", **{"layers": 3, "wide": False, "seed": 1} | student).bfloat16().float()
    if said is None:
        SemAlignTrainer(given, args=args, targets=kept, processing_class=tiny_tokenizer())
        return
    with pytest.raises(
        ModelError, match=rf"targets: expected the student that they were made with.*\({said}\)"
    ):
        SemAlignTrainer(given, args=args, targets=kept, processing_class=tiny_tokenizer())


def test_targets_move_to_another_machine(tmp_path: Path) -> None:
    """As the how-to says: their pickle, and a copy of the folder at the same place."""
    args = arguments(tmp_path / "run")
    kept = targets(tmp_path / "run", args=args, eval_dataset=HELDOUT)

    def trained(these: Prepared) -> tuple[list[float], float]:
        trainer = SemAlignTrainer(models()[0], args=args, targets=these, processing_class=tiny_tokenizer())
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        return losses, trainer.evaluate()["eval_kl"]

    here, pickled = trained(kept), pickle.dumps(kept)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "copy").rename(tmp_path / "run")
    assert trained(pickle.loads(pickled)) == here


def loaded(model: Any, tokenizer: Any, folder: Path) -> Any:
    """A model in memory whose folder holds this tokenizer, or none."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def test_a_teacher_in_memory_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    student, teacher = models()
    teacher = loaded(teacher, byte_level(), tmp_path / "teacher")
    with pytest.raises(ModelError, match="teacher and student do not share a vocabulary"):
        targets(tmp_path / "run", student, teacher)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_teacher_whose_folder_has_no_tokenizer_takes_the_given_one(tmp_path: Path, kind: str) -> None:
    """Of such a GPT-2 transformers makes a tokenizer with a single token."""
    teacher = loaded(tiny_model(kind, layers=5, wide=True), None, tmp_path / "teacher")
    assert len(targets(tmp_path / "run", teacher=teacher).inputs.train) == len(TRAIN)
    with pytest.raises(ModelError, match="tokenizer"):
        open_student(teacher, None)


def test_a_tokenizer_beside_names_and_arguments_of_another_trainer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="processing_class: expected none beside models given by name"):
        targets(tmp_path, "student", ModelConfig("teacher"))
    with pytest.raises(
        ConfigError, match=r"^args: expected a SemAlignConfig, got TrainingArguments; it takes"
    ):
        targets(tmp_path, args=TrainingArguments(str(tmp_path)))
