"""The student before and after training: which weights take gradients, how they moved, how they are saved."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from semalign.config import TransferConfig
from semalign.data.batches import batch_inputs
from semalign.data.inputs import Inputs
from semalign.data.tokens import end_of_answer
from semalign.errors import ConfigError, ModelError
from semalign.evaluation.decoding import ends_in
from semalign.models.decoder import Decoder, is_transposed, lora_modules
from semalign.run.files import Record, replacing_folder, saving
from semalign.signals.plan import Plan

log = logging.getLogger(__name__)


@contextmanager
def trainable(
    student: Decoder,
    plan: Plan,
    config: TransferConfig,
    start: str = "untouched",
    factors: Record | None = None,
) -> Iterator[Any]:
    """Inside, exactly the plan's layers (or LoRA modules in them) take gradients, in float32; LoRA starts at `factors`."""
    original = types_of(student)
    student.model.requires_grad_(False)
    # For LoRA's factors, and for the projectors of the objective that is made afterwards.
    torch.manual_seed(config.seed)
    model: Any = student.model
    if config.train.lora_r:
        lora = LoraConfig(
            r=config.train.lora_r,
            lora_alpha=config.train.lora_alpha,
            target_modules=lora_modules(student, plan.trained_layers, config.train.lora_target_modules),
            task_type="CAUSAL_LM",
            fan_in_fan_out=is_transposed(student),
            init_lora_weights="pissa" if start == "pissa" else True,
        )
        if start == "pissa" or factors:
            # What LoRA takes over is subtracted from the weights, which half precision would round.
            for layer in plan.trained_layers:
                student.layers[layer - 1].float()
        model = get_peft_model(student.model, lora)
        _take_over(student, factors or {})
    elif student.is_quantised or config.student.load_in_8bit or config.student.load_in_4bit:
        raise ConfigError(
            "train.lora_r: a quantised student can only train LoRA, got full weights; set train.lora_r."
        )
    elif start == "pissa":
        raise ConfigError("recipe.start: pissa starts LoRA modules, got full weights; set recipe.lora_r.")
    else:
        for layer in plan.trained_layers:
            student.layers[layer - 1].requires_grad_(True)
    to_float32(student, plan.cut if config.train.cache_prefix else 0, keep_frozen=config.train.bf16)
    if config.train.activation_checkpointing:
        student.model.activation_checkpointing_enable({"use_reentrant": False})
    yield model
    if config.train.activation_checkpointing:
        student.model.activation_checkpointing_disable()
    to_types(student, original)


def types_of(student: Decoder) -> dict[str, torch.dtype]:
    """The type of every parameter by name."""
    return {name: p.dtype for name, p in student.model.named_parameters()}


def to_float32(student: Decoder, cut: int, *, keep_frozen: bool) -> None:
    """Layers above the cut and the final norm in float32, so that trained weights are exact masters.

    Frozen weights may stay as they are only where autocast multiplies in half precision anyway, which on a CPU it does not in layer
    norms.
    """
    for module in student.layers[cut:]:
        for norm in (part for part in module.modules() if isinstance(part, nn.LayerNorm)):
            norm.float()
        for parameter in module.parameters():
            if parameter.is_floating_point() and (parameter.requires_grad or not keep_frozen):
                parameter.data = parameter.data.float()
    student.final_norm.float()


def to_types(student: Decoder, types: dict[str, torch.dtype]) -> None:
    """Back to the types of `types_of`; what was not there then stays."""
    for name, parameter in student.model.named_parameters():
        if name in types:
            parameter.data = parameter.data.to(types[name])


@torch.no_grad()
def _take_over(student: Decoder, factors: Record) -> None:
    """Put factors `<layer>.<module>.lora_A` and `.lora_B` into LoRA and take their product off the weights."""
    for key in (k for k in factors if k.endswith(".lora_A")):
        layer, name, _ = key.split(".")
        module = student.projections(int(layer))[name]
        if not hasattr(module, "lora_A"):
            continue
        weight = module.get_base_layer().weight
        a, b = (factors[f"{layer}.{name}.lora_{side}"].to(weight.device) for side in "AB")
        module.lora_A["default"].weight.copy_(a)
        module.lora_B["default"].weight.copy_(b)
        weight -= module.scaling["default"] * (b @ a)


@torch.no_grad()
def add_deltas(student: Decoder, start: Record) -> None:
    """Add `<layer>.<module>.delta` (k, E) to the rows or columns of the module's weight that the start names."""
    for key in (k for k in start if k.endswith(".delta")):
        layer, name, _ = key.split(".")
        weight = student.projections(int(layer))[name].weight
        axis = 0 if f"{layer}.{name}.rows" in start else 1
        ids = start[f"{layer}.{name}.{'columns' if axis else 'rows'}"].to(weight.device)
        delta = start[key].to(weight.device)
        # Added in float32: half precision would lose deltas far smaller than the weights one by one.
        weight.copy_(weight.float().index_add(axis, ids, delta.T if axis else delta))


def weights_of(student: Decoder, layer: int) -> list[Tensor]:
    return [p.detach().clone() for p in student.layers[layer - 1].parameters()]


def movement(student: Decoder, before: dict[int, list[Tensor]]) -> list[dict[str, float]]:
    """Relative change |w - w0| / |w0| of every trained layer, after rounding to the saved type."""
    moved = []
    for layer, start in before.items():
        change = [
            (w.float() - w0.float()).norm() for w, w0 in zip(weights_of(student, layer), start, strict=True)
        ]
        size = torch.stack([w0.float().norm() for w0 in start]).norm()
        moved.append({"layer": layer, "relative_change": float(torch.stack(change).norm() / size)})
    if all(m["relative_change"] == 0 for m in moved):
        raise ModelError(
            "training changed no weight of the saved student; give it more steps (the first warm-up step has rate 0), "
            "raise train.learning_rate, or load it in float32."
        )
    return moved


def merge(model: PeftModel, folder: Path, start: str) -> Any:
    """Merge LoRA in float32, and keep the adapter beside the student where it fits the untouched weights."""
    if start == "untouched":
        _keep_adapter(model, folder)
    base: Any = model.base_model
    for layer in base.model.modules():
        if hasattr(layer, "base_layer") and layer.base_layer.weight.is_floating_point():
            layer.base_layer.float()
    return base.merge_and_unload()


def _keep_adapter(model: PeftModel, folder: Path) -> None:
    with replacing_folder(folder / "adapter") as temporary, saving(folder / "adapter"):
        model.save_pretrained(str(temporary))


def _say_how_answers_end(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Name the chat template's end of an answer in the saved generation settings, where a base model's name another token alone.

    A student that learned to end its answers with it would go on beyond it wherever it is served.
    """
    end, settings = end_of_answer(tokenizer), copy.deepcopy(model.generation_config)
    if end is None or settings is None or end in ends_in(settings, tokenizer, template=False):
        return
    settings.eos_token_id = ends_in(settings, tokenizer)
    settings.save_pretrained(folder)
    log.warning(
        "the chat template ends answers with %r, which is no end token of the student; its generation_config.json names it now",
        tokenizer.decode([end]),
    )


def save_student(model: Any, inputs: Inputs, config: TransferConfig, target: Path) -> None:
    """Save in a temporary folder, reload, compare logits, then move into place."""
    with replacing_folder(target) as temporary:
        with saving(target):
            model.save_pretrained(temporary)
            inputs.tokenizer.save_pretrained(temporary)
            _say_how_answers_end(model, inputs.tokenizer, temporary)
        kernel = config.student.attn_implementation
        options: dict[str, Any] = {"attn_implementation": kernel} if kernel else {}
        # Its own code is saved beside it.
        options["trust_remote_code"] = config.student.trust_remote_code
        reloaded: Any = AutoModelForCausalLM.from_pretrained(temporary, dtype=model.dtype, **options)
        probe, _ = batch_inputs(Decoder(model, None), inputs.train[:1])
        with torch.no_grad():
            difference = (
                (model(input_ids=probe).logits - reloaded.to(probe.device)(input_ids=probe).logits)
                .abs()
                .max()
            )
        if not float(difference) <= 1e-3:
            raise ModelError(
                f"{target}: the reloaded student's logits differ by {float(difference):.2g} from the trained one's."
            )
