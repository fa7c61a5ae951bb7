"""Trains a comparison's student by trl's on-policy distillation for a given time, for the comparison to measure beside its own.

    python benchmarks/trl_on_policy.py compare-real.yaml --seconds 1500 --seed 0 --out gkd-0
    semalign compare compare-real.yaml     # with the method: gkd: {made: "gkd-{seed}"}

GKDTrainer with lambda 1: in every step the student answers the batch's prompts and both models read the answers. Pair, prompts, LoRA, batch,
rate and length of answers are those of the comparison's default method; the divergence (beta 0.5) and the temperature (0.9) are trl's own
defaults. Two steps are timed first, and as many are then trained as fit, loading and saving counted. The folder holds the merged student
and `made.json` with what it cost.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl.experimental.gkd import GKDConfig, GKDTrainer

from semalign.comparison.plan import read_comparison
from semalign.config import TransferConfig
from semalign.data.drawing import split_rows
from semalign.models.loading import load
from semalign.run.meter import peak_rss

TIMED_STEPS = 2


def train(config: TransferConfig, rows: list[dict[str, Any]], steps: int, parts: int, seed: int) -> Any:
    """The student after some steps of on-policy distillation."""
    torch.manual_seed(seed)
    student, teacher, options = load(config.student), load(config.teacher), config.train
    assert student.tokenizer is not None
    lora = LoraConfig(
        r=options.lora_r, lora_alpha=options.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = GKDConfig(
            output_dir=folder,
            lmbda=1.0,
            max_new_tokens=config.data.max_new_tokens,
            max_length=config.data.max_length,
            max_steps=steps,
            per_device_train_batch_size=options.per_device_train_batch_size // parts,
            gradient_accumulation_steps=parts,
            learning_rate=options.learning_rate or 2e-4,
            lr_scheduler_type=options.lr_scheduler_type,
            warmup_steps=0,  # the first step of a warm-up is at rate 0, and these are few
            bf16=options.bf16,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            seed=seed,
        )
        trainer = GKDTrainer(
            model=get_peft_model(student.model, lora),
            teacher_model=teacher.model,
            args=arguments,
            train_dataset=Dataset.from_list([{"messages": row["messages"]} for row in rows]),
            processing_class=student.tokenizer,
        )
        trainer.train()
        trained: Any = trainer.model
    return trained.merge_and_unload(), student.tokenizer


def main() -> None:
    """Parse, time, train, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comparison", type=Path)
    parser.add_argument("--task", help="none: the first that is trained on")
    parser.add_argument("--seconds", type=float, help="in all; none: see --steps")
    parser.add_argument("--steps", type=int, help="optimiser steps, whatever they take")
    parser.add_argument(
        "--parts", type=int, default=2, help="parts of a batch that are in memory one at a time"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if (options.seconds is None) == (options.steps is None):
        parser.error("expected one of --seconds and --steps")
    comparison = read_comparison(options.comparison)
    task = options.task or comparison.options.trained[0]
    config = comparison.configs[task, comparison.options.default]
    rows = split_rows(config.data)[0]
    steps = options.steps
    if steps is None:
        start = time.perf_counter()
        train(config, rows, 1, options.parts, options.seed)
        fixed = time.perf_counter() - start
        start = time.perf_counter()
        train(config, rows, 1 + TIMED_STEPS, options.parts, options.seed)
        a_step = (time.perf_counter() - start - fixed) / TIMED_STEPS
        steps = max(1, int((options.seconds - fixed) / a_step) + 1)
        print(f"{fixed:.0f} s before the second step, {a_step:.1f} s a step: {steps} steps", flush=True)
    start = time.perf_counter()
    model, tokenizer = train(config, rows, steps, options.parts, options.seed)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    cost = {
        "wall_seconds": round(time.perf_counter() - start, 3),
        "steps": steps,
        "rows": steps * config.train.per_device_train_batch_size,
        "peak_rss_bytes": peak_rss(),
    }
    (options.out / "made.json").write_text(json.dumps(cost))
    print(f"{options.out}: {json.dumps(cost)}")


if __name__ == "__main__":
    main()
