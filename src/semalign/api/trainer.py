"""A Trainer of the paired layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import IntervalStrategy, PreTrainedTokenizerBase, TrainerCallback

from semalign.api.arguments import SemAlignConfig, check_args
from semalign.api.targets import Model, Rows, adapted_layers, cache_targets, check_student, open_student
from semalign.config import TrainConfig, plain
from semalign.errors import ConfigError
from semalign.evaluation.heldout import heldout_batches
from semalign.methods import resolve
from semalign.methods.recipe import Recipe
from semalign.models.decoder import Decoder, is_transposed, lora_modules, share_vocabulary
from semalign.report.hub import push
from semalign.run.files import replacing_folder, saving, write_yaml
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
    were computed without it. Callbacks may measure and save, and let `trainer.student` answer; with activation checkpointing it has to be put
    into eval mode for that, as in transformers.

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
        check_args(args)
        recipe = _one_stage(resolve(args.recipe))  # type: ignore[arg-type]
        if targets is not None and not (teacher_model is train_dataset is eval_dataset is None):
            raise ConfigError(
                "SemAlignTrainer: expected teacher_model, train_dataset and eval_dataset, or targets, which were made of such, got both; "
                "give cache_targets the rows."
            )
        _check_adapters(model, peft_config)
        if args.eval_strategy != "no" and not (eval_dataset if targets is None else targets.inputs.heldout):
            raise ConfigError(
                f"eval_strategy: expected no without held-out rows, got {IntervalStrategy(args.eval_strategy).value}; give eval_dataset, or "
                "leave it out."
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
        check_student(targets, decoder)
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
            with self._runnable():
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

    @contextmanager
    def _runnable(self) -> Iterator[None]:
        """Inside, callbacks may run a student of half precision as a whole, though its trained layers are float32."""
        model: Any = self.decoder.model
        half, forward, is_replaced = (
            model.get_output_embeddings().weight.dtype,
            model.forward,
            "forward" in vars(model),
        )
        model.forward = torch.autocast(model.device.type, half, enabled=half != torch.float32)(forward)
        try:
            yield
        finally:
            model.forward = forward
            if not is_replaced:
                del model.forward

    def _autocast(self) -> Any:
        """What a forward pass of the whole student needs while its trained layers are float32 and the others are not."""
        half = torch.bfloat16 if self.args.bf16 else torch.float16
        is_mixed = bool(self._types) and (self.args.bf16 or self.args.fp16)
        return torch.autocast(self.decoder.device.type, half, enabled=is_mixed)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The student, or its adapter, as from_pretrained reads it, with its tokenizer; with `push_to_hub` it is uploaded too.

        Checkpoints hold the suffix alone.
        """
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
            return
        if self.args.should_save:
            self._save_student(Path(output_dir or self.args.output_dir))  # type: ignore[arg-type]
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save")

    def _save_student(self, folder: Path) -> None:
        with saving(folder):
            # A callback saves while the student's trained layers are float32.
            self.student.save_pretrained(folder, **self._in_own_types())
            self.targets.inputs.tokenizer.save_pretrained(folder)

    def _in_own_types(self) -> dict[str, Any]:
        """The weights to save where those in training are of another type than the student's; adapters stay float32."""
        if not self._types or isinstance(self.student, PeftModel):
            return {}
        held = self.student.state_dict()
        return {"state_dict": {name: held[name].to(self._types.get(name, held[name].dtype)) for name in held}}

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = None,
        *,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **_: Any,
    ) -> str | None:
        """Upload the student with its card to `args.hub_model_id`, and nothing else of the output folder.

        What is not given is as `args` has it. The card tells of the training by itself and takes none of what transformers' takes.

        Returns:
            The address; None in all processes but the main one.
        """
        run, args = self.targets.run, self.args
        if not args.hub_model_id:
            raise ConfigError("hub_model_id: expected ORG/NAME, got none; set it in SemAlignConfig.")
        if not self.is_world_process_zero():
            return None
        student = run.training() / "student"
        # Nothing stays of a student that was uploaded before, in another form or with other files.
        with replacing_folder(student) as folder:
            self._save_student(folder)
        config = self.targets.config
        # The card says what the trainer was given, which the targets need not have known.
        given = replace(config.train, learning_rate=args.learning_rate)
        write_yaml(run.config, plain(replace(config, train=given)))
        write_sums(student)
        found = push(
            run,
            args.hub_model_id,
            private=args.hub_private_repo if private is None else private,
            is_dry=False,
            token=token or args.hub_token,
            revision=revision or args.hub_revision,
            message=commit_message,
        )
        return found["uploaded"]

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Checkpoints hold the suffix, which nobody could load: `save_model` and `push_to_hub` upload the student."""

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
    lora = recipe.lora_r, recipe.lora_target_modules
    if recipe.trained == "all" or lora != (None, None) or recipe.start == "pissa":
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


OUTSIDE = ("layers_to_transform", "modules_to_save", "trainable_token_indices")
"""Fields of a LoraConfig by which something else is trained than the modules of the paired layers."""


def _check_adapters(model: Model, peft_config: LoraConfig | None) -> None:
    """Refuse what trains beside the modules of the paired layers, before anything is cached."""
    if peft_config is None:
        return
    if isinstance(model, PeftModel):
        raise ConfigError("peft_config: expected none beside a PeftModel; leave it out.")
    if not isinstance(peft_config, LoraConfig):
        raise ConfigError(f"peft_config: expected a LoraConfig, got {type(peft_config).__name__}; use LoRA.")
    given = [name for name in OUTSIDE if getattr(peft_config, name)]
    if given or peft_config.bias == "all":
        raise ConfigError(
            f"peft_config: expected adapters alone, in the layers that pairing chooses, got {', '.join(given) or 'bias all'}; leave it out, "
            "and choose layers by pairing."
        )
    wanted = peft_config.target_modules
    if isinstance(wanted, str) and wanted != "all-linear":
        raise ConfigError(
            f"peft_config.target_modules: expected a list of names or all-linear, got {wanted!r}; list the names."
        )


def _trainable(decoder: Decoder, student: Any, plan: Plan, peft_config: LoraConfig | None) -> Any:
    """The student with exactly the plan's layers, or adapters in them, taking gradients."""
    if not isinstance(student, PeftModel):
        student.requires_grad_(False)
        if peft_config is None:
            for layer in plan.trained_layers:
                decoder.layers[layer - 1].requires_grad_(True)
            return student
        wanted = peft_config.target_modules
        names = () if wanted == "all-linear" else sorted(wanted or ())
        chosen = copy.copy(peft_config)
        chosen.fan_in_fan_out = is_transposed(decoder)
        chosen.target_modules = lora_modules(decoder, plan.trained_layers, names)
        student = get_peft_model(student, chosen)
    if (layers := adapted_layers(decoder)) != plan.trained_layers:
        raise ConfigError(
            f"expected adapters in the layers {list(plan.trained_layers)}, which the targets were made to train, got them in {list(layers)}; "
            "give cache_targets the same PeftModel, or a peft_config with bias none and names of modules that each of these layers has."
        )
    return student
