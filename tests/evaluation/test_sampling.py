"""The tokens that are left are those of the warpers of transformers, whatever the first look sees."""

from __future__ import annotations

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from semalign.config import SamplingConfig
from semalign.evaluation import sampling
from semalign.evaluation.sampling import draw, likeliest, next_tokens, sampling_in, settings_of


def left(scores: torch.Tensor, options: SamplingConfig) -> torch.Tensor:
    values, ids = likeliest(scores, options)
    return torch.full_like(scores, -torch.inf).scatter(1, ids, values)


def drawn(spread: float) -> torch.Tensor:
    return spread * torch.randn(5, 1000, generator=torch.Generator().manual_seed(int(10 * spread)))


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("top_p", [0.05, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("top_k", [None, 1, 40, 5000])
def test_what_is_left_is_what_transformers_leaves(
    spread: float, temperature: float, top_p: float, top_k: int | None
) -> None:
    scores, ids = drawn(spread), torch.zeros(5, 1).long()
    found = left(scores, SamplingConfig(temperature, top_p, top_k))
    expected = TemperatureLogitsWarper(temperature)(ids, scores) if temperature != 1 else scores
    if top_k:
        expected = TopKLogitsWarper(top_k)(ids, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(ids, expected)
    torch.testing.assert_close(found, expected)
    assert found.isfinite().any(1).all()


def test_a_first_look_that_holds_too_little_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "FIRST_LOOK", 2)
    flat = drawn(0.1)
    found = left(flat, SamplingConfig(1.0, 0.9))
    assert 850 < int(found[0].isfinite().sum()) < 950
    torch.testing.assert_close(found, TopPLogitsWarper(0.9)(torch.zeros(5, 1).long(), flat))


@pytest.mark.parametrize(
    "options",
    [
        SamplingConfig(0.7),
        SamplingConfig(1.5, top_k=3),
        SamplingConfig(1.0, 0.6),
        SamplingConfig(0.8, 0.9, 6),
    ],
)
def test_tokens_come_as_often_as_they_are_likely(options: SamplingConfig) -> None:
    row, count = torch.tensor([[1.0, -0.5, 2.0, 0.3, 1.9, -2.0, 0.0, 1.2]]), 40_000
    expected = left(row, options).softmax(1)[0]
    torch.manual_seed(0)
    shares = torch.bincount(draw(row.expand(count, -1).clone(), options), minlength=8) / count
    assert shares[expected == 0].sum() == 0
    deviations = (expected * (1 - expected) / count).sqrt()
    assert ((shares - expected).abs() <= 4 * deviations).all()


@pytest.mark.parametrize(
    "options", [SamplingConfig(1.0), SamplingConfig(1.0, 0.9), SamplingConfig(0.7, 0.9, 6)]
)
def test_logits_of_half_precision_are_drawn_from_in_float32(options: SamplingConfig) -> None:
    scores = drawn(1.0).bfloat16()
    torch.manual_seed(3)
    expected = next_tokens(scores.float(), options)
    torch.manual_seed(3)
    assert next_tokens(scores, options).tolist() == expected.tolist()
    assert expected.tolist() != scores.argmax(1).tolist()


def test_of_equally_likely_tokens_the_first_is_taken_as_transformers_does() -> None:
    scores = drawn(1.0).bfloat16()
    scores[:, [900, 41, 700]] = 9.0
    assert next_tokens(scores, SamplingConfig()).tolist() == scores.float().argmax(1).tolist() == [41] * 5


@pytest.mark.parametrize(
    "options", [SamplingConfig(), SamplingConfig(0.7), SamplingConfig(1.0, 0.9), SamplingConfig(0.8, 0.9, 6)]
)
def test_generation_settings_say_how_they_were_asked_to_draw(options: SamplingConfig) -> None:
    assert sampling_in(settings_of(options, 8, [1], 0)) == options
