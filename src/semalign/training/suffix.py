"""A transformers Trainer on the supervised suffix of the student: only the layers that change, no vocabulary-sized tensor.

The recipes `kl` and `cross_entropy` are controls and do form logits, in chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from semalign.data import Sample
from semalign.errors import SemAlignError
from semalign.maths.pairing import LayerPair
from semalign.methods.objective import Objective
from semalign.methods.recipe import Recipe
from semalign.models.capture import Point, capture
from semalign.models.decoder import Decoder, let_checkpoint
from semalign.models.head import Head
from semalign.run import ranks
from semalign.run.files import saving
from semalign.training import lora
from semalign.training.callbacks import GiveBack, RisingLoss
from semalign.training.collator import Collator, EpochSampler, _Numbers


class SuffixModel(nn.Module):
    """Layers cut+1..L of the student with the recipe's losses on top.

    The stream that enters layer cut+1 comes with the batch (`prefix`), or is computed from `input_ids` when cut is 0.
    """

    def __init__(
        self,
        decoder: Decoder,
        cut: int,
        recipe: Recipe,
        pairs: Sequence[LayerPair],
        candidates_C: Tensor,
        teacher_head: Head | None = None,
    ) -> None:
        super().__init__()
        self.suffix = nn.ModuleList(decoder.layers[cut:])
        self.norm = decoder.final_norm
        self.objective = Objective(recipe, decoder, [p.place for p in pairs], candidates_C, teacher_head)
        # A plain attribute: neither the embedding nor the head is a part of what is trained, moved or saved.
        self.decoder, self.cut = decoder, cut
        self.points = (
            {p.place: Point(p.student, recipe.interface, p.student_head) for p in pairs}
            if recipe.layer is not None
            else {}
        )
        self.train(False)

    def train(self, mode: bool = True) -> SuffixModel:
        """Dropout stays off: targets and prefixes were computed without it. Checkpointing alone needs train mode."""
        super().train(False)
        if mode:
            let_checkpoint(self)
        return self

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """What the Trainer calls for `activation_checkpointing`; it is taken off again after the training."""
        # The reentrant form gives no gradient below an input that takes none, as a cached stream does.
        given = (activation_checkpointing_kwargs or {}) | {"use_reentrant": False}
        self.decoder.model.activation_checkpointing_enable(given, **options)

    def forward(self, states: Tensor, labels: Tensor, **batch: Tensor) -> dict[str, Tensor]:
        """Mean losses over the supervised positions: loss, loss_output, loss_layer."""
        stream = batch["prefix"] if "prefix" in batch else batch["input_ids"]
        # The student is cut for this pass alone: between two of them callbacks may measure, run and save the whole of it.
        cut = self.decoder.span(self.cut, self.decoder.num_layers, norm=True)
        with cut, capture(self.decoder, self.points.values()) as found:
            output_BTE = self.decoder.forward(stream)
        hidden = {k: found[point][states] for k, point in self.points.items()}
        return self.objective(output_BTE[states], hidden, labels, states.sum(1).tolist(), batch)


class SuffixTrainer(Trainer):
    """Trainer whose loss is the recipe's, averaged over all supervised positions of an optimiser step.

    Names with an underscore in front, and the two attributes about loss scaling, are private to transformers' Trainer;
    tests/test_private_parts.py says so where a new version has changed them.
    """

    def __init__(
        self,
        model: SuffixModel,
        args: TrainingArguments,
        samples: Sequence[Sample],
        collator: Collator,
        **options: Any,
    ) -> None:
        numbers: Any = _Numbers(len(samples))
        # One process drives one device: the Trainer's DataParallel would copy layers that hooks then miss.
        args._n_gpu = min(args.n_gpu, 1)
        super().__init__(model, args, train_dataset=numbers, data_collator=collator, **options)
        self.add_callback(GiveBack())
        self.add_callback(RisingLoss())
        self.samples = samples
        self.objective: Objective = model.objective
        # Ask the Trainer for the number of supervised positions of the whole step, and normalise by it here.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._parts: dict[str, Tensor] = {}
        self.decoder, self.cut, self.suffix = model.decoder, model.cut, model.suffix

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, with LoRA's modules in their faster form while it runs."""
        with lora.fused(self.suffix):
            return super().train(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        lengths, processes = [len(s.input_ids) for s in self.samples], self.accelerator.num_processes
        together = self.args.train_batch_size * processes
        step = together * self.args.gradient_accumulation_steps
        # By steps, since a checkpoint of an earlier round counts the epochs of other rows.
        is_dropped = self.args.dataloader_drop_last
        batches = len(lengths) // together if is_dropped else -(-len(lengths) // together)
        steps_an_epoch = max(1, -(-batches // self.args.gradient_accumulation_steps))
        return EpochSampler(
            lengths,
            step,
            self.args.seed if self.args.data_seed is None else self.args.data_seed,
            multiple=together if processes > 1 else 1,
            epoch=lambda: self.state.global_step // steps_an_epoch,
        )

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        """Supervised positions of the whole optimiser step, on all processes; the Trainer counts labels, not what counts."""
        if not batch_samples:
            return None
        counted = torch.stack([batch["counted"] for batch in batch_samples]).sum().to(device)
        return self.accelerator.gather(counted).sum() if self.accelerator.num_processes > 1 else counted

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """See the class; a non-finite loss stops the run, naming step and term."""
        self.objective.progress = self.state.global_step / max(1, self.state.max_steps)
        counted = float(inputs.pop("counted"))
        outputs = model(**inputs)
        for name in ("loss_output", "loss_layer"):
            if name in outputs:
                value = float(outputs[name].detach())
                if not torch.isfinite(torch.tensor(value)):
                    raise SemAlignError(
                        f"step {self.state.global_step + 1}: {name} is {value}; lower train.learning_rate or train without bf16."
                    )
                share = torch.tensor([value * counted, counted], dtype=torch.float64)
                self._parts[name] = self._parts.get(name, 0) + share
        loss = outputs["loss"]
        if num_items_in_batch is not None:
            # Processes average their gradients, which this turns into the sum.
            loss = loss * counted / num_items_in_batch * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's; several libraries write here, each with errors of its own."""
        with saving(Path(self.args.output_dir or ".") / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each loss term since the last line, over the supervised positions of all processes."""
        if "loss" in logs:
            for name, part in self._parts.items():
                weighted, count = ranks.total(part).tolist()
                logs[name] = weighted / count
            self._parts = {}
        super().log(logs, start_time)
