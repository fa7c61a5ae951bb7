"""Step 4: train the paired layers towards the cached signals; save a student that loads with plain transformers."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from semalign.cache import read_tensors
from semalign.callbacks import GradientCheck, LineLog, StopOnSignal, complete_checkpoint
from semalign.config import TransferConfig, to_dict
from semalign.errors import ConfigError, ModelError
from semalign.folder import RunFolder, fingerprint, is_done, measured, save_result
from semalign.loading import load
from semalign.models import Decoder, Head, head_options, lora_modules, share_vocabulary
from semalign.progress import LossProgress
from semalign.recipes import Recipe
from semalign.signals import batch_inputs
from semalign.steps.cache import Stores, recipes_of
from semalign.steps.inputs import Inputs
from semalign.steps.pair import Plan, read_plan
from semalign.supervision import CachedSupervision, LiveSupervision, Maps, Supervision
from semalign.trainer import Collator, SemAlignTrainer, SuffixModel


class Interrupted(KeyboardInterrupt):
    """Training stopped on a signal after saving a checkpoint."""


def train(config: TransferConfig, run: RunFolder, inputs: Inputs, baseline: str | None = None) -> None:
    """Write student/, train.jsonl and train.json into the run folder, or into a baseline's own folder in it."""
    plan, folder = read_plan(run), run.training(baseline)
    recipe = recipes_of(config)[baseline]
    stores = Stores(config, run, inputs, plan)
    wanted = fingerprint(
        cache=stores.fingerprint, recipe=asdict(recipe), train=to_dict(config.train), seed=config.seed
    )
    if is_done(folder / "train.json", wanted) and (folder / "student" / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {}
    with measured(result):
        student = load(config.student)
        share_vocabulary(inputs.vocabulary, student)
        before = {k: _weights(student, k) for k in plan.trained_layers}
        with prepared(student, plan, config) as model:
            supervision = _supervision(config, run, inputs, stores, recipe)
            head = read_teacher_head(run, inputs) if recipe.needs_teacher_output else None
            with _suffix(student, stores, recipe, head) as suffix:
                result |= _optimise(suffix, arguments(config, recipe, folder), inputs, stores, supervision)
            merged = _merge(model, folder) if isinstance(model, PeftModel) else student.model
        result["movement"] = _movement(student, before)
        _save(merged, inputs, config, folder / "student")
        del student, merged, model
        gc.collect()
    save_result(folder / "train.json", wanted, result)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


@contextmanager
def prepared(student: Decoder, plan: Plan, config: TransferConfig) -> Iterator[Any]:
    """Inside, exactly the plan's layers (or LoRA modules in them) take gradients, in float32."""
    original = {name: p.dtype for name, p in student.model.named_parameters()}
    student.model.requires_grad_(False)
    model: Any = student.model
    if config.train.lora_r:
        lora = LoraConfig(
            r=config.train.lora_r,
            lora_alpha=config.train.lora_alpha,
            target_modules=lora_modules(student, plan.trained_layers, config.train.lora_target_modules),
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(config.seed)
        model = get_peft_model(student.model, lora)
    elif config.student.load_in_8bit or config.student.load_in_4bit:
        raise ConfigError(
            "train.lora_r: a quantised student can only train LoRA, got full weights; set train.lora_r."
        )
    else:
        for layer in plan.trained_layers:
            student.layers[layer - 1].requires_grad_(True)
    for module in student.layers[plan.cut if config.train.cache_prefix else 0 :]:
        # Trained weights are float32 masters; frozen ones stay half only where autocast multiplies in half anyway.
        for parameter in module.parameters():
            if parameter.is_floating_point() and (parameter.requires_grad or not config.train.bf16):
                parameter.data = parameter.data.float()
    student.final_norm.float()
    if config.train.activation_checkpointing:
        student.model.gradient_checkpointing_enable({"use_reentrant": False})
    yield model
    if config.train.activation_checkpointing:
        student.model.gradient_checkpointing_disable()
    for name, parameter in student.model.named_parameters():
        if name in original:
            parameter.data = parameter.data.to(original[name])


def _supervision(
    config: TransferConfig, run: RunFolder, inputs: Inputs, stores: Stores, recipe: Recipe
) -> Supervision:
    layers = [p.student for p in stores.request.pairs]
    if not config.train.live_teacher:
        return CachedSupervision(stores.teacher, recipe, layers)
    teacher, untouched = load(config.teacher), load(config.student)
    share_vocabulary(inputs.vocabulary, teacher, untouched)
    untouched.model.requires_grad_(False)
    return LiveSupervision(
        teacher,
        untouched,
        inputs.train,
        stores.request,
        recipe=recipe,
        maps=Maps.read(run.targets / "maps.safetensors"),
    )


def read_teacher_head(run: RunFolder, inputs: Inputs) -> Head:
    """The teacher's head as the cache step stored it."""
    stored = read_tensors(run.targets / "teacher_head.safetensors")
    return Head(stored["weight"], head_options(inputs.teacher, stored.get("bias")))


@contextmanager
def _suffix(
    student: Decoder, stores: Stores, recipe: Recipe, teacher_head: Head | None
) -> Iterator[SuffixModel]:
    """The student cut where its cached streams begin, or whole when they are not cached."""
    cut = stores.request.cut or 0
    with student.span(cut, student.num_layers, norm=True):
        yield SuffixModel(student, cut, recipe, [p.student for p in stores.request.pairs], teacher_head)


def _optimise(
    suffix: SuffixModel, args: TrainingArguments, inputs: Inputs, stores: Stores, supervision: Supervision
) -> dict[str, Any]:
    """Run the Trainer, from the newest complete checkpoint if there is one."""
    folder = Path(str(args.output_dir))
    prefixes = stores.student if stores.request.cut is not None else None
    with StopOnSignal().installed() as stopper:
        trainer = SemAlignTrainer(
            suffix,
            args,
            inputs.train,
            Collator(inputs.train, supervision, prefixes),
            callbacks=[LineLog(folder / "train.jsonl"), GradientCheck(), stopper],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        if logging.getLogger("semalign").isEnabledFor(logging.INFO):
            trainer.add_callback(LossProgress)
        output = trainer.train(resume_from_checkpoint=complete_checkpoint(folder))
        if stopper.received is not None and trainer.state.global_step < trainer.state.max_steps:
            raise Interrupted(
                f"stopped after step {trainer.state.global_step}; run the same command again to go on"
            )
    trained = [p for p in suffix.parameters() if p.requires_grad]
    return {
        "steps": trainer.state.global_step,
        "loss": output.training_loss,
        "trained_parameters": sum(p.numel() for p in trained),
        "train_seconds": round(output.metrics["train_runtime"], 3),
    }


def arguments(config: TransferConfig, recipe: Recipe, folder: Path) -> TrainingArguments:
    """The config's fields as transformers' own."""
    t = config.train
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=t.num_train_epochs,
        max_steps=t.max_steps,
        per_device_train_batch_size=t.per_device_train_batch_size,
        gradient_accumulation_steps=t.gradient_accumulation_steps,
        learning_rate=recipe.learning_rate,
        weight_decay=t.weight_decay,
        lr_scheduler_type=t.lr_scheduler_type,
        warmup_steps=t.warmup_steps,
        max_grad_norm=t.max_grad_norm,
        bf16=t.bf16,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=t.logging_steps,
        save_steps=t.save_steps,
        save_total_limit=2,
        seed=config.seed,
        # A NaN step must show, never be averaged away.
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        report_to="none",
        dataloader_pin_memory=False,
        disable_tqdm=True,
        log_level="warning",
    )


def _weights(student: Decoder, layer: int) -> list[Tensor]:
    return [p.detach().clone() for p in student.layers[layer - 1].parameters()]


def _movement(student: Decoder, before: dict[int, list[Tensor]]) -> list[dict[str, float]]:
    """Relative change |w - w0| / |w0| of every trained layer, after rounding to the saved type."""
    moved = []
    for layer, start in before.items():
        change = [
            (w.float() - w0.float()).norm() for w, w0 in zip(_weights(student, layer), start, strict=True)
        ]
        size = torch.stack([w0.float().norm() for w0 in start]).norm()
        moved.append({"layer": layer, "relative_change": float(torch.stack(change).norm() / size)})
    if all(m["relative_change"] == 0 for m in moved):
        raise ModelError(
            "training changed no weight of the saved student; give it more steps (the first warm-up step has rate 0), "
            "raise recipe.learning_rate, or load it in float32."
        )
    return moved


def _merge(model: PeftModel, folder: Path) -> Any:
    """Keep the adapter beside the student, and merge it in float32."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".adapter-") as temporary:
        model.save_pretrained(temporary)
        shutil.rmtree(folder / "adapter", ignore_errors=True)
        shutil.copytree(temporary, folder / "adapter")
    base: Any = model.base_model
    for layer in base.model.modules():
        if hasattr(layer, "base_layer") and layer.base_layer.weight.is_floating_point():
            layer.base_layer.float()
    return base.merge_and_unload()


def _save(model: Any, inputs: Inputs, config: TransferConfig, target: Path) -> None:
    """Save in a temporary folder, reload, compare logits, then move into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".student-"))
    try:
        model.save_pretrained(temporary)
        inputs.tokenizer.save_pretrained(temporary)
        reloaded: Any = AutoModelForCausalLM.from_pretrained(temporary, dtype=model.dtype)
        probe, attention, _ = batch_inputs(Decoder(model, None), inputs.train[:1])
        with torch.no_grad():
            difference = (
                (model(probe, attention).logits - reloaded.to(probe.device)(probe, attention).logits)
                .abs()
                .max()
            )
        if not float(difference) <= 1e-3:
            raise ModelError(
                f"{target}: the reloaded student's logits differ by {float(difference):.2g} from the trained one's."
            )
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
