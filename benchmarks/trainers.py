"""The trainers that a user would pick instead, on the samples that SemAlign's own data code made.

`epoch()` trains one epoch from the untouched student and returns the training's own seconds; `schedule(epochs)` trains a whole
schedule and says how close the student came to the teacher on held-out rows.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from sides import Task, config_of
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from semalign.config import ModelConfig
from semalign.data import Sample, collate
from semalign.data.batches import batch_inputs, labels_of, state_mask
from semalign.data.inputs import load_inputs
from semalign.maths.full_vocabulary import closeness
from semalign.maths.pairing import depth_pairs
from semalign.models.capture import Point, capture
from semalign.models.decoder import Decoder, share_vocabulary
from semalign.models.loading import load
from semalign.run.meter import free_memory


class Peer:
    """A trainer that holds the whole student, and the teacher if it reads one, in memory."""

    needs_teacher = True

    def __init__(self, task: Task) -> None:
        self.task = task.of_peer()
        self.config = config_of(self.task, "unused")
        self.inputs = load_inputs(self.config)
        self.teacher = self._load(self.config.teacher) if self.needs_teacher else None
        self.student = self._load(self.config.student)
        self.taught: list[Tensor] = []
        """The teacher's final states on the held-out rows, a batch each."""

    def _load(self, config: ModelConfig) -> Decoder:
        decoder = load(config)
        share_vocabulary(self.inputs.vocabulary, decoder)
        decoder.model.requires_grad_(False)
        return decoder

    def adapted(self) -> nn.Module:
        """The student with fresh LoRA on every layer."""
        torch.manual_seed(self.task.seed)
        lora = LoraConfig(
            r=self.task.lora_r, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        return get_peft_model(self.student.model, lora)

    def restore(self, model: Any) -> None:
        """Take LoRA off again, leaving the untouched student: its own weights were frozen."""
        self.student.model = model.unload()
        free_memory()

    def arguments(self, epochs: float, folder: str, **options: Any) -> dict[str, Any]:
        """Training arguments that all peers share with SemAlign's own."""
        return {
            "output_dir": folder,
            "num_train_epochs": epochs,
            "per_device_train_batch_size": self.task.batch,
            "learning_rate": self.task.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0.1,
            "bf16": self.task.dtype == "bfloat16",
            "use_cpu": not torch.cuda.is_available(),
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 50,
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
            "train_sampling_strategy": "group_by_length",
            "length_column_name": "length",
            "seed": self.task.seed,
        } | options

    def trainer(self, model: Any, epochs: float, folder: str, callbacks: list[Any]) -> Trainer:
        """The peer's own trainer on `model`."""
        raise NotImplementedError

    def epoch(self) -> float:
        """Seconds of one epoch's training."""
        return self._train(1, [])

    def schedule(self, epochs: int) -> dict[str, float]:
        """A whole training from the untouched student: its seconds, and the held-out KL at its end."""
        measure = _Measure(self)
        seconds = self._train(epochs, [measure])
        return {"epochs": epochs, "seconds": seconds, "kl": measure.kl}

    def _train(self, epochs: float, callbacks: list[Any]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            model = self.adapted()
            trainer = self.trainer(model, epochs, folder, callbacks)
            seconds = trainer.train().metrics["train_runtime"]
            self.restore(model)
        return seconds

    def kl_of(self, folder: str) -> float:
        """Mean held-out KL of a student that was saved, by the same measure as the peer's own."""
        mine, self.student = self.student, self._load(ModelConfig(folder, dtype=self.task.dtype))
        try:
            return self.heldout_kl()
        finally:
            self.student = mine

    @torch.no_grad()
    def heldout_kl(self) -> float:
        """Mean KL(teacher || student as it stands) over the held-out positions."""
        if not self.taught:
            teacher = self.teacher or self._load(self.config.teacher)
            self.taught = [self._outputs(teacher, batch) for batch in self._heldout()]
            self.teacher_head = teacher.head()
        ours, theirs, found = self.student.head(), self.teacher_head, []
        for batch, taught in zip(self._heldout(), self.taught, strict=True):
            output = self._outputs(self.student, batch)
            labels = torch.cat([labels_of(s) for s in batch]).to(output.device)
            figures = closeness(
                *(output, ours.weight_VD, taught, theirs.weight_VD, labels),
                student=ours.options,
                teacher=theirs.options,
            )
            found.append(figures["kl"])
        return float(torch.cat(found).mean())

    def _heldout(self) -> list[list[Sample]]:
        rows = self.inputs.heldout
        return [rows[at : at + 8] for at in range(0, len(rows), 8)]

    def _outputs(self, decoder: Decoder, samples: list[Sample]) -> Tensor:
        ids, mask = batch_inputs(decoder, samples)
        with decoder.span(0, decoder.num_layers, norm=True):
            return decoder.forward(ids)[mask]

    def rows(self) -> Any:
        """The samples as a dataset of token ids and completion masks."""
        from datasets import Dataset

        return Dataset.from_list(
            [
                {
                    "input_ids": s.input_ids,
                    "completion_mask": [int(m) for m in s.mask],
                    "length": len(s.input_ids),
                }
                for s in self.inputs.train
            ]
        )


class _Measure(TrainerCallback):
    """The held-out KL at the end of a training, after its clock has stopped and before LoRA is taken off."""

    def __init__(self, peer: Peer) -> None:
        self.peer, self.kl = peer, float("nan")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Measure."""
        self.kl = self.peer.heldout_kl()


def _labelled(features: list[dict[str, Any]]) -> dict[str, Tensor]:
    samples = [Sample(f["input_ids"], [bool(m) for m in f["completion_mask"]], "") for f in features]
    batch = collate(samples)
    labels = batch["input_ids"].masked_fill(~batch["mask"], -100)
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}


class TrlGkd(Peer):
    """trl's GKDTrainer, off-policy (lmbda 0), forward KL (beta 0), LoRA on every layer."""

    def trainer(self, model: Any, epochs: float, folder: str, callbacks: list[Any]) -> Trainer:
        """See `Peer`."""
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        assert self.teacher is not None
        return GKDTrainer(
            model=model,
            teacher_model=self.teacher.model,
            args=GKDConfig(lmbda=0.0, beta=0.0, **self.arguments(epochs, folder)),
            data_collator=_labelled,
            train_dataset=self.rows(),
            processing_class=self.inputs.tokenizer,
            callbacks=callbacks,
        )


class TrlSft(Peer):
    """trl's SFTTrainer: cross-entropy on the rows' own answers, LoRA on every layer, no teacher."""

    needs_teacher = False

    def trainer(self, model: Any, epochs: float, folder: str, callbacks: list[Any]) -> Trainer:
        """See `Peer`."""
        from trl import SFTConfig, SFTTrainer

        return SFTTrainer(
            model=model,
            args=SFTConfig(
                dataset_kwargs={"skip_prepare_dataset": True},
                **self.arguments(epochs, folder),
            ),
            data_collator=_labelled,
            train_dataset=self.rows(),
            processing_class=self.inputs.tokenizer,
            callbacks=callbacks,
        )


class LiteralV1(Peer):
    """The paper's procedure as written: the teacher runs in every step, its activations are projected on vocabulary-sized
    bases and recombined, and the student's full logits enter the cosine loss; the paired layers alone are trained."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        assert self.teacher is not None
        count = self.student.num_layers
        trained = range(count - task.layers + 1, count + 1)
        self.pairs = depth_pairs(trained, self.teacher.num_layers, count)
        self.bases = [_unit_bases(d.head().weight_VD).to(d.model.dtype) for d in (self.teacher, self.student)]

    def adapted(self) -> nn.Module:
        """LoRA on the paired layers."""
        torch.manual_seed(self.task.seed)
        lora = LoraConfig(
            r=self.task.lora_r,
            lora_alpha=16,
            target_modules=["up_proj", "down_proj", "v_proj", "o_proj"],
            layers_to_transform=[pair.student - 1 for pair in self.pairs],
            task_type="CAUSAL_LM",
        )
        return get_peft_model(self.student.model, lora)

    def trainer(self, model: Any, epochs: float, folder: str, callbacks: list[Any]) -> Trainer:
        """See `Peer`."""
        return _LiteralTrainer(
            self,
            model=model,
            args=TrainingArguments(**self.arguments(epochs, folder)),
            data_collator=_labelled,
            train_dataset=self.rows(),
            callbacks=callbacks,
        )


def _unit_bases(head_VD: Tensor) -> Tensor:
    """Unit columns of the head's pseudo-inverse, as rows (V, D)."""
    inverse_DV = torch.linalg.solve(head_VD.double().T @ head_VD.double(), head_VD.double().T)
    return (inverse_DV / inverse_DV.norm(dim=0)).T.float()


class _LiteralTrainer(Trainer):
    def __init__(self, peer: LiteralV1, **options: Any) -> None:
        super().__init__(**options)
        self.peer = peer

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over pairs of 1 - cos(activation, target), plus 1 - cos(logits, one-hot label)."""
        peer = self.peer
        assert peer.teacher is not None
        ids, attention, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
        states = state_mask(labels != -100)
        theirs = {p.student: Point(p.teacher, "mlp") for p in peer.pairs}
        ours = {p.student: Point(p.student, "mlp") for p in peer.pairs}
        with torch.no_grad(), capture(peer.teacher, theirs.values()) as taught:
            peer.teacher.model(ids, attention)
        with capture(peer.student, ours.values()) as own:
            logits_NV = model(ids, attention).logits[states].float()
        terms = []
        for layer, point in ours.items():
            hidden_ND = taught[theirs[layer]][states]
            coefficients_NV = (
                nn.functional.normalize(hidden_ND.float(), dim=1).to(peer.bases[0].dtype) @ peer.bases[0].T
            )
            target_NE = coefficients_NV @ peer.bases[1]
            terms.append(
                1 - nn.functional.cosine_similarity(own[point][states].float(), target_NE.float()).mean()
            )
        labels_N = ids[:, 1:][states[:, :-1]]
        cosine_N = logits_NV.gather(1, labels_N[:, None])[:, 0] / logits_NV.norm(dim=1)
        loss = torch.stack(terms).mean() + (1 - cosine_N).mean()
        return (loss, None) if return_outputs else loss


PEERS = {"gkd": TrlGkd, "sft": TrlSft, "v1": LiteralV1}
