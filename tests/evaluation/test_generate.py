"""Batched generation equals one-by-one greedy decoding and leaves the model as it was."""

import copy

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from semalign import embedded
from semalign.evaluation.generate import generate


@pytest.fixture(scope="module")
def pair() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    folder = embedded.student_path()
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, PreTrainedTokenizerFast.from_pretrained(folder)


def greedy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: list[dict[str, str]], most: int
) -> str:
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    new: list[int] = []
    with torch.no_grad():
        while len(new) < most:
            token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            new.append(token)
    return str(tokenizer.decode(new, skip_special_tokens=True))


def test_equals_plain_greedy_decoding(pair: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]) -> None:
    model, tokenizer = pair
    prompts = [row["messages"][:1] for row in embedded.rows("validation")[::20]]
    wanted = [greedy(model, tokenizer, prompt, 12) for prompt in prompts]
    assert generate(model, tokenizer, prompts, max_new_tokens=12, batch_size=4) == wanted
    assert generate(model, tokenizer, prompts, max_new_tokens=12, batch_size=100) == wanted
    assert len(set(wanted)) > 3


def test_leaves_no_state(pair: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]) -> None:
    model, tokenizer = pair
    model.train()
    settings, side = copy.deepcopy(model.generation_config.to_dict()), tokenizer.padding_side
    generate(model, tokenizer, [[{"role": "user", "content": "2 + 2"}]], max_new_tokens=3)
    assert model.training
    assert model.generation_config.to_dict() == settings and tokenizer.padding_side == side
    model.eval()


def test_shipped_settings_do_not_bend_greedy_decoding(
    pair: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
) -> None:
    model, tokenizer = pair
    prompts = [row["messages"][:1] for row in embedded.rows("validation")[::40]]
    plain = generate(model, tokenizer, prompts, max_new_tokens=12)
    kept = copy.deepcopy(model.generation_config)
    model.generation_config.repetition_penalty, model.generation_config.no_repeat_ngram_size = 3.0, 1
    try:
        assert generate(model, tokenizer, prompts, max_new_tokens=12) == plain
        assert model.generation_config.repetition_penalty == 3.0
    finally:
        model.generation_config = kept


def test_no_prompts(pair: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]) -> None:
    assert generate(*pair, [], max_new_tokens=3) == []


def test_continuous_batching_is_greedy_too(pair: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]) -> None:
    model, tokenizer = pair
    prompts = [row["messages"][:1] for row in embedded.rows("validation")[::20]]
    found = generate(model, tokenizer, prompts, max_new_tokens=12, is_continuous=True)
    assert len(found) == len(prompts) and len(set(found)) > 3
    for prompt, text in zip(prompts, found, strict=True):
        start = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(start + text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        first = len(tokenizer(start, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logits = model(ids).logits[0, first - 1 : -1]
        chosen = logits.gather(1, ids[0, first:, None])[:, 0]
        # All but the likeliest token: attention is computed in another order.
        assert float((logits.max(1).values - chosen).max()) < 0.05, text
