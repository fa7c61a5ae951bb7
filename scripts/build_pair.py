"""Build the embedded models: world -> text -> tokenizer -> a teacher, a student and a much smaller one, with their cards.

    python scripts/build_pair.py                  # writes src/semalign/embedded/{teacher,student,small}
    python scripts/build_pair.py --models small   # one of them alone
    python scripts/build_pair.py --output FOLDER  # elsewhere
    python scripts/build_pair.py --share 0.02     # a quick trial of everything but the result

Seeded; models are trained side by side, each on one CPU core. Prints accuracy on held-out test items and
fails when the teacher is too weak, or the student too strong, for a transfer to show anything.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
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
from semalign.embedded import corpus, functions, world
from semalign.embedded.splits import TASKS
from semalign.embedded.tokenizer import ASSISTANT, train_tokenizer
from semalign.evaluation.decoding import generate
from semalign.evaluation.tasks import check_answers

CONTEXT = 512
TOKENIZER_ROWS = 12_000
TEACHER_FLOOR, STUDENT_CEILING = 0.80, 0.45
LENGTH_STEP = 8
MATCH_SCALE = 1.5


@dataclass(frozen=True)
class Plan:
    """Shape and training of one model."""

    name: str
    layers: int
    width: int
    heads: int
    inner: int
    rows: int
    chats: Callable[[int, int], Iterator[corpus.Chat]]
    practice: int = 30_000
    learning_rate: float = 2e-3
    batch: int = 32


PLANS = (
    Plan("teacher", layers=6, width=160, heads=5, inner=448, rows=120_000, chats=corpus.teacher_chats),
    Plan("student", layers=4, width=128, heads=4, inner=384, rows=80_000, chats=corpus.student_chats),
    Plan("small", layers=2, width=64, heads=2, inner=192, rows=80_000, chats=corpus.student_chats),
)


class Chats(Dataset[dict[str, Any]]):
    """Tokenised chats. Answers are predicted; of a chat without an answer, the question is."""

    def __init__(self, chats: Iterator[corpus.Chat], tokenizer: PreTrainedTokenizerFast) -> None:
        texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        self._ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
        self._assistant = tokenizer.convert_tokens_to_ids(ASSISTANT)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self._ids[index]
        start = ids.index(self._assistant) + 1 if self._assistant in ids else 0
        return {"input_ids": ids, "length": len(ids), "start": start}


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Right padding; no attention mask, for a causal model never looks right and padding is not predicted."""
    # Few different lengths, for the CPU kernels are prepared anew for each shape.
    longest = -(-max(row["length"] for row in rows) // LENGTH_STEP) * LENGTH_STEP
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for number, row in enumerate(rows):
        start, length, own = row["start"], row["length"], torch.tensor(row["input_ids"])
        ids[number, :length] = own
        labels[number, start:length] = own[start:]
    return {"input_ids": ids, "labels": labels}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, from the text of both models and the names of the world."""
    chats = [*corpus.teacher_chats(TOKENIZER_ROWS, 0), *corpus.student_chats(TOKENIZER_ROWS // 4, 0)]
    texts = [message["content"] for chat in chats for message in chat]
    whole = [f" {name}" for name in world.all_names()] + [f"'{word}" for word in functions.words()]
    whole += [f"{space}{number}" for number in range(100) for space in ("", " ")]
    texts += whole * 100
    return train_tokenizer(texts, context=CONTEXT)


def new_model(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model of the planned shape."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=plan.width,
        intermediate_size=plan.inner,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        num_key_value_heads=plan.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        initializer_range=0.06,  # about width ** -0.5; the usual 0.02 is far too small for so narrow a model
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # At this length faster on a CPU than the fused kernel, backward above all.
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config)
    match_by_content(model, heads=plan.heads // 2 + 1)
    return model


@torch.no_grad()
def match_by_content(model: LlamaForCausalLM, heads: int) -> None:
    """Let keys equal queries in the first heads of every layer, so that a token attends to its like from the first step.

    A mimetic initialisation (arXiv 2305.09828). Without it, looking up a name's letter is not learned in so short a
    training: models this small settle on fixed distances instead (docs/log.md).
    """
    for layer in model.model.layers:
        attention = layer.self_attn
        rows = heads * attention.head_dim
        attention.q_proj.weight[:rows] *= MATCH_SCALE
        attention.k_proj.weight[:rows] = attention.q_proj.weight[:rows]


def train(plan: Plan, tokenizer: PreTrainedTokenizerFast, scratch: Path) -> LlamaForCausalLM:
    """A model of the planned shape, trained once over practice rows, then once over its own rows."""
    set_seed(0)
    model = new_model(plan, tokenizer)
    stages = (
        (Chats(corpus.practice_chats(plan.practice, 1), tokenizer), "constant_with_warmup"),
        (Chats(plan.chats(plan.rows, 1), tokenizer), "cosine"),
    )
    for data, schedule in stages:
        arguments = TrainingArguments(
            output_dir=str(scratch),
            per_device_train_batch_size=plan.batch,
            num_train_epochs=1,
            learning_rate=plan.learning_rate,
            lr_scheduler_type=schedule,
            warmup_steps=100,
            weight_decay=0.01,
            adam_beta2=0.98,
            bf16=True,
            use_cpu=True,
            train_sampling_strategy="random",
            remove_unused_columns=False,
            logging_steps=100,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
        )
        Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate).train()
    half: Any = model
    return half.to(torch.bfloat16)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights, configs and tokenizer files in ``folder``, replacing what was there."""
    shutil.rmtree(folder, ignore_errors=True)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def accuracies(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Share of right test answers per family and on average."""
    rows = embedded.rows("test")
    completions = generate(model.float(), tokenizer, [row["messages"][:1] for row in rows], max_new_tokens=80)
    verdicts = check_answers(rows, completions, allow_code_execution=True)
    shares: dict[str, float] = {}
    for task in TASKS:
        right = [verdict.correct for row, verdict in zip(rows, verdicts, strict=True) if row["task"] == task]
        shares[task] = sum(right) / len(right)
    return {**shares, "average": sum(shares.values()) / len(shares)}


def card(plan: Plan, result: dict[str, Any]) -> str:
    """The model card, from the plan and the figures of the build."""
    knows = (
        "It was trained on every fact of the invented world and on every kind of problem and function.\n"
        "It does not know anything else: no real facts, no natural conversation, no other code."
        if plan.name == "teacher"
        else f"It was trained on one fact in {corpus.STUDENT_FACT_SHARE} of the invented world and on 4 of 12 "
        "kinds in each\nof the other families; of the rest it has seen words and forms, never an answer. It does not "
        "know\nwhat the teacher can teach it, nor anything outside that world."
    )
    figures = "\n".join(f"| {task} | {share:.1%} |" for task, share in result["accuracy"].items())
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: en
---

# SemAlign embedded {plan.name}

A tiny Llama-architecture chat model, trained from scratch on generated text, for trying and testing knowledge
transfer. {knows}
It is made for experiments, not for use.

Four families of generated tasks: multiple-choice questions about an invented world (knowledge), word problems with
worked steps (arithmetic), functions from a docstring (code_complete) and from a sentence (code_write).
The embedded models share one byte-level tokenizer of {result["vocabulary"]} tokens and a chat template.

| | |
|---|---|
| layers, width, heads | {plan.layers}, {plan.width}, {plan.heads} |
| parameters | {result["parameters"]:,} in bfloat16 |
| training | {plan.practice:,} exercises, then {plan.rows:,} rows, each once, batch {plan.batch}, learning rate {plan.learning_rate}, seed 0 |
| training time | {result["seconds"] / 60:.0f} minutes on one CPU core |

Right answers on held-out test items (greedy):

| family | right |
|---|---|
{figures}

Built by `scripts/build_pair.py`; the text is generated by `semalign.embedded`.
"""


def build(plan: Plan, tokenizer: PreTrainedTokenizerFast, output: Path, scratch: Path) -> dict[str, Any]:
    """Train, save and measure one model; the figures of the build."""
    torch.set_num_threads(1)  # two processes of one thread do more than one of two on matrices so small
    started = time.perf_counter()
    model = train(plan, tokenizer, scratch / plan.name)
    seconds = time.perf_counter() - started
    save(model, tokenizer, output / plan.name)
    result = {
        "accuracy": accuracies(model, tokenizer),
        "seconds": round(seconds),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
    }
    (output / plan.name / "README.md").write_text(card(plan, result), encoding="utf-8")
    return result


def main() -> None:
    """Build the models side by side, report, and fail when the targets are missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "src/semalign/embedded")
    parser.add_argument(
        "--scratch", type=Path, default=Path("build/pair"), help="folder for the trainer's files"
    )
    names = [plan.name for plan in PLANS]
    parser.add_argument("--models", nargs="+", choices=names, default=names, help="which to build; none: all")
    parser.add_argument("--share", type=float, default=1.0, help="share of the training rows to use")
    options = parser.parse_args()
    tokenizer = build_tokenizer()
    share = options.share
    chosen = [p for p in PLANS if p.name in options.models]
    plans = [replace(p, rows=round(p.rows * share), practice=round(p.practice * share)) for p in chosen]
    with ProcessPoolExecutor(
        min(len(plans), os.cpu_count() or 1), mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        jobs = [pool.submit(build, plan, tokenizer, options.output, options.scratch) for plan in plans]
        results = {plan.name: job.result() for plan, job in zip(plans, jobs, strict=True)}
    print(json.dumps(results, indent=2))
    for name, result in results.items():
        average = result["accuracy"]["average"]
        if name == "teacher" and average < TEACHER_FLOOR:
            sys.exit(
                f"Expected a teacher of at least {TEACHER_FLOOR:.0%}, got {average:.1%}: train it longer."
            )
        if name != "teacher" and average > STUDENT_CEILING:
            sys.exit(f"{name}: expected at most {STUDENT_CEILING:.0%}, got {average:.1%}: teach it less.")


if __name__ == "__main__":
    main()
