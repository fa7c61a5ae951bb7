"""SemAlign as users of transformers, peft and trl know a trainer.

    args = SemAlignConfig("runs/mine", num_train_epochs=3, pairing={"num_layers": 6})
    trainer = SemAlignTrainer("student", "teacher", args, rows, eval_dataset=heldout)
    trainer.train()
    trainer.save_model("student-trained")

The same steps as `transfer`, on models, rows and adapters that are in memory already, or on their names.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SchedulerType,
    TrainerCallback,
    TrainingArguments,
)

from semalign import ranks
from semalign.cache import write_atomic, write_json
from semalign.callbacks import GradientCheck
from semalign.config import (
    AttributionConfig,
    CacheConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    PairingConfig,
    RecipeConfig,
    TrainConfig,
    TransferConfig,
    plain,
)
from semalign.data import disjoint
from semalign.data.mixture import Drawn
from semalign.errors import ConfigError, DataError, ModelError
from semalign.folder import RunFolder, free_memory
from semalign.hub import push
from semalign.loading import Checkpoint, checked, in_memory, load, load_tokenizer, named
from semalign.methods import resolve
from semalign.models import Decoder, linear_names, lora_modules, share_vocabulary
from semalign.origin import origin
from semalign.recipe import Recipe
from semalign.run import environment
from semalign.steps.attribute import attribute
from semalign.steps.cache import Stores, cache
from semalign.steps.heldout import heldout_batches
from semalign.steps.inputs import Inputs, inputs_of, rows_named
from semalign.steps.pair import Plan, pair, read_plan
from semalign.steps.student import to_float32, to_types, types_of
from semalign.steps.train import cached_supervision, read_teacher_head
from semalign.suffix import Collator, SuffixModel, SuffixTrainer

logger = logging.getLogger(__name__)
Model = str | ModelConfig | PreTrainedModel | PeftModel
Rows = str | Iterable[dict[str, Any]]
"""A name as in `data.dataset_name`, a datasets.Dataset, or a list of rows."""


@dataclass
class SemAlignConfig(TrainingArguments):
    """transformers' TrainingArguments, with SemAlign's groups of options beside them and its defaults.

    A group is its dataclass or a dict of its fields: `pairing={"num_layers": 6}`.
    """

    learning_rate: float | None = None  # type: ignore[assignment]
    """Peak learning rate; None: the recipe's own."""
    per_device_train_batch_size: int = 16
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1
    logging_steps: float = 1
    save_steps: float = 200
    logging_nan_inf_filter: bool = False
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = False
    ddp_find_unused_parameters: bool | None = False
    recipe: RecipeConfig | dict | str = field(default_factory=RecipeConfig)
    """The objective: a recipe's name, or RecipeConfig's fields."""
    pairing: PairingConfig | dict = field(default_factory=PairingConfig)
    """Which student layers are trained, towards which teacher layers; see PairingConfig."""
    attribution: AttributionConfig | dict = field(default_factory=AttributionConfig)
    """How the teacher's layers are scored; see AttributionConfig."""
    cache: CacheConfig | dict = field(default_factory=CacheConfig)
    """What is kept of the teacher; see CacheConfig."""
    cache_prefix: bool = True
    """Compute the frozen layers below the lowest trained one once instead of in every step."""
    max_length: int = 1024
    """Tokens a row may have; longer completions are cut, prompts are kept."""
    supervise: Literal["completion", "all"] = "completion"
    """Which tokens are supervised: those of the last assistant turn, or all."""

    def __post_init__(self) -> None:
        if isinstance(self.recipe, str):
            self.recipe = RecipeConfig(self.recipe)
        for name, kind in GROUPS.items():
            setattr(self, name, _group(name, kind, getattr(self, name)))
        if self.learning_rate is None:
            self.learning_rate = resolve(self.recipe).learning_rate  # type: ignore[arg-type]
        # Models are loaded on the first GPU, or without one on the CPU; the Trainer has to stay there.
        has_gpu = torch.cuda.is_available()
        if self.use_cpu and has_gpu:
            raise ConfigError(
                "use_cpu: expected false where a GPU is, got true; hide the GPU with CUDA_VISIBLE_DEVICES= instead."
            )
        self.use_cpu = not has_gpu
        super().__post_init__()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for what reports and saves them."""
        return {k: asdict(v) if is_dataclass(v) else v for k, v in super().to_dict().items()}  # type: ignore[arg-type]


GROUPS: dict[str, type] = {
    "recipe": RecipeConfig,
    "pairing": PairingConfig,
    "attribution": AttributionConfig,
    "cache": CacheConfig,
}


def _group(name: str, kind: type, given: Any) -> Any:
    if isinstance(given, kind):
        return given
    known = [f.name for f in fields(kind)]
    if not isinstance(given, dict) or (wrong := [key for key in given if key not in known]):
        got = f"{', '.join(wrong)}" if isinstance(given, dict) else repr(given)
        raise ConfigError(f"{name}: expected fields among {', '.join(known)}, got {got}; change it.")
    return kind(**given)


@dataclass(frozen=True)
class Targets:
    """What `cache_targets` leaves in `args.output_dir`: all that training and measuring read of the teacher."""

    run: RunFolder
    plan: Plan
    """Pairs, and the student layers that are trained."""
    inputs: Inputs
    """Rows as tokens."""
    config: TransferConfig


def cache_targets(
    model: Model,
    teacher_model: Model,
    args: SemAlignConfig,
    train_dataset: Rows,
    *,
    eval_dataset: Rows | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
) -> Targets:
    """Attribution, pairing, and one pass of each model over the rows, written to `args.output_dir`.

    What is there already from the same models, rows and options is kept. Models given by name are read one at a time
    and freed; of a teacher given in memory no reference is kept.

    Args:
        model: the student. The layers of a PeftModel that have adapters are those that are paired and trained.
        processing_class: tokenizer of models in memory; None: the one of the model's own folder.

    Raises:
        SemAlignError: the models, the rows or the options do not go together; the sentence says how.
    """
    ranks.start()
    student = _checkpoint(model, processing_class)
    teacher = _checkpoint(teacher_model, processing_class)
    config = _transfer_config(args, model, teacher_model, train_dataset, eval_dataset)
    if isinstance(model, PeftModel):
        config = replace(config, pairing=_adapted(config.pairing, student.open()))
    run = RunFolder(Path(args.output_dir))  # type: ignore[arg-type]
    inputs = inputs_of(config, teacher, student, _drawn(config.data, train_dataset, eval_dataset))
    with run.lock():
        if ranks.is_main():
            write_atomic(run.config, yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True))
            write_json(run.environment, environment())
            write_json(run.data, inputs.counts())
            write_json(run.models, {"teacher": origin(config.teacher), "student": origin(config.student)})
            attribute(config, run, inputs)
            pair(config, run, inputs)
        ranks.wait()
        cache(config, run, inputs)
        ranks.wait()
    # The inputs live as long as the trainer; the teacher must not.
    return Targets(run, read_plan(run), replace(inputs, open_teacher=_gone, open_student=_gone), config)


def _gone() -> Decoder:
    raise ModelError("the teacher and the untouched student were let go after caching.")


class SemAlignTrainer(SuffixTrainer):
    """Trains the paired layers of a student towards a teacher's cached signals.

    A transformers Trainer: callbacks, `report_to`, `resume_from_checkpoint`, gradient accumulation, mixed precision,
    activation checkpointing and `push_to_hub` work as there. Making one runs `cache_targets`, and the teacher is gone
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
        targets: Targets | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = args or SemAlignConfig()
        recipe = _one_stage(resolve(args.recipe))  # type: ignore[arg-type]
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
        decoder, student = _student(model, processing_class)
        share_vocabulary(targets.inputs.vocabulary, decoder)
        torch.manual_seed(args.seed)  # of LoRA's factors and of the projectors that the objective may learn
        self.student: Any = _trainable(decoder, student, targets.plan, peft_config)
        """The student in transformers' or peft's form."""
        inputs, plan = targets.inputs, targets.plan
        stores = Stores(targets.config, targets.run, inputs, plan)
        supervision = cached_supervision(inputs, stores, recipe)
        cut = stores.request.cut or 0
        head = (
            read_teacher_head(targets.run, inputs).to(decoder.device) if recipe.needs_teacher_head else None
        )
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
        types = types_of(self.decoder)
        to_float32(self.decoder, self.cut, keep_frozen=self.args.bf16)
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.args.activation_checkpointing:
                self.decoder.model.gradient_checkpointing_disable()
            to_types(self.decoder, types)

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
        for _, _, figures, _ in heldout_batches(
            self.decoder, targets.config, targets.run, targets.inputs, metric_key_prefix
        ):
            for key, values in figures.items():
                found.setdefault(key, []).append(values)
        names = {"loss": "kl", "kl": "kl", "top1_agreement": "top1", "nll": "nll_student"}
        metrics = {
            f"{metric_key_prefix}_{name}": float(torch.cat(found[key]).mean()) for name, key in names.items()
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The student, or its adapter, as from_pretrained reads it, with its tokenizer; checkpoints hold the suffix alone."""
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
        elif self.args.should_save:
            folder = output_dir or self.args.output_dir
            self.student.save_pretrained(folder)
            self.targets.inputs.tokenizer.save_pretrained(folder)  # type: ignore[arg-type]

    def push_to_hub(self, commit_message: str | None = None, **kwargs: Any) -> str | None:  # type: ignore[override]
        """Upload the student with its card to `args.hub_model_id`, and nothing else of the output folder."""
        run = self.targets.run
        if not self.args.hub_model_id:
            raise ConfigError("hub_model_id: expected ORG/NAME, got none; set it in SemAlignConfig.")
        self.save_model(str(run.training() / "student"))
        if not self.is_world_process_zero():
            return None
        found = push(run, self.args.hub_model_id, private=self.args.hub_private_repo, is_dry=False)
        return found["uploaded"]

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Checkpoints hold the suffix, which nobody could load: the student goes up at the end."""

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Not offered: use the student's own generate, or `semalign evaluate`."""
        raise ConfigError("predict: expected evaluate, got predict; generate with trainer.student instead.")


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


def _transfer_config(
    args: SemAlignConfig, model: Model, teacher: Model, train: Rows, heldout: Rows | None
) -> TransferConfig:
    """The same run in the words of the steps, for them and for the card; what only concerns the Trainer stays in `args`."""
    groups: dict[str, Any] = {name: getattr(args, name) for name in GROUPS}
    groups["recipe"] = replace(groups["recipe"], learning_rate=args.learning_rate)
    return TransferConfig(
        teacher=_model_config(teacher),
        student=_model_config(model),
        data=DataConfig(
            train if isinstance(train, str) else "rows",
            heldout_name=heldout if isinstance(heldout, str) else None,
            max_length=args.max_length,
            supervise=args.supervise,
        ),
        output_dir=str(args.output_dir),
        train=TrainConfig(
            num_train_epochs=args.num_train_epochs,
            max_steps=args.max_steps,
            per_device_train_batch_size=args.per_device_train_batch_size,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            weight_decay=args.weight_decay,
            lr_scheduler_type=SchedulerType(args.lr_scheduler_type).value,
            warmup_steps=args.warmup_steps,
            max_grad_norm=args.max_grad_norm,
            bf16=bool(args.bf16),
            cache_prefix=args.cache_prefix,
        ),
        evaluation=EvaluationConfig(cka_rows=0),
        seed=args.seed,
        hub_model_id=args.hub_model_id,
        **groups,
    )


def _model_config(model: Model) -> ModelConfig:
    if isinstance(model, ModelConfig):
        return model
    return ModelConfig(model if isinstance(model, str) else _name(model))


def _name(model: Any) -> str:
    return getattr(model, "name_or_path", "") or type(model).__name__


def _checkpoint(model: Model, processing_class: PreTrainedTokenizerBase | None) -> Checkpoint:
    if isinstance(model, (str, ModelConfig)):
        return named(_model_config(model))
    return in_memory(_student(model, processing_class)[0])


def _student(model: Model, processing_class: PreTrainedTokenizerBase | None) -> tuple[Decoder, Any]:
    """A model's decoder, and the model as its user knows it; adapters are inside both."""
    if isinstance(model, (str, ModelConfig)):
        decoder = load(model)
        return decoder, decoder.model
    inner: Any = model
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            raise ModelError(
                f"expected adapters inside the layers, got {model.active_peft_config.peft_type}; use LoRA."
            )
        inner = model.get_base_model()
    tokenizer = processing_class or load_tokenizer(ModelConfig(_name(inner)))
    if torch.cuda.is_available() and inner.device.type == "cpu":
        inner.to("cuda")
    return checked(Decoder(inner, tokenizer, _name(inner))), model


def _adapted(pairing: PairingConfig, student: Decoder) -> PairingConfig:
    """The layers that hold trainable adapters, as the plan."""
    if pairing != PairingConfig(match=pairing.match, rows=pairing.rows):
        raise ConfigError(
            "pairing: expected no choice of layers beside a PeftModel, whose adapters choose them; use layers_to_transform."
        )
    layers = tuple(
        n for n, layer in enumerate(student.layers, 1) if any(p.requires_grad for p in layer.parameters())
    )
    inside = {id(p) for layer in student.layers for p in layer.parameters()}
    outside = [n for n, p in student.model.named_parameters() if p.requires_grad and id(p) not in inside]
    if outside or not layers:
        raise ConfigError(
            f"expected a PeftModel that trains modules of layers alone, got {outside[0] if outside else 'nothing to train'}; "
            "leave modules_to_save empty and is_trainable true."
        )
    if len(layers) == student.num_layers:
        logger.warning(
            "adapters on every layer: nothing is frozen below them, so that every step runs the whole student; "
            "layers_to_transform with the last quarter of the layers makes training several times cheaper"
        )
    return replace(pairing, layers=layers)


def _trainable(decoder: Decoder, student: Any, plan: Plan, peft_config: LoraConfig | None) -> Any:
    """The student with exactly the plan's layers, or adapters in them, taking gradients."""
    if isinstance(student, PeftModel):
        if peft_config is not None:
            raise ConfigError("peft_config: expected none beside a PeftModel; leave it out.")
        if _adapted(PairingConfig(), decoder).layers != plan.trained_layers:
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


def _drawn(data: DataConfig, train: Rows, heldout: Rows | None) -> Drawn:
    """Rows from whatever was given, those for measuring apart from those for training."""
    rows, kept = _rows(data, train, "train_dataset"), _rows(data, heldout, "eval_dataset")
    if kept and (shared := disjoint(rows, kept)):
        raise DataError(
            f"eval_dataset: {shared} of its prompts are among the training rows too; remove the duplicates from one side."
        )
    counts = {"weight": 1.0, "available": len(rows), "train": len(rows), "heldout": len(kept)}
    return Drawn(rows, kept, {str(data.dataset_name): counts})


def _rows(data: DataConfig, given: Rows | None, name: str) -> list[dict[str, Any]]:
    if given is None:
        return []
    if isinstance(given, str):
        return rows_named(given, data)
    rows = list(given)
    if rows and not isinstance(rows[0], dict):
        raise DataError(
            f"{name}: expected rows as dicts, got {type(rows[0]).__name__}; give a datasets.Dataset, a list of dicts, or a name."
        )
    return rows
