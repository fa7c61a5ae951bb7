"""Every option of a run, once: a frozen dataclass per concern, with the docstring under a field as its help.

`TransferConfig` is the whole. Each dataclass checks its own fields; `semalign.parsing` reads YAML into it, and `plain` gives it
back as nested plain values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from semalign.errors import ConfigError

Interface = Literal["block", "delta", "attn", "mlp", "head", "output"]
MapName = Literal["semantic", "logit", "ridge", "weighted_ridge", "procrustes", "none"]
LayerSchedule = Literal["constant", "decay"]
Schedule = Literal["joint", "frontier"]
Trained = Literal["pairs", "all", "none"]
Match = Literal["depth", "cka", "ridge_error", "nearest"]
Signals = Literal["teacher", "shuffled"]
Engine = Literal["padded", "continuous", "vllm"]
Open = TypeVar("Open")
"""The value of a field that is left open: None in a config, nothing in a recipe."""


def _require(condition: bool, field_name: str, expected: str, got: object) -> None:
    if not condition:
        raise ConfigError(
            f"{field_name}: expected {expected}, got {got!r}; change it in the config or on the command line."
        )


@dataclass(frozen=True)
class ModelConfig:
    """A causal language model: where it is and how to load it."""

    model_name_or_path: str
    """Local folder, hub id, .gguf file, or embedded:teacher / embedded:student / embedded:small."""
    model_revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the loaded weights; auto takes the checkpoint's own."""
    attn_implementation: str | None = None
    """Attention kernel name that transformers knows (eager, sdpa, flash_attention_2)."""
    load_in_8bit: bool = False
    """Quantise to 8 bits on loading (needs bitsandbytes); a quantised student can only train LoRA."""
    load_in_4bit: bool = False
    """Quantise to 4 bits on loading (needs bitsandbytes); a quantised student can only train LoRA."""
    offload: Literal["cpu", "disk"] | None = None
    """Teacher only: keep its layers in CPU memory, or read them from the checkpoint's safetensors, one at a time in every pass."""
    trust_remote_code: bool = False
    """Run model code that comes with the checkpoint."""

    def __post_init__(self) -> None:
        _require(
            self.offload is None or not (self.load_in_8bit or self.load_in_4bit),
            "offload",
            "either offload or 8 or 4 bits (the two together have not been tested)",
            "both",
        )
        _require(
            self.offload is None or not self.model_name_or_path.endswith(".gguf"),
            "offload",
            "a checkpoint in safetensors (a GGUF file is dequantised whole)",
            self.model_name_or_path,
        )
        _require(bool(self.model_name_or_path), "model_name_or_path", "a folder, hub id or .gguf file", "")
        _require(not (self.load_in_8bit and self.load_in_4bit), "load_in_8bit", "one of 8 and 4 bits", "both")


@dataclass(frozen=True)
class DataConfig:
    """The rows that carry the knowledge, and the rows that measure it."""

    dataset_name: str | dict[str, float]
    """jsonl file, folder of a saved dataset, hub id, or embedded:transfer; or several, each with a weight."""
    stopping_strategy: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    """Mixtures: as many rows as the shortest dataset allows; or all rows, those of short datasets repeated."""
    mixture_seed: int = 0
    """Mixtures: seed of which rows are drawn and held out, apart from the run's, so that runs can be compared."""
    dataset_config: str | None = None
    """Name of the dataset's configuration on the hub."""
    dataset_train_split: str = "train"
    """Split to take from a hub dataset."""
    heldout_name: str | None = None
    """Rows to measure closeness on, as dataset_name; none: the last heldout_rows of the dataset."""
    heldout_rows: int = 0
    """How many of the last rows (mixtures: of the drawn rows) are held out when heldout_name is none."""
    max_rows: int | None = None
    """Use only the first rows of the training part; mixtures: rows to draw in all."""
    completions: Literal["given", "teacher"] = "given"
    """Whose answers are trained on: the rows' own, or the teacher's to the same prompts (rows may be prompts alone; then it
    answers the held-out ones too)."""
    variants: int = 0
    """New prompts per row; the teacher answers them."""
    variants_by: Literal["words", "teacher"] = "words"
    """What makes them: words that stand in the same surroundings change places (for rows of few patterns), or the teacher goes
    on with the next question after three of the rows (for natural text)."""
    max_new_tokens: int = 256
    """Longest answer of the teacher; one that does not end within it is dropped."""
    max_length: int = 1024
    """Tokens a row may have; longer completions are cut, prompts are kept."""
    supervise: Literal["completion", "all"] = "completion"
    """Which tokens are supervised: those of the last assistant turn, or all."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What to do with a row that cannot be parsed."""
    max_dropped: float = 0.1
    """Stop when a larger share of the rows has to be dropped."""

    def __post_init__(self) -> None:
        _require(bool(self.dataset_name), "data.dataset_name", "a dataset, or several with weights", "none")
        for name, weight in self.weights.items():
            _require(
                0 < weight < float("inf"), f"data.dataset_name.{name}", "a weight greater than 0", weight
            )
        _require(self.heldout_rows >= 0, "data.heldout_rows", "a count of rows", self.heldout_rows)
        _require(
            self.max_rows is None or self.max_rows > 0,
            "data.max_rows",
            "a positive count or null",
            self.max_rows,
        )
        _require(self.variants >= 0, "data.variants", "a count of prompts per row", self.variants)
        _require(self.max_new_tokens > 0, "data.max_new_tokens", "a positive count", self.max_new_tokens)
        _require(self.max_length >= 2, "data.max_length", "at least 2 tokens", self.max_length)
        _require(0 <= self.max_dropped <= 1, "data.max_dropped", "a share between 0 and 1", self.max_dropped)

    @property
    def weights(self) -> dict[str, float]:
        """Datasets with their weights; one alone has weight 1."""
        return {self.dataset_name: 1.0} if isinstance(self.dataset_name, str) else self.dataset_name

    @property
    def is_generated(self) -> bool:
        """Whether the teacher writes answers before anything else."""
        return self.completions == "teacher" or self.variants > 0


@dataclass(frozen=True)
class AttributionConfig:
    """Which teacher layers matter: one backward pass over a few rows."""

    rows: int = 64
    """Training rows to attribute on."""
    batch_size: int = 8
    """Rows per backward pass."""
    aggregate: Literal["abs", "sum"] = "abs"
    """How gradient x activation is added up over tokens and channels."""
    activation_checkpointing: bool = False
    """Recompute layers in the backward pass to save memory."""

    def __post_init__(self) -> None:
        _require(self.rows > 0, "attribution.rows", "a positive count", self.rows)
        _require(self.batch_size > 0, "attribution.batch_size", "a positive count", self.batch_size)


@dataclass(frozen=True)
class PairingConfig:
    """Which student layers are trained, and towards which teacher layers."""

    selection: Literal["attribution", "last", "all"] = "last"
    """attribution: students of the highest-scoring teacher layers; last: the deepest; all: every layer."""
    num_layers: int | None = None
    """How many student layers to train; null with cost null: a quarter of them, rounded up."""
    layers: tuple[int, ...] = ()
    """These student layers (the first is 1), in place of selection, num_layers and cost."""
    cost: float | None = None
    """Budget instead of num_layers: training may cost this many times what the last layer alone costs."""
    interpolate: bool = False
    """Blend the two teacher layers around the exact depth instead of rounding down."""
    match: Match = "depth"
    """How a student layer finds its teacher layer: by relative depth; on the best path from shallow to deep over the
    layers' CKA (cka) or over the error of a ridge map (ridge_error); or the one of highest CKA, wherever (nearest)."""
    rows: int = 16
    """Training rows that layers and heads are compared on; by depth and without heads, none are read."""
    heads: int = 0
    """Attention heads per pair for interface head: the teacher's of highest score, each with the student's most alike."""

    def __post_init__(self) -> None:
        _require(
            self.num_layers is None or self.num_layers > 0,
            "pairing.num_layers",
            "a positive count",
            self.num_layers,
        )
        _require(self.cost is None or self.cost >= 1, "pairing.cost", "at least 1", self.cost)
        _require(self.num_layers is None or self.cost is None, "pairing.cost", "num_layers or cost", "both")
        _require(
            not self.layers or (self.num_layers is None and self.cost is None),
            "pairing.layers",
            "layers, num_layers or cost",
            "several",
        )
        _require(
            len(set(self.layers)) == len(self.layers) and all(n > 0 for n in self.layers),
            "pairing.layers",
            "different layers, counted from 1",
            list(self.layers),
        )
        _require(self.rows > 0, "pairing.rows", "a positive count", self.rows)
        _require(self.heads >= 0, "pairing.heads", "a count of heads", self.heads)
        _require(
            not self.interpolate or self.match == "depth",
            "pairing.interpolate",
            "match: depth beside it",
            self.match,
        )


def _of_recipe(value: Any) -> Any:
    """A field that a config may leave open (null); a recipe that does not name it has this value."""
    return field(default=None, metadata={"recipe": value})


@dataclass(frozen=True)
class RecipeFields(Generic[Open]):
    """What an objective is made of: loss = output_weight * output loss + layer_weight * mean over pairs of the layer loss.

    Declared once for two uses: `RecipeConfig`, in which every field may be left open, and `semalign.methods.Recipe`, in which
    none is.
    """

    name: str = "aligned"
    """aligned (default), cosine (the paper, version 1), fisher, acl, v2; seeking, laten; or a control: cross_entropy, kl, jsd,
    hidden_mse, pissa, shuffled."""
    output_loss: str | Open = _of_recipe("none")
    """Loss at the output: topk_kl, fisher, cosine, cross_entropy, kl, jsd or none."""
    output_weight: float | Open = _of_recipe(1.0)
    """Weight of the output loss."""
    layer_loss: str | Open = _of_recipe("none")
    """Loss between a paired layer's activation and its target: cosine, fisher, geometry, projected_mse or none."""
    layer_weight: float | Open = _of_recipe(0.0)
    """Weight of the layer loss, averaged over the pairs."""
    layer_schedule: LayerSchedule | Open = _of_recipe("constant")
    """constant, or decay: the layer weight falls linearly to 0 over the training."""
    label_weight: float | Open = _of_recipe(0.0)
    """Share of the label in what the topk_kl loss aims at: (1 - share) teacher + share onehot."""
    map: MapName | Open = _of_recipe("ridge")
    """How teacher activations become targets in the student's space; none keeps them as they are."""
    interface: Interface | Open = _of_recipe("block")
    """Which activation of a layer is supervised."""
    learning_rate: float | Open = _of_recipe(1e-3)
    """Peak learning rate."""
    label_smoothing: float | Open = _of_recipe(0.0)
    """Label smoothing of the cross_entropy and cosine output losses."""
    temperature: float | Open = _of_recipe(1.0)
    """Temperature of the topk_kl, kl and jsd losses."""
    schedule: Schedule | Open = _of_recipe("joint")
    """joint: all trained layers at once; frontier: from shallow to deep, one layer a stage."""
    trained: Trained | Open = _of_recipe("pairs")
    """pairs: the plan's layers; all: every layer of the student; none: no layer, the student stays as its start leaves it."""
    lora_r: int | None = None
    """LoRA rank in place of train.lora_r; 0 trains full weights."""
    lora_target_modules: tuple[str, ...] | None = None
    """Module names in place of train.lora_target_modules."""
    start: str | Open = _of_recipe("untouched")
    """Where training starts: from the untouched student; from LoRA on its weights' principal components (pissa) or on crops of
    the teacher's weights (seeking, seeking_corrected); or from teacher weights mapped and added (laten, laten_corrected)."""
    signals: Signals | Open = _of_recipe("teacher")
    """The teacher's signals, or, as a control, those of other rows (shuffled)."""


@dataclass(frozen=True)
class RecipeConfig(RecipeFields[None]):
    """The objective. A recipe sets every field; a field that is not null replaces the recipe's."""


if not TYPE_CHECKING:
    # The command line resolves a field's annotation by the names of this module when it runs, and there `float | Open` has to
    # say that a config may leave the field null.
    Open = None


@dataclass(frozen=True)
class CacheConfig:
    """The teacher's and the student's activations on disk."""

    folder: str | None = None
    """Where the cache lies: null: in targets/; else a local folder of the run's own, or an fsspec URL such as s3://bucket/run."""
    top_k: int = 32
    """Tokens kept a position from each model; the union of both is stored."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type of stored activations."""
    prefix_dtype: Literal["int8", "fp8"] | None = None
    """Type of the stored prefix streams, with a scale a token; null: as dtype. Their error goes into the manifest."""
    batch_size: int = 16
    """Rows per forward pass."""
    shard_rows: int = 64
    """Rows per shard; an interrupted cache step goes on at the next shard."""
    max_bytes: int | None = None
    """Stop before the cache would grow beyond this size."""
    ridge_penalty: float = 1e-2
    """Ridge penalty relative to the mean squared activation."""

    def __post_init__(self) -> None:
        _require(self.top_k > 0, "cache.top_k", "a positive count", self.top_k)
        _require(self.batch_size > 0, "cache.batch_size", "a positive count", self.batch_size)
        _require(self.shard_rows > 0, "cache.shard_rows", "a positive count", self.shard_rows)
        _require(self.ridge_penalty >= 0, "cache.ridge_penalty", "a penalty of 0 or more", self.ridge_penalty)


@dataclass(frozen=True)
class OptimiserConfig:
    """The fields that transformers' TrainingArguments has under the same names and with the same meanings."""

    num_train_epochs: float = 3.0
    """Passes over the rows."""
    max_steps: int = -1
    """Optimiser steps; -1: num_train_epochs decides."""
    per_device_train_batch_size: int = 16
    """Rows per step and device."""
    gradient_accumulation_steps: int = 1
    """Batches per optimiser step."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    lr_scheduler_type: str = "cosine"
    """Schedule name that transformers knows."""
    warmup_steps: float = 0.1
    """Warm-up steps; a value below 1 is a share of all steps."""
    max_grad_norm: float = 1.0
    """Gradient clipping."""
    bf16: bool = False
    """Multiply matrices in bfloat16; trained weights stay float32, and so do losses (but for logits over the whole vocabulary)."""


@dataclass(frozen=True)
class TrainConfig(OptimiserConfig):
    """How the student is trained; names and meanings are those of transformers' TrainingArguments and peft's LoraConfig."""

    activation_checkpointing: bool = False
    """Recompute layers in the backward pass to save memory."""
    lora_r: int = 0
    """LoRA rank on the trained layers; 0 trains their full weights."""
    lora_alpha: int = 16
    """LoRA scale."""
    lora_target_modules: tuple[str, ...] = ()
    """Module names inside a layer; empty: the paper's (up, down, v and o projections)."""
    cache_prefix: bool = True
    """Compute the frozen layers below the lowest trained one once instead of in every step."""
    live_teacher: bool = False
    """Run the teacher in every step instead of reading cached targets (needs no disk, costs time and memory)."""
    logging_steps: int = 1
    """Steps between lines of train.jsonl."""
    report_to: str = "none"
    """Tracker that transformers knows and that is installed: tensorboard, trackio, wandb, mlflow."""
    save_steps: int = 200
    """Steps between checkpoints to resume from."""

    def __post_init__(self) -> None:
        _require(self.num_train_epochs > 0, "train.num_train_epochs", "more than 0", self.num_train_epochs)
        _require(self.lora_r >= 0, "train.lora_r", "0 or a rank", self.lora_r)
        _require(
            self.per_device_train_batch_size > 0,
            "train.per_device_train_batch_size",
            "a positive count",
            self.per_device_train_batch_size,
        )
        _require(
            not (self.live_teacher and self.cache_prefix),
            "train.live_teacher",
            "cache_prefix: false beside it",
            "cache_prefix: true",
        )


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured before and after."""

    tasks: str | None = None
    """Items answered by generation: embedded:test, or a jsonl file of rows with a check; null: closeness only."""
    max_items: int | None = None
    """Items per task; null: all."""
    batch_size: int = 128
    """Rows per generation batch."""
    max_new_tokens: int = 96
    """Longest answer."""
    engine: Engine = "padded"
    """What generates: transformers on padded batches (padded), or with its continuous batching (continuous: where an answer
    ends the next prompt begins); or vllm."""
    baselines: tuple[str, ...] | dict[str, dict[str, Any]] = ()
    """Methods trained and measured beside the chosen one, on the same rows: names, or names with recipe fields of their own."""
    allow_code_execution: bool = False
    """Run generated code in the sandbox; code tasks need it."""
    harness: tuple[str, ...] | dict[str, dict[str, Any]] = ()
    """Tasks of lm-evaluation-harness (gsm8k, mmlu, ...), zero-shot: names, or names with fields in place of their own."""
    harness_path: str | None = None
    """Folder of further task files that the harness reads."""
    cka_rows: int = 64
    """Held-out rows for the CKA heat maps; 0: none."""


@dataclass(frozen=True)
class TransferConfig:
    """One run: a teacher, a student, rows, and how knowledge moves."""

    teacher: ModelConfig
    """The stronger model."""
    student: ModelConfig
    """The smaller model of the same family."""
    data: DataConfig
    """Rows."""
    output_dir: str
    """The run folder."""
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    """Layer attribution."""
    pairing: PairingConfig = field(default_factory=PairingConfig)
    """Layer pairing."""
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    """Objective."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Cached activations."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Measurement."""
    seed: int = 0
    """Seed of row order and initialisation."""
    allow_smaller_teacher: bool = False
    """Go on when the teacher is smaller or shallower than the student."""
    push_to_hub: bool = False
    """Upload the trained student with its card at the end of `transfer`; see also `semalign push`."""
    hub_model_id: str | None = None
    """ORG/NAME to upload to."""
    hub_private_repo: bool | None = None
    """Whether a repository that is made is private; null: the account's default."""

    def __post_init__(self) -> None:
        _require(
            not self.push_to_hub or bool(self.hub_model_id),
            "hub_model_id",
            "ORG/NAME beside push_to_hub: true",
            self.hub_model_id,
        )
        _require(
            self.student.offload is None,
            "student.offload",
            "null (a student is trained, so it stays in memory)",
            self.student.offload,
        )
        _require(
            self.recipe.interface != "head" or not self.train.activation_checkpointing,
            "train.activation_checkpointing",
            "false beside recipe.interface: head (a head's contribution is computed in a hook, which is gone on recomputing)",
            True,
        )


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dict of a config dataclass, tuples as lists, for YAML, JSON and fingerprints."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


def without_names(data: DataConfig) -> dict[str, Any]:
    """How rows become what is trained on, for fingerprints that know the rows themselves by their content."""
    return to_dict(data) | {"dataset_name": None, "heldout_name": None}


def by_name(given: Collection[str] | Mapping[str, Mapping[str, Any] | None]) -> dict[str, dict[str, Any]]:
    """Names, or names with fields of their own, as the latter."""
    fields = given if isinstance(given, Mapping) else dict.fromkeys(given)
    return {name: dict(own or {}) for name, own in fields.items()}


def plain(config: TransferConfig) -> dict[str, Any]:
    """A run's config as nested plain values."""
    return {k: to_dict(v) if hasattr(v, "__dataclass_fields__") else v for k, v in vars(config).items()}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted paths whose values differ, as `path: old -> new`."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines


def resolve_path(name: str, base: Path) -> str:
    """A path in a config file counts from that file's folder when it exists there; other names stay."""
    candidate = base / name
    return str(candidate) if not Path(name).is_absolute() and candidate.exists() else name
