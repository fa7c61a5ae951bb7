"""What training needs of both models, from models and rows in memory or by name."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, SchedulerType

from semalign.api.arguments import GROUPS, SemAlignConfig
from semalign.config import (
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    PairingConfig,
    TrainConfig,
    TransferConfig,
    plain,
)
from semalign.data import disjoint
from semalign.data.drawing import rows_named
from semalign.data.inputs import inputs_of
from semalign.data.mixture import Drawn
from semalign.data.rows import accept, numbered
from semalign.errors import ConfigError, DataError, ModelError
from semalign.models.decoder import Decoder
from semalign.models.finding import load_tokenizer
from semalign.models.layouts import WRAPPERS
from semalign.models.loading import Checkpoint, checked, in_memory, load, named
from semalign.models.origin import origin
from semalign.models.wrappers import text_of
from semalign.run import ranks
from semalign.run.environment import environment
from semalign.run.files import write_json, write_yaml
from semalign.run.folder import RunFolder
from semalign.signals.prepared import Prepared
from semalign.steps.attribute import attribute
from semalign.steps.cache import cache
from semalign.steps.pair import pair
from semalign.training.arguments import OPTIMISER

logger = logging.getLogger(__name__)
Model = str | ModelConfig | PreTrainedModel | PeftModel
Rows = str | Iterable[dict[str, Any]]
"""A name as in `data.dataset_name`, a datasets.Dataset, or a list of rows."""


def cache_targets(
    model: Model,
    teacher_model: Model,
    args: SemAlignConfig,
    train_dataset: Rows,
    *,
    eval_dataset: Rows | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
) -> Prepared:
    """Attribution, pairing, and one pass of each model over the rows, written to `args.output_dir`.

    What is there already from the same models, rows and options is kept. Models given by name are read one at a time
    and freed; of a teacher given in memory no reference is kept.

    Args:
        model: the student. The layers of a PeftModel that have adapters are those that are paired and trained.
        processing_class: tokenizer of models in memory; None: the one of the model's own folder.

    Returns:
        All that training and measuring read of the teacher, and the plan: `plan.pairs` and `plan.trained_layers`.

    Raises:
        SemAlignError: the models, the rows or the options do not go together; the sentence says how.
    """
    ranks.start()
    student = _checkpoint(model, processing_class)
    teacher = _checkpoint(teacher_model, processing_class, needs_layers=False)
    config = _transfer_config(args, model, teacher_model, train_dataset, eval_dataset)
    if isinstance(model, PeftModel):
        config = replace(config, pairing=adapted(config.pairing, student.open()))
    run = RunFolder(Path(args.output_dir))  # type: ignore[arg-type]
    inputs = inputs_of(config, teacher, student, _drawn(config.data, train_dataset, eval_dataset))
    with run.lock():
        if ranks.is_main():
            write_yaml(run.config, plain(config))
            write_json(run.environment, environment())
            write_json(run.data, inputs.counts())
            write_json(run.models, {"teacher": origin(config.teacher), "student": origin(config.student)})
            attribute(config, run, inputs)
            pair(config, run, inputs)
        ranks.wait()
        prepared = Prepared.read(config, run, inputs)
        cache(prepared)
        ranks.wait()
    # The inputs live as long as the trainer; the teacher must not.
    return replace(prepared, inputs=replace(inputs, open_teacher=_gone, open_student=_gone))


def _gone() -> Decoder:
    raise ModelError("the teacher and the untouched student are no longer in memory after caching.")


def _transfer_config(
    args: SemAlignConfig, model: Model, teacher: Model, train: Rows, heldout: Rows | None
) -> TransferConfig:
    """The same run in the words of the steps, for them and for the card; what only concerns the Trainer stays in `args`."""
    groups: dict[str, Any] = {name: getattr(args, name) for name in GROUPS}
    optimiser: dict[str, Any] = {name: getattr(args, name) for name in OPTIMISER}
    optimiser["lr_scheduler_type"] = SchedulerType(args.lr_scheduler_type).value
    optimiser["bf16"] = bool(args.bf16)
    return TransferConfig(
        teacher=_model_config(teacher),
        student=_model_config(model),
        data=DataConfig(
            train if isinstance(train, str) else "rows",
            heldout_name=heldout if isinstance(heldout, str) else None,
            max_length=args.max_length,
            supervise=args.supervise,
            thinking=args.thinking,
        ),
        output_dir=str(args.output_dir),
        train=TrainConfig(
            cache_prefix=args.cache_prefix,
            lora_r=0,
            activation_checkpointing=bool(args.activation_checkpointing),
            **optimiser,
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


def _checkpoint(
    model: Model, processing_class: PreTrainedTokenizerBase | None, *, needs_layers: bool = True
) -> Checkpoint:
    if isinstance(model, (str, ModelConfig)):
        return named(_model_config(model), needs_layers=needs_layers)
    return in_memory(open_student(model, processing_class, needs_layers=needs_layers)[0])


def open_student(
    model: Model, processing_class: PreTrainedTokenizerBase | None, *, needs_layers: bool = True
) -> tuple[Decoder, Any]:
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
    tokenizer = processing_class or _tokenizer_beside(inner)
    if inner.config.model_type in WRAPPERS and hasattr(inner.base_model, "language_model"):
        if isinstance(model, PeftModel):
            raise ModelError(
                f"{_name(inner)}: expected adapters on a text model, got some on a {type(inner).__name__}, of which only the text model can be "
                "trained; give its name, or the model without adapters and peft_config."
            )
        name, inner = _name(inner), text_of(inner)
        inner.name_or_path = name
        model = inner
    if torch.cuda.is_available() and inner.device.type == "cpu":
        inner.to("cuda")
    return checked(Decoder(inner, tokenizer, _name(inner), needs_layers=needs_layers)), model


def _tokenizer_beside(model: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of the folder or repository that a model in memory was loaded from."""
    if not getattr(model, "name_or_path", ""):
        raise ModelError(
            f"{type(model).__name__}: expected a tokenizer beside a model that was made in memory, got none; give it as processing_class."
        )
    return load_tokenizer(ModelConfig(_name(model)))


def adapted(pairing: PairingConfig, student: Decoder) -> PairingConfig:
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
    if isinstance(given, Mapping):
        raise DataError(
            f"{name}: expected rows, got a dict; give a datasets.Dataset, a list of dicts, or a name."
        )
    return accept(numbered(name, given), name, on_bad_row=None)
