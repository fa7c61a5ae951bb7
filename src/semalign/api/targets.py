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

from semalign.api.arguments import GROUPS, SemAlignConfig, check_args
from semalign.config import (
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    PairingConfig,
    TrainConfig,
    TransferConfig,
    plain,
)
from semalign.config.parsing import read_yaml
from semalign.data import disjoint
from semalign.data.drawing import rows_named
from semalign.data.inputs import inputs_of
from semalign.data.mixture import Drawn
from semalign.data.rows import accept, numbered
from semalign.errors import ConfigError, DataError, ModelError, SemAlignError
from semalign.maths.quantise import relative_error
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
from semalign.signals.passes import extended_prefix, stream_of
from semalign.signals.prepared import Prepared
from semalign.steps.attribute import attribute
from semalign.steps.cache import cache
from semalign.steps.opening import place_cache
from semalign.steps.pair import pair
from semalign.training.arguments import OPTIMISER

logger = logging.getLogger(__name__)
Model = str | ModelConfig | PreTrainedModel | PeftModel
Rows = str | Iterable[dict[str, Any]]
"""A name as in `data.dataset_name`, a datasets.Dataset, or a list of rows."""
SAME = 0.1
"""How far two streams of one student may be apart, relative to their length: half precision, eight bits and other devices take some
hundredths, other weights about as much as the stream is long."""


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
        processing_class: tokenizer of models in memory; None: the one of the model's own folder. A teacher whose folder has one keeps
            that, so that it is refused where it is another.

    Returns:
        All that training and measuring read of the teacher, and the plan: `plan.pairs` and `plan.trained_layers`. It can be pickled,
        for a machine where a copy of `args.output_dir` has the same path.

    Raises:
        SemAlignError: the models, the rows or the options do not go together; the sentence says how.
    """
    check_args(args)
    if processing_class is not None and all(
        isinstance(m, (str, ModelConfig)) for m in (model, teacher_model)
    ):
        raise ConfigError(
            "processing_class: expected none beside models given by name, whose own tokenizers are read, got "
            f"{type(processing_class).__name__}; leave it out."
        )
    run = RunFolder(Path(args.output_dir))  # type: ignore[arg-type]
    _refuse_run(run)
    ranks.start()
    student = _checkpoint(model, processing_class)
    teacher = _checkpoint(teacher_model, _tokenizer_of(teacher_model, processing_class), needs_layers=False)
    config = _transfer_config(args, model, teacher_model, train_dataset, eval_dataset)
    if isinstance(model, PeftModel):
        config = replace(config, pairing=adapted(config.pairing, student.open()))
    inputs = inputs_of(config, teacher, student, _drawn(config.data, train_dataset, eval_dataset))
    with run.lock():
        if ranks.is_main():
            place_cache(config, run)
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


def _refuse_run(run: RunFolder) -> None:
    """Refuse a folder of the command line's, of which nearly every file would be written anew.

    What tells them apart: a trainer's options ask for no comparison of all layers, and answers and a training's result are a run's.
    """
    if not run.config.exists():
        return
    evaluation = read_yaml(run.config).get("evaluation")
    is_own = isinstance(evaluation, dict) and evaluation.get("cka_rows") == 0
    if not is_own or run.generated.exists() or (run.root / "train.json").exists():
        raise ConfigError(
            f"{run.root}: expected a new folder or one that a trainer made, got one that holds a run of the command line; choose another "
            "output_dir."
        )


def check_student(targets: Prepared, student: Decoder) -> None:
    """Refuse targets of another student, by its sizes and by the stream of one row, where streams are cached.

    Raises:
        ModelError: they are of another one.
    """
    made = targets.inputs.student
    sizes = {"layers": (made.layers, student.num_layers), "channels": (made.width, student.width)}
    wrong = [
        f"{got} {what} instead of {expected}" for what, (expected, got) in sizes.items() if expected != got
    ]
    request, rows = targets.stores.request, targets.inputs.train
    if not wrong and request.cut is not None:
        number = min(range(len(rows)), key=lambda n: len(rows[n].input_ids))
        [record] = extended_prefix(student, [rows[number]], None, (0, request.cut), request)
        stored = targets.stores.student.read(number, request.prefix_keys)
        apart = float(relative_error(stream_of(stored), stream_of(record)).median())
        if not apart <= SAME:
            wrong = [f"its stream after layer {request.cut} is {100 * apart:.0f}% off"]
    if wrong:
        raise ModelError(
            f"targets: expected the student that they were made with, got another one ({', '.join(wrong)}); give that one, or make targets "
            "of this one with cache_targets."
        )


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
    tokenizer = load_tokenizer(ModelConfig(_name(model))) if getattr(model, "name_or_path", "") else None
    # Of a folder without one transformers makes a tokenizer of special tokens alone.
    if tokenizer is None or set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ModelError(
            f"{_name(model)}: expected a tokenizer beside a model in memory, got none; give it as processing_class."
        )
    return tokenizer


def _tokenizer_of(teacher: Model, given: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase | None:
    """The teacher's own tokenizer where there is one, so that another one than the student's is noticed; else the given one."""
    if given is None or isinstance(teacher, (str, ModelConfig)):
        return given
    try:
        return _tokenizer_beside(teacher.get_base_model() if isinstance(teacher, PeftModel) else teacher)
    except SemAlignError:
        return given


def adapted_layers(student: Decoder) -> tuple[int, ...]:
    """The layers that hold trainable adapters.

    Raises:
        ConfigError: there is none, or something outside them is trained.
    """
    layers = tuple(
        n for n, layer in enumerate(student.layers, 1) if any(p.requires_grad for p in layer.parameters())
    )
    inside = {id(p) for layer in student.layers for p in layer.parameters()}
    outside = [n for n, p in student.model.named_parameters() if p.requires_grad and id(p) not in inside]
    if outside or not layers:
        raise ConfigError(
            f"expected a PeftModel that trains modules of layers alone, got {outside[0] if outside else 'nothing to train'}; "
            "leave modules_to_save and trainable_token_indices empty and is_trainable true."
        )
    return layers


def adapted(pairing: PairingConfig, student: Decoder) -> PairingConfig:
    """The layers that hold trainable adapters, as the plan."""
    if pairing != PairingConfig(match=pairing.match, rows=pairing.rows):
        raise ConfigError(
            "pairing: expected no choice of layers beside a PeftModel, whose adapters choose them; use layers_to_transform."
        )
    layers = adapted_layers(student)
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
