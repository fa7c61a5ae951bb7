"""Greedy answers to chats, for any causal language model of the transformers library."""

from collections.abc import Mapping, Sequence

import torch
from rich.progress import Progress
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Mapping[str, str]]],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 64,
    progress: bool = False,
) -> list[str]:
    """The model's greedy continuation of each chat, in the order of ``prompts``.

    Batches hold prompts of similar length, padded on the left, and stop when every row has reached an end token.
    The model's mode and generation settings are as before afterwards.
    """
    encoded = [_prompt_ids(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(encoded)), key=lambda n: (len(encoded[n]), n))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    completions = [""] * len(encoded)
    was_training = model.training
    model.eval()
    try:
        with Progress(disable=not progress, transient=True) as bar:
            task = bar.add_task("generate", total=len(order))
            for batch in batches:
                texts = _generate_batch(model, tokenizer, [encoded[n] for n in batch], max_new_tokens)
                for number, text in zip(batch, texts, strict=True):
                    completions[number] = text
                bar.advance(task, len(batch))
    finally:
        model.train(was_training)
    return completions


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Mapping[str, str]]) -> list[int]:
    text = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's end token and those of the model's generation settings: chat models may end turns differently."""
    of_model = model.generation_config.eos_token_id if model.generation_config else None
    ids = [tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])]
    return sorted({int(n) for n in ids if n is not None})


@torch.inference_mode()
def _generate_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], max_new_tokens: int
) -> list[str]:
    longest = max(len(row) for row in rows)
    ends = _end_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, longest - len(row) :] = torch.tensor(row)
        mask[number, longest - len(row) :] = 1
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=ends or None, pad_token_id=pad
    )
    output = model.generate(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=settings
    )
    assert isinstance(output, torch.Tensor)
    texts = []
    for row in output[:, longest:].tolist():
        stop = next((n for n, token in enumerate(row) if token in ends), len(row))
        texts.append(str(tokenizer.decode(row[:stop], skip_special_tokens=True)))
    return texts
