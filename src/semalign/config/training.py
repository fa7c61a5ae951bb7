"""What a student is trained towards, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from semalign.config.values import LATER, expect

Interface = Literal["block", "delta", "attn", "mlp", "head", "output"]
MapName = Literal[
    "semantic", "logit", "ridge", "agreement_ridge", "weighted_ridge", "procrustes", "none", "self"
]
LayerSchedule = Literal["constant", "decay"]
Schedule = Literal["joint", "frontier"]
RateSchedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
]
Trained = Literal["pairs", "all", "none"]
Signals = Literal["teacher", "shuffled", "shuffled_targets"]
Open = TypeVar("Open")
"""The value of a field that is left open: None in a config, nothing in a recipe."""


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
    lr_scheduler_type: RateSchedule = "cosine"
    """Learning rate schedule, by transformers' name; of those that need nothing else to be said."""
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
    fsdp: bool = field(default=False, metadata=LATER)
    """Split the trained layers, their gradients and the optimiser's states over the processes of a launch (torch's fully_shard, FSDP2),
    where one device cannot hold them."""
    rounds: int = 1
    """How often rows, signals and training follow each other. From the second round on, the student as it is by then takes the untouched
    one's place: it answers the prompts anew where data.completions is student, and the teacher's signals are cached on the new rows. All
    rounds share one schedule and one optimiser. num_train_epochs counts in each round, max_steps over all of them; later rounds take as
    many steps as the first."""
    live_teacher: bool = False
    """Run the teacher in every training step instead of reading cached signals, to see that both train alike. Signals are cached all the
    same, and semalign check estimates neither its time nor its memory."""
    logging_steps: int = 1
    """Steps between two lines of train.jsonl."""
    report_to: str = "none"
    """Experiment tracker, by a name that transformers knows: tensorboard, trackio, wandb, mlflow. It has to be installed."""
    save_steps: int = 200
    """Steps between two checkpoints from which a stopped training resumes."""

    def __post_init__(self) -> None:
        expect(self.num_train_epochs > 0, "train.num_train_epochs", "more than 0", self.num_train_epochs)
        expect(self.lora_r >= 0, "train.lora_r", "0 or a rank", self.lora_r)
        expect(
            self.learning_rate is None or 0 < self.learning_rate < float("inf"),
            "train.learning_rate",
            "a rate above 0, or null",
            self.learning_rate,
        )
        for name in ("weight_decay", "warmup_steps", "max_grad_norm"):
            expect(getattr(self, name) >= 0, f"train.{name}", "0 or more", getattr(self, name))
        expect(self.lora_alpha > 0, "train.lora_alpha", "a positive number", self.lora_alpha)
        expect(
            self.max_steps == -1 or self.max_steps > 0,
            "train.max_steps",
            "a positive count, or -1 for whole epochs",
            self.max_steps,
        )
        for name in ("gradient_accumulation_steps", "logging_steps", "save_steps", "rounds"):
            expect(getattr(self, name) > 0, f"train.{name}", "a positive count", getattr(self, name))
        expect(
            self.per_device_train_batch_size > 0,
            "train.per_device_train_batch_size",
            "a positive count",
            self.per_device_train_batch_size,
        )
        expect(
            not (self.live_teacher and self.cache_prefix),
            "train.live_teacher",
            "false unless train.cache_prefix is false, since a live teacher needs the student's whole pass",
            True,
        )
