"""Activations that are put into a running model; what recording gives is tested for every architecture in test_layouts.py."""

from __future__ import annotations

import pytest
import torch
from in_memory import samples, student

from semalign.data.batches import batch_inputs
from semalign.models.capture import Point, capture, patched


@pytest.mark.parametrize("interface", ["block", "delta", "attn", "mlp", "output"])
@torch.no_grad()
def test_what_is_put_there_is_there_and_the_rest_of_the_model_goes_on_from_it(interface: str) -> None:
    decoder, row = student(), samples(1)[0]
    ids, states = batch_inputs(decoder, [row])
    point, after = Point(2, interface), Point(3, "block")
    with capture(decoder, [point, after]) as found, decoder.span(0, decoder.num_layers, norm=True):
        plain = decoder.forward(ids)
    own, later = found[point][states], found[after]
    with decoder.span(0, decoder.num_layers, norm=True), patched(decoder, point, states, own):
        torch.testing.assert_close(decoder.forward(ids), plain)
    other = torch.randn_like(own)
    with (
        patched(decoder, point, states, other),
        capture(decoder, [point, after]) as found,
        decoder.span(0, decoder.num_layers, norm=True),
    ):
        changed = decoder.forward(ids)
    torch.testing.assert_close(found[point][states], other, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(changed[states], plain[states])
    assert torch.equal(found[after], later) == (interface == "output")
    with (
        patched(decoder, point, states, 7 * own, keeps_length=True),
        decoder.span(0, decoder.num_layers, norm=True),
    ):
        torch.testing.assert_close(decoder.forward(ids), plain, rtol=1e-4, atol=1e-4)
    with decoder.span(0, decoder.num_layers, norm=True):
        torch.testing.assert_close(decoder.forward(ids), plain)
