"""Prompts that are read in groups of like length leave what one pass over all of them leaves."""

from __future__ import annotations

import pytest
import torch
from tiny import ARCHITECTURES, tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from semalign.evaluation import prefill as module
from semalign.evaluation.decoding import answers, padded_on_the_left
from semalign.evaluation.prefill import groups_of, prefill

from .test_decoding import shapes_read

# Their caches hold a window, or states of linear attention or convolutions, and not the keys and values of all tokens.
WINDOWS = {
    "mistral",
    "ministral",
    "gemma2",
    "gemma3_text",
    "gemma4_text",
    "olmo3",
    "cohere2",
    "exaone4",
    "gpt_oss",
}
STATES = {"lfm2", "qwen3_5_text", "qwen3_next", "qwen3_5_moe_text"}
LENGTHS = (3, 14, 1, 5, 30, 4, 2)


def _rows(model: PreTrainedModel) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    size = model.config.get_text_config().vocab_size
    return [torch.randint(3, size, (n,), generator=generator).tolist() for n in LENGTHS]


def test_each_real_place_holds_what_one_pass_leaves_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", layers=3, wide=False, seed=1).eval()
    ids, mask = padded_on_the_left(_rows(model), 0)
    with torch.inference_mode():
        whole = prefill(model, ids, mask, groups_of(model, mask))
        read = shapes_read(model, monkeypatch)
        monkeypatch.setattr(module, "READ_AT_ONCE", 16)
        found = prefill(model, ids, mask, groups_of(model, mask))
    # 30 and 14 alone, then 5 with 4 and 3, 2 with 1: each without its last token.
    assert read == [(1, 29), (1, 13), (3, 4), (2, 1)]
    real = mask[:, :-1].bool()
    for one, other in zip(whole.layers, found.layers, strict=True):
        for kept, expected in ((other.keys, one.keys), (other.values, one.values)):
            assert kept.shape == expected.shape == (7, 2, 29, 8)
            torch.testing.assert_close(
                kept.transpose(1, 2)[real], expected.transpose(1, 2)[real], rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize(
    ("kind", "samples"), [*((kind, 1) for kind in ARCHITECTURES), ("llama", 3), ("lfm2", 3)]
)
def test_answers_do_not_depend_on_the_groups(
    kind: str, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny_model(kind, layers=3, wide=False, seed=1), tiny_tokenizer()
    prompts = [[{"role": "user", "content": "blue and green " * n}] for n in (1, 4, 2, 6, 3, 5)]
    whole = answers(model, tokenizer, prompts, 12, 6 * samples, samples=samples)
    read = shapes_read(model, monkeypatch)
    monkeypatch.setattr(module, "READ_AT_ONCE", 24)
    assert answers(model, tokenizer, prompts, 12, 6 * samples, samples=samples) == whole
    # Six prompts are more than one group; what a cache cannot put side by side shows after the first, and then all are read together.
    assert (len(prompts) in [rows for rows, _ in read[:2]]) == (kind in WINDOWS | STATES)
