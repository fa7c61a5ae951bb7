"""A Trainer of the paired layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback

from semalign.api.arguments import SemAlignConfig
from semalign.api.targets import Model, Rows, adapted, cache_targets, open_student
from semalign.config import PairingConfig, TrainConfig, plain
from semalign.errors import ConfigError
from semalign.evaluation.heldout import heldout_batches
from semalign.methods import resolve
from semalign.methods.recipe import Recipe
from semalign.models.decoder import Decoder, is_transposed, linear_names, lora_modules, share_vocabulary
from semalign.report.hub import push
from semalign.run.files import saving, write_yaml
from semalign.run.meter import free_memory
from semalign.run.sums import write_sums
from semalign.signals.plan import Plan
from semalign.signals.prepared import Prepared
from semalign.signals.supervision import cached_supervision
from semalign.training.callbacks import GradientCheck
from semalign.training.collator import Collator
from semalign.training.student import to_float32, to_types, types_of
from semalign.training.suffix import SuffixModel, SuffixTrainer


class SemAlignTrainer(SuffixTrainer):
    """Trains the paired layers of a student towards a teacher's cached signals.

    A transformers Trainer: callbacks, `report_to`, `resume_from_checkpoint`, gradient accumulation, mixed precision,
    activation checkpointing and `push_to_hub` work as in transformers. Making one runs `cache_targets`, and the teacher is gone
    when it returns. The model is trained in place. Dropout, LoRA's included, stays off, since the cached signals
    were computed without it.

    Args:
        model: the student: name, ModelConfig, model in memory, or a PeftModel, whose adapters are trained.
        teacher_model: the same for the teacher; not needed with `targets`.
        train_dataset: rows of any kind that `semalign data check` knows.
        eval_dataset: rows for `evaluate`, different from the training rows.
        processing_class: tokenizer of models in memory; None: the one of the model's own folder.
        peft_config: train LoRA on the paired layers instead of their full weights; its target modules are names of
            modules in a layer, or "all-linear".
        targets: what `cache_targets` returned, instead of teacher and rows.

    Raises:
        SemAlignError: as `cache_targets`; or a recipe that one Trainer cannot run.
    """

    def __init__(
        self,
        model: Model,
        teacher_model: Model | None = None,
        args: SemAlignConfig | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: LoraConfig | None = None,
        *,
        targets: Prepared | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = args or SemAlignConfig()
        recipe = _one_stage(resolve(args.recipe))  # type: ignore[arg-type]
        if targets is not None and not (teacher_model is train_dataset is eval_dataset is None):
            raise ConfigError(
                "SemAlignTrainer: expected teacher_model, train_dataset and eval_dataset, or targets, which were made of such, got both; "
                "give cache_targets the rows."
            )
        if targets is None:
            if teacher_model is None or train_dataset is None:
                raise ConfigError(
                    "SemAlignTrainer: expected teacher_model and train_dataset, or targets, got neither; give one of them."
                )
            targets = cache_targets(
                model,
                teacher_model,
                args,
                train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
            )
            del teacher_model
            free_memory()
        self.targets, self.recipe = targets, recipe
        self._types: dict[str, torch.dtype] = {}
        decoder, student = open_student(model, processing_class)
        share_vocabulary(targets.inputs.vocabulary, decoder)
        torch.manual_seed(args.seed)  # of LoRA's factors and of the projectors that the objective may learn
        self.student: Any = _trainable(decoder, student, targets.plan, peft_config)
        """The student in transformers' or peft's form."""
        args = _with_rate(args, recipe, isinstance(self.student, PeftModel))
        inputs, plan = targets.inputs, targets.plan
        stores, supervision = targets.stores, cached_supervision(targets, recipe)
        cut = stores.request.cut or 0
        head = targets.teacher_head.to(decoder.device) if recipe.needs_teacher_head else None
        suffix = SuffixModel(decoder, cut, recipe, plan.at(recipe.interface), inputs.candidates, head)
        super().__init__(
            suffix,
            args,
            inputs.train,
            Collator(inputs.train, supervision, stores.student if cut else None, stores.request.prefix_keys),
            eval_dataset=inputs.heldout or None,
            processing_class=inputs.tokenizer,
            callbacks=[GradientCheck(), *(callbacks or [])],
            optimizers=optimizers,
        )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; trained weights are float32 meanwhile, and in their own type afterwards."""
        self._types = types = types_of(self.decoder)
        to_float32(self.decoder, self.cut, keep_frozen=self.args.bf16)
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.args.activation_checkpointing:
                self.decoder.model.activation_checkpointing_disable()
            to_types(self.decoder, types)
            self._types = {}

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Closeness to the teacher over the supervised tokens of the held-out rows.

        Returns:
            `eval_kl` (KL(teacher || student), nats a token), `eval_top1_agreement`, `eval_nll`, and `eval_loss`, which is
            the KL again, for what asks for a loss.
        """
        targets = self.targets
        if eval_dataset is not None:
            raise ConfigError(
                "evaluate: expected no rows, since the teacher is gone, got some; give eval_dataset when the trainer is made."
            )
        if not targets.inputs.heldout:
            raise ConfigError(
                "evaluate: expected held-out rows, got none; give eval_dataset when the trainer is made."
            )
        found: dict[str, list[Tensor]] = {}
        batches = heldout_batches(self.decoder, targets, metric_key_prefix, within=self._autocast)
        for _, _, figures, _ in batches:
            for key, values in figures.items():
                found.setdefault(key, []).append(values)
        names = {"loss": "kl", "kl": "kl", "top1_agreement": "top1", "nll": "nll_student"}
        metrics = {
            f"{metric_key_prefix}_{name}": float(torch.cat(found[key]).mean()) for name, key in names.items()
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _autocast(self) -> Any:
        """What a forward pass of the whole student needs while its trained layers are float32 and the others are not."""
        half = torch.bfloat16 if self.args.bf16 else torch.float16
        is_mixed = bool(self._types) and (self.args.bf16 or self.args.fp16)
        return torch.autocast(self.decoder.device.type, half, enabled=is_mixed)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The student, or its adapter, as from_pretrained reads it, with its tokenizer; checkpoints hold the suffix alone."""
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
        elif self.args.should_save:
            folder = output_dir or self.args.output_dir
            # A callback saves while the student is cut to its suffix and its trained layers are float32.
            whole = self.decoder.span(0, self.decoder.num_layers, norm=True)
            with saving(Path(folder)), whole:  # type: ignore[arg-type]
                self.student.save_pretrained(folder, **self._in_own_types())
                self.targets.inputs.tokenizer.save_pretrained(folder)  # type: ignore[arg-type]

    def _in_own_types(self) -> dict[str, Any]:
        """The weights to save where those in training are of another type than the student's; adapters stay float32."""
        if not self._types or isinstance(self.student, PeftModel):
            return {}
        held = self.student.state_dict()
        return {"state_dict": {name: held[name].to(self._types.get(name, held[name].dtype)) for name in held}}

    def push_to_hub(self, commit_message: str | None = None, **kwargs: Any) -> str | None:  # type: ignore[override]
        """Upload the student with its card to `args.hub_model_id`, and nothing else of the output folder."""
        run = self.targets.run
        if not self.args.hub_model_id:
            raise ConfigError("hub_model_id: expected ORG/NAME, got none; set it in SemAlignConfig.")
        self.save_model(str(run.training() / "student"))
        if not self.is_world_process_zero():
            return None
        config = self.targets.config
        # The card says what the trainer was given, which the targets need not have known.
        given = replace(config.train, learning_rate=self.args.learning_rate)
        write_yaml(run.config, plain(replace(config, train=given)))
        write_sums(run.training() / "student")
        found = push(run, self.args.hub_model_id, private=self.args.hub_private_repo, is_dry=False)
        return found["uploaded"]

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Checkpoints hold the suffix, which nobody could load: the student goes up at the end."""

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Not offered: use the student's own generate, or `semalign evaluate`."""
        raise ConfigError(
            "predict: SemAlignTrainer does not generate text; call trainer.student.generate, or run `semalign evaluate`."
        )


def _one_stage(recipe: Recipe) -> Recipe:
    if recipe.schedule != "joint" or recipe.start not in ("untouched", "pissa") or recipe.trained == "none":
        raise ConfigError(
            f"recipe: expected one that trains all its layers at once from the untouched student, got {recipe.name}; "
            "run it with semalign.transfer."
        )
    if recipe.trained == "all" or recipe.lora_r is not None or recipe.start == "pissa":
        raise ConfigError(
            f"recipe: {recipe.name} chooses layers or LoRA itself; here pairing and peft_config do, so give recipe "
            '"cross_entropy" or "kl" with pairing={"selection": "all"}, or a peft_config.'
        )
    return recipe


def _with_rate(args: SemAlignConfig, recipe: Recipe, has_adapters: bool) -> SemAlignConfig:
    """Options with a learning rate; the caller's own, which may serve another trainer, stay as they are."""
    train = recipe.train_of(TrainConfig(learning_rate=args.learning_rate, lora_r=int(has_adapters)))
    chosen = copy.copy(args)
    chosen.learning_rate = train.learning_rate
    return chosen


def _trainable(decoder: Decoder, student: Any, plan: Plan, peft_config: LoraConfig | None) -> Any:
    """The student with exactly the plan's layers, or adapters in them, taking gradients."""
    if isinstance(student, PeftModel):
        if peft_config is not None:
            raise ConfigError("peft_config: expected none beside a PeftModel; leave it out.")
        if adapted(PairingConfig(), decoder).layers != plan.trained_layers:
            raise ConfigError(
                f"targets: made to train layers {list(plan.trained_layers)}, the PeftModel has adapters elsewhere; give "
                "cache_targets the same PeftModel."
            )
        return student
    student.requires_grad_(False)
    if peft_config is None:
        for layer in plan.trained_layers:
            decoder.layers[layer - 1].requires_grad_(True)
        return student
    chosen = copy.copy(peft_config)
    chosen.fan_in_fan_out = is_transposed(decoder)
    chosen.target_modules = lora_modules(decoder, plan.trained_layers, _targets(peft_config, decoder))
    return get_peft_model(student, chosen)


def _targets(peft_config: LoraConfig, decoder: Decoder) -> Sequence[str]:
    wanted = peft_config.target_modules
    if peft_config.layers_to_transform is not None or peft_config.modules_to_save:
        raise ConfigError(
            "peft_config: expected pairing to choose the layers, got layers_to_transform or modules_to_save; use pairing."
        )
    if wanted == "all-linear":
        return linear_names(decoder)
    if isinstance(wanted, str):
        raise ConfigError(
            f"peft_config.target_modules: expected a list of names or all-linear, got {wanted!r}; list the names."
        )
    return sorted(wanted or ())
