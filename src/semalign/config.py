"""Every option of a run, once: a frozen dataclass per concern, with the docstring under a field as its help.

`TransferConfig` is the whole. Each dataclass checks its own fields; `semalign.parsing` reads YAML into it, and `plain` gives it
back as nested plain values. The file is longer than others because it is where everybody looks for an option: nothing in it is
declared a second time elsewhere.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from semalign.errors import ConfigError

Interface = Literal["block", "delta", "attn", "mlp", "head", "output"]
MapName = Literal[
    "semantic", "logit", "ridge", "agreement_ridge", "weighted_ridge", "procrustes", "none", "self"
]
LayerSchedule = Literal["constant", "decay"]
Schedule = Literal["joint", "frontier"]
Trained = Literal["pairs", "all", "none"]
Match = Literal["depth", "cka", "ridge_error", "nearest"]
Signals = Literal["teacher", "shuffled", "shuffled_targets"]
Engine = Literal["padded", "continuous", "server"]
SERVER = "vllm serve {folder} --host 127.0.0.1 --port {port}"
Open = TypeVar("Open")
"""The value of a field that is left open: None in a config, nothing in a recipe."""


def _require(condition: bool, field_name: str, expected: str, got: object) -> None:
    if not condition:
        raise ConfigError(
            f"{field_name}: expected {expected}, got {got!r}; change it in the config or on the command line."
        )


def check_labels(option: str, labels: Collection[str], reserved: Collection[str]) -> None:
    """Names that a user chooses become folders and keys of results, so they may hold neither a path nor a name that is taken.

    Raises:
        ConfigError: one of them does.
    """
    for label in labels:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", str(label)) or label in reserved:
            raise ConfigError(
                f"{option}: expected names of letters, digits, . _ and - other than {', '.join(reserved)}, got {label!r}; "
                "rename it."
            )


Supervise = Literal["completion", "assistant", "all"]
TEMPLATE_NAMES = ("messages", "tools", "documents", "add_generation_prompt")
"""What every rendering gives to a chat template."""


@dataclass(frozen=True)
class ServerConfig:
    """A server that holds a teacher's weights and tells log-probabilities of token ids."""

    url: str | None = None
    """Its address, such as http://host:8000; null loads the teacher here."""
    engine: Literal["vllm", "sglang"] = "vllm"
    """What it is: vllm is asked for prompt_logprobs at /v1/completions, sglang for top_logprobs_num at /generate."""
    model: str | None = None
    """The model's name there; null takes the first that it lists."""
    key_variable: str | None = None
    """Name of an environment variable that holds its key; the key itself is written nowhere."""
    requests: int = 16
    """Requests under way at once; the server makes batches of them."""
    retries: int = 6
    """How often a request that got no answer is sent again, after 0.5 seconds and then twice as long each time."""

    def __post_init__(self) -> None:
        _require(
            self.url is None or self.url.startswith(("http://", "https://")),
            "teacher.server.url",
            "an address with http:// or https://",
            self.url,
        )
        _require(self.requests > 0, "teacher.server.requests", "a positive count", self.requests)
        _require(self.retries >= 0, "teacher.server.retries", "0 or a count", self.retries)


@dataclass(frozen=True)
class ModelConfig:
    """A causal language model: where it is and how to load it."""

    model_name_or_path: str
    """A local folder, a hub id, a .gguf file, or embedded:teacher, embedded:student or embedded:small."""
    model_revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the loaded weights; auto keeps the checkpoint's type."""
    attn_implementation: str | None = None
    """Attention implementation, by a name that transformers knows: eager, sdpa, flash_attention_2."""
    load_in_8bit: bool = False
    """Quantise to 8 bits on loading (needs bitsandbytes); a quantised student can only train LoRA."""
    load_in_4bit: bool = False
    """Quantise to 4 bits on loading (needs bitsandbytes); a quantised student can only train LoRA."""
    offload: Literal["cpu", "disk"] | None = None
    """For a teacher only. cpu keeps its layers in CPU memory; disk reads them from the checkpoint's safetensors. Either way, every
    pass brings one layer at a time onto the device."""
    keep_dequantised: bool = True
    """Keep the weights of a GGUF file in the user's cache (~/.cache/semalign) once they are dequantised, for the next command."""
    trust_remote_code: bool = False
    """Allow transformers to run Python code that comes with the checkpoint."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    """Values for variables of the model's chat template, such as enable_thinking: false, wherever its tokenizer renders a conversation:
    the student's in training rows and its own answers, the teacher's in the teacher's."""
    sees: Literal["nothing", "shots", "answer"] = "nothing"
    """For a teacher only: what stands before each training row in its prompt and not in the student's. shots are other given rows with
    their answers, answer is the row's own given answer, each as earlier turns of the conversation."""
    shots: int = 4
    """How many rows a teacher with sees: shots is shown, drawn anew for every prompt."""
    tokenizer: Literal["shared", "own"] = "shared"
    """For a teacher only. shared wants the student's tokenizer; with own the teacher reads the same rows through its tokenizer and chat
    template, and what it says is carried to the student's tokens."""
    signals: str | None = None
    """For a teacher only: a Parquet file, or a folder of them, with its likeliest tokens at the rows' tokens, as `semalign export`, axolotl
    or DistillKit write them. model_name_or_path is then read for tokenizer and configuration, and for weights only where it answers."""
    server: ServerConfig = field(default_factory=ServerConfig)
    """For a teacher only: a server that holds its weights. model_name_or_path is then read for tokenizer and configuration alone."""

    def __post_init__(self) -> None:
        _require(
            self.offload is None or not (self.load_in_8bit or self.load_in_4bit),
            "offload",
            "either offload or quantisation to 8 or 4 bits, since both together have not been tested",
            "both",
        )
        _require(
            self.offload is None or not self.model_name_or_path.endswith(".gguf"),
            "offload",
            "a checkpoint in safetensors, since a GGUF file can only be dequantised as a whole",
            self.model_name_or_path,
        )
        _require(bool(self.model_name_or_path), "model_name_or_path", "a folder, hub id or .gguf file", "")
        for name in self.chat_template_kwargs:
            _require(
                name.isidentifier() and name not in TEMPLATE_NAMES,
                "chat_template_kwargs",
                f"names of the template's own variables (not {', '.join(TEMPLATE_NAMES)})",
                name,
            )
        _require(self.shots > 0, "teacher.shots", "a positive count", self.shots)
        _require(
            self.signals is None or self.server.url is None,
            "teacher.signals",
            "null with teacher.server, which tells the same",
            self.signals,
        )
        _require(
            self.tokenizer == "shared" or self.sees == "nothing",
            "teacher.sees",
            "nothing with teacher.tokenizer: own",
            self.sees,
        )
        _require(not (self.load_in_8bit and self.load_in_4bit), "load_in_8bit", "either 8 or 4 bits", "both")

    @property
    def only_tells(self) -> bool:
        """Whether nothing of a teacher is known but its likeliest tokens: no layers, no head."""
        return self.server.url is not None or self.signals is not None or self.tokenizer == "own"


@dataclass(frozen=True)
class SamplingConfig:
    """How an answer's next token is chosen."""

    temperature: float = 0.0
    """0 takes the likeliest token; above 0 tokens are drawn at this temperature."""
    top_p: float = 1.0
    """Draw only among the fewest tokens that together hold this share of the probability."""
    top_k: int | None = None
    """Draw only among this many of the likeliest tokens; null sets no limit."""

    def __post_init__(self) -> None:
        _require(
            0 <= self.temperature < float("inf"),
            "sampling.temperature",
            "0 or a temperature above it",
            self.temperature,
        )
        _require(0 < self.top_p <= 1, "sampling.top_p", "a share above 0 and up to 1", self.top_p)
        _require(
            self.top_k is None or self.top_k > 0,
            "sampling.top_k",
            "a positive count or null",
            self.top_k,
        )

    @property
    def is_greedy(self) -> bool:
        """Whether there is one answer a prompt, whatever the seed."""
        return self.temperature == 0


def _check_samples(group: str, samples: int, sampling: SamplingConfig) -> None:
    _require(
        samples == 1 or not sampling.is_greedy,
        f"{group}.samples",
        f"1 as long as {group}.sampling.temperature is 0, where all answers to a prompt are the same",
        samples,
    )


@dataclass(frozen=True)
class DataConfig:
    """The rows that carry the knowledge, and the rows that measure it."""

    dataset_name: str | dict[str, float]
    """A jsonl file, the folder of a saved dataset, a hub id, or embedded:transfer; or several of these, each with a weight."""
    stopping_strategy: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    """For a mixture. first_exhausted takes as many rows as the shortest dataset allows; all_exhausted takes every row and repeats
    those of shorter datasets."""
    mixture_seed: int = 0
    """For a mixture: the seed that decides which rows are drawn and which are held out. It is separate from the run's seed, so that
    runs with different seeds use the same rows."""
    dataset_config: str | None = None
    """Name of the dataset's configuration on the hub."""
    dataset_train_split: str = "train"
    """Split of a hub dataset."""
    heldout_name: str | None = None
    """Rows on which closeness to the teacher is measured, named as in dataset_name. When this is null, the last heldout_rows rows
    of the dataset are used."""
    heldout_rows: int = 0
    """How many rows are held out when heldout_name is null: the last ones of the dataset, or of the rows drawn from a mixture."""
    max_rows: int | None = None
    """Train on at most this many rows: the first ones of the dataset, or the total drawn from a mixture."""
    rows_seed: int | None = None
    """For one dataset: draw the max_rows rows at random with this seed, in the dataset's order, instead of taking the first ones."""
    completions: Literal["given", "teacher", "student", "speculative"] = "given"
    """Whose answers are trained on. given keeps the answers in the rows; teacher or student lets that model answer the same prompts;
    with speculative the student answers, and the teacher replaces what it would not say. Rows may then be prompts without answers; the
    teacher answers held-out prompts that have none."""
    accepted: int = 25
    """With completions: speculative, a token that the student writes stays when it is among this many of the teacher's likeliest; else
    the teacher draws another one."""
    samples: int = 1
    """How many answers a prompt gets; more than one needs sampling.temperature. Answers to one prompt that are alike count once."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How the tokens of a model's answers are chosen."""
    keep: Literal["ended", "right", "best"] = "ended"
    """Which of the answers are trained on. ended keeps those that came to their end; right those that also pass the row's check; best
    of the right ones to a prompt the one that the teacher finds likeliest, by its mean log-probability a token."""
    variants: int = 0
    """How many new prompts are made of each row; the teacher answers them, or with completions of student or speculative who answers the
    given ones."""
    variants_by: Literal["words", "teacher"] = "words"
    """How new prompts are made. words exchanges words that occur in the same contexts, which suits rows that follow a few patterns.
    teacher shows the teacher three rows and lets it write the next question, which suits natural text."""
    max_new_tokens: int = 256
    """Tokens that a model's answer may have; an answer that has not ended by then is dropped."""
    max_length: int = 1024
    """Tokens that a row may have; a longer completion is cut, and the prompt is kept whole."""
    supervise: Supervise = "completion"
    """Which tokens are supervised: those of the last assistant turn (completion), of every assistant turn with the token that ends it
    (assistant), or all tokens."""
    thinking: Literal["keep", "drop"] | None = None
    """What becomes of the thinking in given answers: text before </think>, or reasoning_content. drop leaves it out; keep makes the
    chat template write that of the last answer, or stops where it cannot; null does what the template does and counts what it
    leaves out."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What to do with a row that cannot be parsed."""
    max_dropped: float = 0.1
    """Stop when more than this share of the rows has to be dropped."""

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
        for name in ("samples", "accepted"):
            _require(getattr(self, name) > 0, f"data.{name}", "a positive count", getattr(self, name))
        _check_samples("data", self.samples, self.sampling)
        _require(
            self.keep == "ended" or (self.completions != "given" and not self.variants),
            "data.keep",
            "ended, unless a model answers the rows' own prompts (data.completions) and none is new (data.variants)",
            self.keep,
        )
        _require(self.max_new_tokens > 0, "data.max_new_tokens", "a positive count", self.max_new_tokens)
        _require(self.max_length >= 2, "data.max_length", "at least 2 tokens", self.max_length)
        _require(0 <= self.max_dropped <= 1, "data.max_dropped", "a share between 0 and 1", self.max_dropped)

    @property
    def weights(self) -> dict[str, float]:
        """Datasets with their weights; one alone has weight 1."""
        return {self.dataset_name: 1.0} if isinstance(self.dataset_name, str) else self.dataset_name

    @property
    def is_generated(self) -> bool:
        """Whether a model writes answers before anything else."""
        return self.completions != "given" or self.variants > 0


@dataclass(frozen=True)
class AttributionConfig:
    """Which teacher layers matter for the rows, measured by one backward pass over a few of them."""

    rows: int = 64
    """How many training rows the scores are computed on."""
    batch_size: int = 8
    """Rows per backward pass."""
    aggregate: Literal["abs", "sum"] = "abs"
    """How gradient × activation is summed over tokens and channels: abs sums absolute values, sum keeps the signs."""
    activation_checkpointing: bool = False
    """Recompute layers in the backward pass to save memory."""

    def __post_init__(self) -> None:
        _require(self.rows > 0, "attribution.rows", "a positive count", self.rows)
        _require(self.batch_size > 0, "attribution.batch_size", "a positive count", self.batch_size)


@dataclass(frozen=True)
class PairingConfig:
    """Which student layers are trained, and towards which teacher layers."""

    selection: Literal["attribution", "last", "all"] = "last"
    """Which student layers are trained: those that match the teacher layers with the highest attribution scores (attribution), the
    deepest ones (last), or every layer (all)."""
    num_layers: int | None = None
    """How many student layers are trained. When this and cost are null, it is a quarter of them, rounded up."""
    layers: tuple[int, ...] = ()
    """Train exactly these student layers, counted from 1, instead of choosing by selection, num_layers and cost."""
    cost: float | None = None
    """A budget instead of num_layers: training may cost this many times as much as training the last layer alone."""
    interpolate: bool = False
    """Blend the two teacher layers around the exact relative depth instead of rounding down to one."""
    match: Match = "depth"
    """How a student layer gets its teacher layer. depth takes the layer at the same relative depth. cka and ridge_error find the
    best assignment that keeps the order of the layers, by their CKA or by the error of a ridge map. nearest takes the teacher
    layer with the highest CKA, wherever it is."""
    rows: int = 16
    """How many training rows layers and heads are compared on; with match depth and no heads, no rows are read."""
    heads: int = 0
    """For interface head: how many attention heads a pair has. The teacher's heads with the highest scores are each paired with the
    most similar head of the student."""

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
            "false unless match is depth, since other matches have no depth between two layers",
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

    name: str = "aligned_output"
    """aligned_output (default), aligned, cosine (the paper, version 1), fisher, acl, v2; seeking, laten; reverse, generalised_jsd, skewed,
    bridge; or a control: cross_entropy, kl, jsd, hidden_mse, pissa, self, shuffled, shuffled_targets."""
    output_loss: str | Open = _of_recipe("none")
    """Loss at the output: topk_kl, topk_reverse, topk_jsd, topk_skewed, topk_bridge, fisher, cosine, cross_entropy, kl, jsd or none."""
    output_weight: float | Open = _of_recipe(1.0)
    """Weight of the output loss."""
    layer_loss: str | Open = _of_recipe("none")
    """Loss between a paired layer's activation and its target: cosine, fisher, geometry, projected_mse or none."""
    layer_weight: float | Open = _of_recipe(0.0)
    """Weight of the layer loss, which is averaged over the pairs."""
    layer_schedule: LayerSchedule | Open = _of_recipe("constant")
    """constant keeps the layer weight; decay lets it fall linearly to 0 over the training."""
    label_weight: float | Open = _of_recipe(0.0)
    """Share of the label in the target of the topk losses: (1 - share) * teacher + share * onehot(label)."""
    map: MapName | Open = _of_recipe("ridge")
    """How teacher activations are mapped into the student's space; none leaves them in their own. As a control, self takes the
    untouched student's own activations in their place."""
    interface: Interface | Open = _of_recipe("block")
    """Which activation of a layer is supervised: the residual stream after it (block), what it adds to the stream (delta), the output
    of its attention (attn) or its MLP (mlp), single attention heads (head), or the stream after the final norm (output)."""
    label_smoothing: float | Open = _of_recipe(0.0)
    """Label smoothing of the cross_entropy and cosine output losses."""
    temperature: float | Open = _of_recipe(1.0)
    """Temperature of the topk losses, kl and jsd."""
    beta: float | Open = _of_recipe(0.5)
    """The teacher's share in the mixture of topk_jsd and topk_skewed; of topk_bridge the power of the student's own distribution in the
    target at the first step, from which it falls linearly to 0."""
    schedule: Schedule | Open = _of_recipe("joint")
    """joint trains all layers together; frontier trains one layer after another, from shallow to deep."""
    trained: Trained | Open = _of_recipe("pairs")
    """Which layers are trained: those of the plan (pairs), every layer of the student (all), or none, so that the student is what its
    start made of it."""
    learning_rate: float | None = None
    """Peak learning rate instead of train.learning_rate."""
    lora_r: int | None = None
    """LoRA rank instead of train.lora_r; 0 trains full weights."""
    lora_target_modules: tuple[str, ...] | None = None
    """Module names instead of train.lora_target_modules."""
    start: str | Open = _of_recipe("untouched")
    """Where training starts. untouched starts from the student as it is, pissa with LoRA on the principal components of its weights,
    seeking and seeking_corrected with LoRA on crops of the teacher's weights, and laten and laten_corrected after teacher weights
    were mapped and added to the student's."""
    signals: Signals | Open = _of_recipe("teacher")
    """Whose signals a row is trained with: its own (teacher) or, as a control, another row's (shuffled), or another row's at the layers
    alone (shuffled_targets)."""


@dataclass(frozen=True)
class RecipeConfig(RecipeFields[None]):
    """The objective. The named recipe sets every field; a field that is not null replaces the recipe's value."""


if not TYPE_CHECKING:
    # The command line resolves a field's annotation by the names of this module when it runs, and there `float | Open` has to
    # say that a config may leave the field null.
    Open = None


@dataclass(frozen=True)
class CacheConfig:
    """What is stored of the teacher's and the student's pass over the rows."""

    folder: str | None = None
    """Where the cache is: in targets/ of the run folder (null), in a local folder that only this run uses, or at an fsspec URL such
    as s3://bucket/run."""
    top_k: int = 32
    """How many of the most likely tokens are kept of each model at every position; the union of both is stored."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Data type of stored activations."""
    prefix_dtype: Literal["int8", "fp8"] | None = None
    """Data type of the stored hidden states that enter the lowest trained layer: eight bits with one scale a token, or as dtype
    (null). The manifest records their error."""
    batch_size: int = 16
    """Rows per forward pass."""
    shard_rows: int = 64
    """Rows in a shard; an interrupted cache step continues with the next shard."""
    max_bytes: int | None = None
    """Stop before a shard is written that would make the cache larger than this many bytes; null sets no limit."""
    ridge_penalty: float | None = None
    """Penalty of the ridge regression, relative to the mean squared activation. With null, each map takes the one of 0.001, 0.01, 0.1 and
    1 with which each half of the rows is best told by a map that was fitted on the other half."""

    def __post_init__(self) -> None:
        _require(self.top_k > 0, "cache.top_k", "a positive count", self.top_k)
        _require(self.batch_size > 0, "cache.batch_size", "a positive count", self.batch_size)
        _require(self.shard_rows > 0, "cache.shard_rows", "a positive count", self.shard_rows)
        _require(
            self.max_bytes is None or self.max_bytes > 0,
            "cache.max_bytes",
            "a positive size or null",
            self.max_bytes,
        )
        _require(
            self.ridge_penalty is None or self.ridge_penalty >= 0,
            "cache.ridge_penalty",
            "a penalty of 0 or more, or null",
            self.ridge_penalty,
        )


@dataclass(frozen=True)
class OptimiserConfig:
    """The fields that transformers' TrainingArguments has under the same names and with the same meanings."""

    num_train_epochs: float = 3.0
    """Passes over the rows."""
    learning_rate: float | None = None
    """Peak learning rate. With null it is 2e-4 for LoRA and 1e-5 for full weights, which change a pretrained student little by little;
    at 1e-3, full weights forget what they knew."""
    max_steps: int = -1
    """Optimiser steps; with -1, num_train_epochs decides."""
    per_device_train_batch_size: int = 16
    """Rows in a batch on each device."""
    gradient_accumulation_steps: int = 1
    """Batches per optimiser step."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    lr_scheduler_type: str = "cosine"
    """Learning rate schedule, by a name that transformers knows."""
    warmup_steps: float = 0.1
    """Warm-up steps; a value below 1 is the share of all steps."""
    max_grad_norm: float = 1.0
    """Gradient norm above which gradients are clipped."""
    bf16: bool = False
    """Multiply matrices in bfloat16. Trained weights stay in float32, and so do losses, except for logits over the whole vocabulary."""


@dataclass(frozen=True)
class TrainConfig(OptimiserConfig):
    """How the student is trained; names and meanings are those of transformers' TrainingArguments and peft's LoraConfig."""

    activation_checkpointing: bool = False
    """Recompute layers in the backward pass to save memory."""
    lora_r: int = 16
    """LoRA rank on the trained layers; 0 trains their full weights."""
    lora_alpha: int = 16
    """LoRA's alpha; its update is scaled by alpha / rank."""
    lora_target_modules: tuple[str, ...] = ()
    """Names of the modules in a layer that get LoRA, such as the paper's up_proj, down_proj, v_proj and o_proj; when empty, all of a
    layer's linear maps."""
    cache_prefix: bool = True
    """Run the frozen layers below the lowest trained layer once, in the cache step, instead of in every training step."""
    rounds: int = 1
    """How often rows, signals and training follow each other. From the second round on, the student as it is by then takes the untouched
    one's place: it answers the prompts anew where data.completions is student, and the teacher's signals are cached on the new rows. All
    rounds share one schedule and one optimiser. num_train_epochs counts in each round, max_steps over all of them; later rounds take as
    many steps as the first."""
    live_teacher: bool = False
    """Run the teacher in every training step instead of reading cached signals. This needs no disk but more time and memory."""
    logging_steps: int = 1
    """Steps between two lines of train.jsonl."""
    report_to: str = "none"
    """Experiment tracker, by a name that transformers knows: tensorboard, trackio, wandb, mlflow. It has to be installed."""
    save_steps: int = 200
    """Steps between two checkpoints from which a stopped training resumes."""

    def __post_init__(self) -> None:
        _require(self.num_train_epochs > 0, "train.num_train_epochs", "more than 0", self.num_train_epochs)
        _require(self.lora_r >= 0, "train.lora_r", "0 or a rank", self.lora_r)
        _require(
            self.learning_rate is None or 0 < self.learning_rate < float("inf"),
            "train.learning_rate",
            "a rate above 0, or null",
            self.learning_rate,
        )
        for name in ("gradient_accumulation_steps", "logging_steps", "save_steps", "rounds"):
            _require(getattr(self, name) > 0, f"train.{name}", "a positive count", getattr(self, name))
        _require(
            self.per_device_train_batch_size > 0,
            "train.per_device_train_batch_size",
            "a positive count",
            self.per_device_train_batch_size,
        )
        _require(
            not (self.live_teacher and self.cache_prefix),
            "train.live_teacher",
            "false unless train.cache_prefix is false, since a live teacher needs the student's whole pass",
            True,
        )


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured of the untouched student, the trained one, the baselines and the teacher."""

    tasks: str | None = None
    """Items that the models answer by generating text: embedded:test, or a jsonl file of rows with a check. With null, only closeness
    to the teacher is measured."""
    max_items: int | None = None
    """At most this many items of each task; null takes all."""
    batch_size: int = 128
    """Prompts in a batch of generation."""
    max_new_tokens: int = 96
    """Tokens that an answer may have."""
    samples: int = 1
    """How many answers an item gets; more than one needs sampling.temperature. An item counts with the share of them that is right."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How the tokens of the answers are chosen; by default each is the likeliest one."""
    engine: Engine = "padded"
    """What generates the answers: transformers on padded batches (padded), transformers' continuous batching, in which the next prompt
    takes the place of an answer that has ended (continuous), or a program of your own such as vLLM (server)."""
    server: str = SERVER
    """With engine: server, the command that serves a model's folder by the OpenAI protocol with token ids. SemAlign fills in {folder} and
    {port}, starts it for every model that answers, and stops it afterwards."""
    baselines: tuple[str, ...] | dict[str, dict[str, Any]] = ()
    """Further methods that are trained and measured on the same rows for comparison: a list of names, or names with recipe fields of
    their own."""
    allow_code_execution: bool | Literal["unsafe"] = False
    """Allow generated code to run in a jail that the kernel makes; tasks that check code need this. With unsafe it runs even where this
    machine offers no jail, and can then read and change what you can."""
    harness: tuple[str, ...] | dict[str, dict[str, Any]] = ()
    """Tasks of lm-evaluation-harness such as gsm8k and mmlu, zero-shot: a list of names, or names with fields that replace the
    task's own."""
    harness_path: str | None = None
    """A folder with further task files for the harness."""
    cka_rows: int = 64
    """How many held-out rows the CKA heat maps are computed on; 0 leaves them out."""

    def __post_init__(self) -> None:
        check_labels("evaluation.baselines", self.baselines, ("before", "after", "teacher"))
        for name in ("batch_size", "max_new_tokens", "samples"):
            _require(getattr(self, name) > 0, f"evaluation.{name}", "a positive count", getattr(self, name))
        _check_samples("evaluation", self.samples, self.sampling)
        _require(
            self.max_items is None or self.max_items > 0,
            "evaluation.max_items",
            "a positive count or null",
            self.max_items,
        )
        _require(self.cka_rows >= 0, "evaluation.cka_rows", "a count of rows", self.cka_rows)


@dataclass(frozen=True)
class TransferConfig:
    """One run: a teacher, a student, rows, and how knowledge moves."""

    teacher: ModelConfig
    """The stronger model."""
    student: ModelConfig
    """The smaller model."""
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
    """Seed of the order of rows and of initialisation."""
    allow_smaller_teacher: bool = False
    """Continue even if the teacher is narrower or has fewer layers than the student."""
    push_to_hub: bool = False
    """Upload the trained student with its model card at the end of `transfer`; see also `semalign push`."""
    hub_model_id: str | None = None
    """The repository on the hub, as ORG/NAME."""
    hub_private_repo: bool | None = None
    """Whether a repository that has to be created is private; null takes the account's default."""

    def __post_init__(self) -> None:
        _require(
            not self.push_to_hub or bool(self.hub_model_id),
            "hub_model_id",
            "ORG/NAME, since push_to_hub is true",
            self.hub_model_id,
        )
        for name, plain, expected in (
            ("offload", None, "null, since a student that is trained has to stay in memory"),
            ("tokenizer", "shared", "shared; teacher.tokenizer says whether the two differ"),
            ("signals", None, "null, since signals are a teacher's"),
            ("sees", "nothing", "nothing, since the student is to do without what its teacher sees"),
        ):
            given = getattr(self.student, name)
            _require(given == plain, f"student.{name}", expected, given)
        _require(
            self.student.server.url is None,
            "student.server.url",
            "null, since a student that is trained has to be in memory",
            self.student.server.url,
        )
        _require(
            self.teacher.server.url is None or not self.evaluation.harness,
            "evaluation.harness",
            "no tasks with teacher.server, since the harness runs the models here",
            self.evaluation.harness,
        )
        _require(
            not self.teacher.only_tells or not self.train.live_teacher,
            "train.live_teacher",
            "false with teacher.server, teacher.signals or teacher.tokenizer: own, since such a teacher is asked before training alone",
            True,
        )
        _require(
            self.teacher.tokenizer == "shared" or self.data.supervise == "completion",
            "data.supervise",
            "completion with teacher.tokenizer: own, since the two tokenizers are compared on one answer a row",
            self.data.supervise,
        )
        _require(
            self.teacher.tokenizer == "shared" or self.data.completions != "speculative",
            "data.completions",
            "given, teacher or student with teacher.tokenizer: own, since both models write speculative answers token by token",
            self.data.completions,
        )
        _require(
            self.teacher.sees == "nothing" or self.data.supervise == "completion",
            "teacher.sees",
            f"nothing with data.supervise: {self.data.supervise}, since a prompt that only the teacher reads cannot be supervised",
            self.teacher.sees,
        )
        _require(
            self.teacher.sees != "answer" or not self.data.variants,
            "teacher.sees",
            "nothing or shots with data.variants, since no answer to a new prompt is given",
            "answer",
        )
        _require(
            self.recipe.interface != "head" or not self.train.activation_checkpointing,
            "train.activation_checkpointing",
            "false with recipe.interface head, since a head's contribution is computed in a hook that recomputing does not call",
            True,
        )


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as a plain dict, with tuples as lists, for YAML, JSON and fingerprints."""
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
    # os.path, unlike pathlib, answers a name that no file can have with no.
    return str(candidate) if not Path(name).is_absolute() and os.path.exists(candidate) else name
