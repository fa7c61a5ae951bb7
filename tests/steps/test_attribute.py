"""Attribution on a real decoder: agreement with captum, independence of batches, no weight gradient."""

from __future__ import annotations

import pytest
import torch
from captum.attr import LayerGradientXActivation
from tiny import tiny_model, tiny_tokenizer

from semalign.data import Sample, prepare
from semalign.errors import ModelError
from semalign.models import Decoder
from semalign.signals import labels_of, state_mask
from semalign.steps.attribute import attribute_layers


def samples(count: int = 5) -> list[Sample]:
    rows = [
        {
            "messages": [
                {"role": "user", "content": "add two " * (1 + i % 3)},
                {"role": "assistant", "content": f"the answer is {i}"},
            ]
        }
        for i in range(count)
    ]
    return prepare(rows, tiny_tokenizer(), max_length=64)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("aggregate", ["sum", "abs"])
def test_scores_agree_with_captum(kind: str, aggregate: str) -> None:
    decoder = Decoder(tiny_model(kind, layers=3, wide=True), None, kind)
    sample = samples(1)[0]
    ids = torch.tensor([sample.input_ids])
    states, labels = state_mask(torch.tensor([sample.mask])), labels_of(sample)

    def loss(ids_BT: torch.Tensor) -> torch.Tensor:
        logits = decoder.model(ids_BT).logits[states]
        return torch.nn.functional.cross_entropy(logits, labels)[None]

    expected = []
    for layer in decoder.layers:
        product = LayerGradientXActivation(loss, layer).attribute(ids)
        product = (product if isinstance(product, torch.Tensor) else product[0]).detach()
        expected.append(float((product.abs() if aggregate == "abs" else product).sum()))
    ours = attribute_layers(decoder, [sample], aggregate=aggregate)  # type: ignore[arg-type]
    # The final norm ignores the length of its input, so the signed sum after the last layer is zero up to rounding.
    assert ours == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_batch_size_and_checkpointing_change_nothing() -> None:
    decoder = Decoder(tiny_model("llama", layers=3, wide=True), None)
    one = attribute_layers(decoder, samples(), batch_size=1)
    assert attribute_layers(decoder, samples(), batch_size=4) == pytest.approx(one, rel=1e-4)
    assert attribute_layers(decoder, samples(), activation_checkpointing=True) == pytest.approx(one, rel=1e-4)


def test_no_weight_gradient_is_made_and_flags_are_restored() -> None:
    decoder = Decoder(tiny_model("llama", layers=2, wide=True), None)
    attribute_layers(decoder, samples())
    assert all(p.grad is None and p.requires_grad for p in decoder.model.parameters())


def test_all_zero_scores_are_an_error() -> None:
    decoder = Decoder(tiny_model("llama", layers=2, wide=True), None, "dead")
    with torch.no_grad():
        decoder.final_norm.weight.zero_()
    with pytest.raises(ModelError, match="dead: expected finite, non-zero"):
        attribute_layers(decoder, samples())
