"""The trainer as users of transformers and peft know one."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch
from huggingface_hub import RepoUrl
from tiny import save_model, tiny_model, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    TrainerCallback,
    TrainingArguments,
)

import semalign
from semalign import SemAlignTrainer, cache_targets
from semalign.errors import ConfigError

from .small import HELDOUT, TRAIN, arguments, made, models

SMALL_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


class Seen(TrainerCallback):
    """Counts what a user's callback is told."""

    def __init__(self) -> None:
        self.steps, self.evaluations = 0, []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps += 1

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        self.evaluations.append(metrics)


def test_training_moves_the_student_towards_the_teacher_and_only_its_paired_layer(tmp_path: Path) -> None:
    student, teacher = models()
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    seen = Seen()
    trainer = made(
        tmp_path, student, teacher, args=arguments(tmp_path, eval_strategy="epoch"), callbacks=[seen]
    )
    first = trainer.evaluate()
    trainer.train()
    last = trainer.evaluate()
    assert last["eval_kl"] < first["eval_kl"] and last["eval_loss"] == last["eval_kl"]
    assert 0 <= last["eval_top1_agreement"] <= 1
    assert seen.steps == 10 and len(seen.evaluations) == 4
    changed = {n for n, p in student.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all(n.startswith("model.layers.2.") for n in changed)
    assert any("eval_kl" in line for line in trainer.state.log_history)


class Asking(TrainerCallback):
    """Lets the student answer before and after every step."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.logits: list[torch.Tensor] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ask()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ask()

    def ask(self) -> None:
        ids, student = torch.arange(10, 20)[None], self.trainer.student.eval()
        with torch.no_grad():
            self.logits.append(student(ids).logits.float())
        assert student.generate(input_ids=ids, max_new_tokens=2, do_sample=False).shape == (1, 12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"bf16": True}, {"activation_checkpointing": True}],
    ids=lambda given: next(iter(given), "plain"),
)
def test_a_callback_runs_the_whole_student_while_it_trains(
    tmp_path: Path, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    """At a rate that changes nothing; of a student whose norms hand on the type that they are given."""
    student = tiny_model("gemma3_text", layers=3, wide=False, seed=1).to(dtype)
    ids, asking = torch.arange(10, 20)[None], Asking()
    with torch.no_grad():
        before = student(ids).logits.float()
    args = arguments(tmp_path, learning_rate=1e-12, max_steps=2, **options)
    asking.trainer = made(tmp_path, student, args=args, callbacks=[asking])
    asking.trainer.train()
    assert len(asking.logits) == 3
    for logits in asking.logits:
        torch.testing.assert_close(logits, before, atol=1e-2 if dtype == torch.bfloat16 else 1e-5, rtol=0)
    assert "forward" not in vars(student), "it is as it was"


class Saving(TrainerCallback):
    """Saves the student in the middle of its training."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.trainer = folder, None

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        self.trainer.save_model(str(self.folder))


@pytest.mark.parametrize("kind", ["qwen2", "gemma3_text"])
def test_families_whose_layers_differ_are_measured_and_saved_while_they_train(
    tmp_path: Path, kind: str
) -> None:
    """Of a bfloat16 student with a frozen layer above a trained one."""
    student = tiny_model(kind, layers=4, wide=False, seed=1).bfloat16()
    saving = Saving(tmp_path / "saved")
    args = arguments(tmp_path, eval_strategy="epoch", num_train_epochs=1, bf16=True, pairing={"layers": (2,)})
    trainer = made(tmp_path, student, args=args, callbacks=[saving])
    saving.trainer = trainer
    trainer.train()
    measured = [line["eval_kl"] for line in trainer.state.log_history if "eval_kl" in line]
    assert len(measured) == 1 and measured[0] == pytest.approx(trainer.evaluate()["eval_kl"], rel=0.05)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.dtype == torch.bfloat16
    assert all(torch.equal(p, again.state_dict()[n]) for n, p in student.state_dict().items())


def test_a_dropped_last_batch_counts_in_no_epoch(tmp_path: Path) -> None:
    args = arguments(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=8, num_train_epochs=3)
    trainer = made(tmp_path, args=args)
    sampler = trainer._get_train_sampler()
    orders = []
    for step in range(6):
        trainer.state.global_step = step
        orders.append(tuple(sampler))
    assert orders[0] == orders[1] and len(set(orders)) == 3, "two steps of 8 an epoch of 20 rows"


def test_a_loaded_model_that_reads_pictures_too_teaches_as_its_text_model(tmp_path: Path) -> None:
    text = tiny_model("gemma3_text", layers=3, wide=False, seed=1)
    config = Gemma3Config(text_config=text.config.to_dict(), vision_config=SMALL_VISION)
    whole = Gemma3ForConditionalGeneration(config)
    trainer = made(tmp_path, whole)
    trainer.train()
    assert type(trainer.student).__name__ == "Gemma3ForCausalLM"
    assert trainer.student.model.layers[0] is whole.model.language_model.layers[0]


def test_the_measured_kl_is_that_of_the_models_own_logits(tmp_path: Path) -> None:
    student, teacher = models()
    measured = made(tmp_path, student, teacher).evaluate()["eval_kl"]
    tokenizer, total, count = tiny_tokenizer(), 0.0, 0
    for row in HELDOUT:
        whole = tokenizer.apply_chat_template(row["messages"], return_dict=False)
        prompt = tokenizer.apply_chat_template(
            row["messages"][:1], add_generation_prompt=True, return_dict=False
        )
        ids = torch.tensor([whole])
        with torch.no_grad():
            p, q = (m(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for m in (teacher, student))
        total, count = total + float((p.exp() * (p - q)).sum()), count + len(p)
    assert measured == pytest.approx(total / count, rel=1e-4)


def test_it_gives_the_losses_of_the_command_line(tmp_path: Path) -> None:
    student, teacher = models()
    folders = [str(save_model(m, tmp_path / n)) for n, m in (("student", student), ("teacher", teacher))]
    args = arguments(tmp_path / "api")
    trainer = SemAlignTrainer(*folders, args, TRAIN)
    trainer.train()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in TRAIN))
    config = {
        "student": {"model_name_or_path": folders[0]},
        "teacher": {"model_name_or_path": folders[1]},
        "data": {"dataset_name": str(rows)},
        "output_dir": str(tmp_path / "run"),
        "pairing": {"num_layers": 1},
        "cache": {"top_k": 8, "dtype": "float32"},
        "attribution": {"rows": 4},
        "train": {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "lora_r": 0,
            "learning_rate": 1e-3,
        },
        "seed": 42,
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(config))
    run = semalign.transfer(semalign.load_config(path), ("attribute", "pair", "cache", "train"))
    lines = [json.loads(line) for line in (run.root / "train.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses == pytest.approx([line["loss"] for line in lines], rel=1e-5)


def test_a_saved_student_loads_plainly(tmp_path: Path) -> None:
    student, teacher = models()
    trainer = made(tmp_path / "run", student, teacher)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    ids = torch.arange(10, 20)[None]
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, student(ids).logits, atol=1e-5)
    assert (tmp_path / "saved" / "tokenizer.json").exists()


def test_training_resumes_from_a_checkpoint_with_the_same_result(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == 6

    straight = made(tmp_path / "straight")
    straight.train()
    args = arguments(tmp_path / "stopped", save_steps=5)
    made(tmp_path, args=args, callbacks=[Stop()]).train()
    resumed = made(tmp_path, args=args)
    resumed.train(resume_from_checkpoint=True)
    for (name, a), b in zip(straight.student.named_parameters(), resumed.student.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name


def test_bfloat16_students_train_in_float32_and_keep_their_type(tmp_path: Path) -> None:
    student, teacher = models()
    trainer = made(tmp_path, student.bfloat16(), teacher, args=arguments(tmp_path, bf16=True))
    types: set[torch.dtype] = set()

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            types.update(p.dtype for p in student.parameters() if p.requires_grad)

    trainer.add_callback(Look())
    trainer.train()
    assert types == {torch.float32}
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("form", ["config", "model"])
def test_lora_trains_adapters_of_the_paired_layers_alone(tmp_path: Path, form: str) -> None:
    student, teacher = models()
    lora = peft.LoraConfig(r=4, target_modules=["up_proj", "o_proj"], task_type="CAUSAL_LM")
    if form == "config":
        trainer = made(tmp_path, student, teacher, peft_config=lora)
    else:
        lora.layers_to_transform = [2]
        adapted = peft.get_peft_model(student, lora)
        trainer = made(tmp_path, adapted, teacher, args=arguments(tmp_path, pairing={}))
        assert trainer.student is adapted
    assert trainer.cut == 2
    before = {n: p.detach().clone() for n, p in trainer.student.named_parameters()}
    first = trainer.evaluate()["eval_kl"]
    trainer.train()
    assert trainer.evaluate()["eval_kl"] < first
    changed = {n for n, p in trainer.student.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all(".layers.2." in n and "lora_" in n for n in changed)
    trainer.save_model(str(tmp_path / "adapter"))
    fresh = peft.PeftModel.from_pretrained(models()[0], tmp_path / "adapter")
    ids = torch.arange(10, 20)[None]
    with torch.no_grad():
        assert torch.allclose(fresh(ids).logits, trainer.student(ids).logits, atol=1e-5)


def test_activation_checkpointing_changes_no_loss(tmp_path: Path) -> None:
    losses = []
    for name, is_on in (("off", False), ("on", True)):
        args = arguments(tmp_path / name, activation_checkpointing=is_on, gradient_accumulation_steps=2)
        trainer = made(tmp_path, args=args)
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


class Recomputed(TrainerCallback):
    """Which layers recompute their activations in the first step."""

    def __init__(self) -> None:
        self.layers: list[bool] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.layers = [layer.gradient_checkpointing for layer in model.decoder.layers]


def test_activation_checkpointing_takes_its_options(tmp_path: Path) -> None:
    """But for the reentrant form, which would leave what is trained without gradients."""
    options, seen = {"use_reentrant": True, "every_n_layers": 2}, Recomputed()
    args = arguments(
        tmp_path, max_steps=1, activation_checkpointing=True, activation_checkpointing_kwargs=options
    )
    trainer = made(tmp_path, args=args, callbacks=[seen])
    trainer.train()
    assert seen.layers == [True, False, True] and trainer.state.global_step == 1


def test_it_works_outside_the_main_thread_as_in_a_notebook(tmp_path: Path) -> None:
    found: list[Any] = []

    def cell() -> None:
        trainer = made(tmp_path, train_dataset=datasets.Dataset.from_list(TRAIN))
        trainer.train()
        found.append(trainer.state.global_step)

    thread = threading.Thread(target=cell)
    thread.start()
    thread.join()
    assert found == [10]


def test_tensorboard_gets_losses_and_options(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    made(tmp_path, args=arguments(tmp_path / "run", report_to="tensorboard")).train()
    assert list(tmp_path.rglob("events.out.tfevents*"))


class Hub:
    """In place of HfApi: remembers what it was asked, and which files it was given."""

    calls: list[dict[str, Any]]

    def __init__(self, token: str | None = None) -> None:
        self.token = token

    def create_repo(self, name: str, **options: Any) -> RepoUrl:
        return RepoUrl(f"https://huggingface.co/{name}")

    def upload_folder(self, folder_path: Path, **options: Any) -> None:
        names = {p.relative_to(folder_path).as_posix() for p in folder_path.rglob("*") if p.is_file()}
        Hub.calls.append(options | {"token": self.token, "files": names})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    Hub.calls = []
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    return Hub


LORA = peft.LoraConfig(r=2, target_modules=["up_proj"], task_type="CAUSAL_LM")


@pytest.mark.parametrize(
    ("lora", "weights"),
    [
        (None, {"config.json", "model.safetensors"}),
        (LORA, {"adapter_config.json", "adapter_model.safetensors"}),
    ],
    ids=["student", "adapter"],
)
def test_pushing_uploads_the_student_alone(
    tmp_path: Path, hub: type[Hub], lora: Any, weights: set[str]
) -> None:
    trainer = made(tmp_path, args=arguments(tmp_path, hub_model_id="org/name"), peft_config=lora)
    trainer.train()
    for name in ("model-00001-of-00002.safetensors", "adapter/left.txt"):
        path = tmp_path / "student" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of a student that was pushed before")
    assert trainer.push_to_hub() == "https://huggingface.co/org/name"
    [uploaded] = hub.calls
    beside = {"README.md", "SHA256SUMS", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert weights | beside <= uploaded["files"] <= weights | beside | {"generation_config.json"}


def test_saving_uploads_where_and_as_the_options_say(tmp_path: Path, hub: type[Hub]) -> None:
    options = {"hub_model_id": "org/name", "hub_token": "hf_of_options", "hub_revision": "second"}
    trainer = made(
        tmp_path / "run", args=arguments(tmp_path / "run", push_to_hub=True, save_steps=5, **options)
    )
    trainer.train()
    assert hub.calls == [], "checkpoints are no students"
    trainer.save_model(str(tmp_path / "saved"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").config.num_hidden_layers == 3
    trainer.push_to_hub("Another try", token="hf_given", revision="third")
    keys = ("repo_id", "token", "revision", "commit_message")
    assert [[call[key] for key in keys] for call in hub.calls] == [
        ["org/name", "hf_of_options", "second", "Model save"],
        ["org/name", "hf_given", "third", "Another try"],
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pairing": {"number": 2}}, "number"),
        ({"recipe": "v2"}, "semalign.transfer"),
        ({"recipe": "cross_entropy_lora"}, "peft_config"),
        ({"recipe": {"lora_target_modules": ["up_proj"]}}, "peft_config"),
        ({"pairing": {"num_layers": 9}}, "3 layers"),
        ({"pairing": {"layers": (4,)}}, "3 layers"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_sentence(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        made(tmp_path, args=arguments(tmp_path, **options))


@pytest.mark.parametrize(
    ("adapters", "said"),
    [
        (peft.LoraConfig(target_modules="up_proj"), "a list of names or all-linear, got 'up_proj'"),
        (peft.LoraConfig(layers_to_transform=[1]), "got layers_to_transform; leave it out"),
        (peft.LoraConfig(modules_to_save=["norm"]), "got modules_to_save; leave it out"),
        (peft.LoraConfig(trainable_token_indices=[1, 2]), "got trainable_token_indices; leave it out"),
        (peft.LoraConfig(bias="all"), "got bias all; leave it out"),
        (peft.IA3Config(), "expected a LoraConfig, got IA3Config; use LoRA"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_adapters_of_another_kind_are_refused_before_anything_is_cached(
    tmp_path: Path, adapters: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^peft_config.*{said}"):
        made(tmp_path / "run", peft_config=adapters)
    assert not (tmp_path / "run").exists()


def test_measuring_without_rows_is_refused_before_anything_is_cached(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="eval_strategy: expected no without held-out rows, got epoch"):
        made(tmp_path / "run", args=arguments(tmp_path / "run", eval_strategy="epoch"), eval_dataset=None)
    assert not (tmp_path / "run").exists()


def test_adapters_in_other_layers_than_the_plan_s_are_refused(tmp_path: Path) -> None:
    student, teacher = models()
    args = arguments(tmp_path)
    targets = cache_targets(student, teacher, args, TRAIN, processing_class=tiny_tokenizer())
    assert targets.plan.trained_layers == (3,)
    adapted = peft.get_peft_model(
        student, peft.LoraConfig(target_modules=["up_proj"], layers_to_transform=[1])
    )
    with pytest.raises(
        ConfigError, match=r"expected adapters in the layers \[3\], .* got them in \[2\]; give"
    ):
        SemAlignTrainer(adapted, args=args, targets=targets, processing_class=tiny_tokenizer())


def test_all_linear_adapts_the_linear_maps_that_the_paired_layers_have(tmp_path: Path) -> None:
    """Of a student whose other layers have linear maps of other names."""
    student = tiny_model("qwen3_5_text", layers=4, wide=False, seed=1)
    lora = peft.LoraConfig(r=2, target_modules="all-linear")
    trainer = made(tmp_path, student, args=arguments(tmp_path, max_steps=1), peft_config=lora)
    found = {
        n.split(".lora_A")[0].rsplit(".", 1)[-1]
        for n, _ in trainer.student.named_parameters()
        if "lora_A" in n
    }
    assert found == {f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")}


def test_the_order_of_rows_has_the_seed_that_transformers_would_take(tmp_path: Path) -> None:
    orders = [
        list(made(tmp_path, args=arguments(tmp_path, **seeds))._get_train_sampler())
        for seeds in ({"seed": 7}, {"seed": 7, "data_seed": 8}, {"seed": 8})
    ]
    assert orders[0] != orders[1] == orders[2]


def test_what_is_missing_or_wrong_is_said_in_one_sentence(tmp_path: Path) -> None:
    student, _ = models()
    with pytest.raises(ConfigError, match="teacher_model and train_dataset"):
        SemAlignTrainer(student, args=arguments(tmp_path))
    with pytest.raises(ConfigError, match="args: expected a SemAlignConfig, got TrainingArguments; it takes"):
        SemAlignTrainer(student, args=TrainingArguments(str(tmp_path)))  # type: ignore[arg-type]
    trainer = made(tmp_path, eval_dataset=None)
    with pytest.raises(ConfigError, match="give eval_dataset when the trainer is made"):
        trainer.evaluate()
    with pytest.raises(ConfigError, match="teacher is gone"):
        made(tmp_path).evaluate(HELDOUT)
    with pytest.raises(ConfigError, match=r"trainer\.student"):
        trainer.predict(HELDOUT)
    with pytest.raises(ConfigError, match="hub_model_id"):
        trainer.push_to_hub()
