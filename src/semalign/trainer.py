"""A transformers Trainer on the supervised suffix of the student: only the layers that change, no vocabulary-sized tensor.

The recipes `kl` and `cross_entropy` are controls and do form logits, in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from semalign.capture import Point, capture
from semalign.data import Sample, collate
from semalign.errors import SemAlignError
from semalign.maths.pairing import LayerPair
from semalign.models import Decoder, Head
from semalign.objective import Objective
from semalign.recipe import Recipe
from semalign.signals import labels_of, state_mask
from semalign.supervision import Supervision


class SuffixModel(nn.Module):
    """Layers cut+1..L of the student with the recipe's losses on top.

    Use inside `decoder.span(cut, L, norm=True)`. The stream that enters layer cut+1 comes with the batch
    (`prefix`), or is computed from `input_ids` when cut is 0.
    """

    def __init__(
        self,
        decoder: Decoder,
        cut: int,
        recipe: Recipe,
        pairs: Sequence[LayerPair],
        teacher_head: Head | None = None,
    ) -> None:
        super().__init__()
        self.suffix = nn.ModuleList(decoder.layers[cut:])
        self.norm = decoder.final_norm
        self.objective = Objective(recipe, decoder, [p.place for p in pairs], teacher_head)
        # A plain attribute: neither the embedding nor the head is a part of what is trained, moved or saved.
        self.decoder = decoder
        self.points = (
            {p.place: Point(p.student, recipe.interface, p.student_head) for p in pairs}
            if recipe.needs_targets
            else {}
        )

    def train(self, mode: bool = True) -> SuffixModel:
        """Dropout stays off: targets and prefixes were computed without it. Checkpointing alone needs train mode."""
        checkpointing = any(getattr(m, "gradient_checkpointing", False) for m in self.suffix.modules())
        return super().train(mode and checkpointing)

    def forward(
        self, attention_mask: Tensor, states: Tensor, labels: Tensor, **batch: Tensor
    ) -> dict[str, Tensor]:
        """Mean losses over the supervised positions: loss, loss_output, loss_layer."""
        stream = batch["prefix"] if "prefix" in batch else batch["input_ids"]
        with capture(self.decoder, self.points.values()) as found:
            output_BTE = self.decoder.forward(stream, attention_mask)
        hidden = {k: found[point][states] for k, point in self.points.items()}
        return self.objective(output_BTE[states], hidden, labels, states.sum(1).tolist(), batch)


class EpochSampler(Sampler[int]):
    """Length-grouped order from (seed, epoch) alone, so that a resumed run sees the same batches."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class Prefixes(Protocol):
    """Where cached streams come from; a `ShardStore` is one."""

    def read(self, sample: int, keys: Sequence[str]) -> Mapping[str, Tensor]:
        """The named tensors of a sample."""
        ...


class Collator:
    """Sample numbers -> one batch: padded stream or ids, states mask, labels, the supervision's signals."""

    def __init__(
        self, samples: Sequence[Sample], supervision: Supervision, prefixes: Prefixes | None
    ) -> None:
        self.samples, self.supervision, self.prefixes = samples, supervision, prefixes

    def __call__(self, features: Sequence[Mapping[str, int]]) -> dict[str, Tensor]:
        numbers = [f["index"] for f in features]
        chosen = [self.samples[n] for n in numbers]
        padded = collate(chosen)
        batch = {
            "attention_mask": padded["attention_mask"],
            "states": state_mask(padded["mask"]),
            "labels": torch.cat([labels_of(s) for s in chosen]),
        }
        if self.prefixes is None:
            batch["input_ids"] = padded["input_ids"]
        else:
            streams = [self.prefixes.read(n, ["tokens.prefix"])["tokens.prefix"].float() for n in numbers]
            batch["prefix"] = nn.utils.rnn.pad_sequence(streams, batch_first=True)
        return batch | self.supervision.signals(numbers)


class SemAlignTrainer(Trainer):
    """Trainer whose loss is the recipe's, averaged over all supervised positions of an optimiser step."""

    def __init__(
        self,
        model: SuffixModel,
        args: TrainingArguments,
        samples: Sequence[Sample],
        collator: Collator,
        **options: Any,
    ) -> None:
        numbers: Any = [{"index": n} for n in range(len(samples))]
        super().__init__(model, args, train_dataset=numbers, data_collator=collator, **options)
        self.samples = samples
        self.objective: Objective = model.objective
        # Ask the Trainer for the number of supervised positions of the whole step, and normalise by it here.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._parts: dict[str, list[float]] = {}

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        lengths = [len(s.input_ids) for s in self.samples]
        return EpochSampler(
            lengths, self.args.train_batch_size * self.args.gradient_accumulation_steps, self.args.seed
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """See the class; a non-finite loss stops the run, naming step and term."""
        self.objective.progress = self.state.global_step / max(1, self.state.max_steps)
        outputs = model(**inputs)
        for name in ("loss_output", "loss_layer"):
            if name in outputs:
                value = float(outputs[name].detach())
                if not torch.isfinite(torch.tensor(value)):
                    raise SemAlignError(
                        f"step {self.state.global_step + 1}: {name} is {value}; lower recipe.learning_rate or train without bf16."
                    )
                self._parts.setdefault(name, []).append(value)
        loss = outputs["loss"]
        if num_items_in_batch is not None:
            loss = loss * len(inputs["labels"]) / num_items_in_batch * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each loss term since the last line."""
        if "loss" in logs:
            logs |= {name: sum(values) / len(values) for name, values in self._parts.items()}
            self._parts = {}
        super().log(logs, start_time)
