"""What is outside of anything that has been seen to work, said before it is tried."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from semalign.config import TransferConfig
from semalign.methods import resolve
from semalign.methods.recipe import default_rate

FAR = 5.0
"""Times the default rate beyond which no pretrained student has been seen to gain."""


def cautions(
    config: TransferConfig, loaded: Mapping[str, torch.Tensor], *, has_prompts: bool = False
) -> list[str]:
    """A sentence for each choice that is likely to be regretted.

    Args:
        loaded: some weight of each model as it was loaded, by the model's part in the run.
        has_prompts: whether the rows have prompts that a model can answer.
    """
    found = []
    train = resolve(config.recipe).train_of(config.train)
    default, what = default_rate(train), "LoRA" if train.lora_r else "full weights"
    rate = train.learning_rate or default
    is_pretrained = not config.student.model_name_or_path.startswith("embedded:")
    if is_pretrained and rate > FAR * default:
        found.append(
            f"train.learning_rate: {rate:g} is {rate / default:.0f} times the default of {what}. At 100 times, a pretrained student ended "
            "seven times as far from its teacher as it began; leave the rate out unless the student was trained from nothing."
        )
    if is_pretrained and has_prompts and not config.data.is_generated:
        found.append(
            "data.completions: on given answers a pretrained student came nearer to its teacher, and no more of its answers were right; "
            "on its own answers (data.completions: student, examples/own-answers.yaml) more were."
        )
    slow = [
        who
        for who, weight in loaded.items()
        if weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    ]
    if slow and "AVX512" not in torch.backends.cpu.get_cpu_capability():
        found.append(
            f"dtype: the {' and the '.join(slow)} is in bfloat16, for which this CPU has no instructions; float32 may be a hundred times "
            "faster here."
        )
    return found
