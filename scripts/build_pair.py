"""Build the embedded pair: world -> text -> tokenizer -> two trained models with their cards.

    python scripts/build_pair.py                    # writes src/semalign/embedded/{teacher,student}
    python scripts/build_pair.py --output DIR --teacher-rows N --student-rows N

Seeded; about half an hour on two CPU cores. Prints accuracy on the held-out test items and fails when the teacher
is too weak or the student too strong to be worth a transfer.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from semalign import embedded
from semalign.embedded import corpus, world
from semalign.embedded.tokenizer import train_tokenizer
from semalign.evaluation.generate import generate
from semalign.evaluation.tasks import check_answers

CONTEXT = 512
TOKENIZER_ROWS = 12_000
TEACHER_FLOOR, STUDENT_CEILING = 0.80, 0.45


@dataclass(frozen=True)
class Size:
    """Shape and training length of one model."""

    layers: int
    width: int
    heads: int
    inner: int
    rows: int
    learning_rate: float
    batch: int = 64


TEACHER = Size(layers=6, width=192, heads=6, inner=512, rows=100_000, learning_rate=2e-3)
STUDENT = Size(layers=4, width=128, heads=4, inner=384, rows=80_000, learning_rate=2e-3)


class Chats(Dataset[dict[str, Any]]):
    """Tokenised chats; every token is predicted, padding is added by the collator."""

    def __init__(self, chats: Iterator[corpus.Chat], tokenizer: PreTrainedTokenizerFast) -> None:
        texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        self._ids = tokenizer(texts, add_special_tokens=False)["input_ids"]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self._ids[index], "length": len(self._ids[index])}


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Right padding; no attention mask, for a causal model never looks right and padding is not predicted."""
    # Few different lengths, for the CPU kernels are prepared anew for each shape.
    longest = -(-max(row["length"] for row in rows) // 8) * 8
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for number, row in enumerate(rows):
        ids[number, : row["length"]] = labels[number, : row["length"]] = torch.tensor(row["input_ids"])
    return {"input_ids": ids, "labels": labels}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, from the text of both models and the names of the world."""
    chats = [*corpus.teacher_chats(TOKENIZER_ROWS, 0), *corpus.student_chats(TOKENIZER_ROWS // 4, 0)]
    texts = [message["content"] for chat in chats for message in chat]
    texts += [f" {name}" for name in world.all_names()] * 100
    return train_tokenizer(texts, context=CONTEXT)


def train(
    size: Size,
    chats: Callable[[int, int], Iterator[corpus.Chat]],
    tokenizer: PreTrainedTokenizerFast,
    scratch: Path,
) -> LlamaForCausalLM:
    """A freshly initialised model of ``size``, trained once over ``size.rows`` chats."""
    set_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.width,
            intermediate_size=size.inner,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="eager",  # on a CPU and at this length faster than the fused kernel, backward above all
        )
    )
    arguments = TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=size.batch,
        num_train_epochs=1,
        learning_rate=size.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        weight_decay=0.01,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=True,
        train_sampling_strategy="group_by_length",
        length_column_name="length",
        remove_unused_columns=False,
        logging_steps=100,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    data = Chats(chats(size.rows, 1), tokenizer)
    Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate).train()
    return model.to(torch.bfloat16)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights, configs and tokenizer files in ``folder``, replacing what was there."""
    shutil.rmtree(folder, ignore_errors=True)
    model.config._name_or_path = ""
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def accuracies(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Share of right test answers per family and on average."""
    rows = embedded.rows("test")
    completions = generate(model.float(), tokenizer, [row["messages"][:1] for row in rows], max_new_tokens=80)
    verdicts = check_answers(rows, completions, allow_code_execution=True)
    by_task: dict[str, list[bool]] = {}
    for row, verdict in zip(rows, verdicts, strict=True):
        by_task.setdefault(row["task"], []).append(verdict.correct)
    shares = {task: sum(right) / len(right) for task, right in by_task.items()}
    return {**shares, "average": sum(shares.values()) / len(shares)}


def main() -> None:
    """Build, save, measure, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "src/semalign/embedded")
    parser.add_argument("--scratch", type=Path, default=Path("build/pair"))
    for name in ("teacher", "student"):
        parser.add_argument(f"--{name}-set", type=json.loads, default={}, help="JSON that changes the size")
    options = parser.parse_args()
    tokenizer = build_tokenizer()
    from dataclasses import replace

    for name, size, chats in (
        ("teacher", TEACHER, corpus.teacher_chats),
        ("student", STUDENT, corpus.student_chats),
    ):
        started = time.perf_counter()
        change = getattr(options, f"{name}_set")
        if change is None:
            continue
        model = train(replace(size, **change), chats, tokenizer, options.scratch)
        save(model, tokenizer, options.output / name)
        seconds = time.perf_counter() - started
        print(
            name,
            json.dumps(accuracies(model, tokenizer)),
            f"{seconds:.0f} s",
            f"{sum(p.numel() for p in model.parameters()):,} parameters",
            flush=True,
        )


if __name__ == "__main__":
    main()
