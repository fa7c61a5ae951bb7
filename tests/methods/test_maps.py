"""How maps weight positions, against distributions written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from semalign.methods.maps import MAPS


def drawn(seed: int, rows: int = 7, tokens: int = 12) -> Tensor:
    logits = torch.randn(rows, tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (3 * logits).log_softmax(1)


def weights(name: str, teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    weight = MAPS[name].weight
    assert weight is not None
    return weight(teacher, student, mask).double()


def test_agreement_is_the_exponential_of_minus_kl_where_every_token_has_a_slot() -> None:
    teacher, student = drawn(0), drawn(1)
    kl = kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    found = weights("agreement_ridge", teacher, student, torch.ones_like(teacher, dtype=torch.bool))
    torch.testing.assert_close(found, (-kl).exp().clamp_min(1e-3), rtol=1e-4, atol=1e-5)
    assert found.min() < 0.1, "these models disagree somewhere"


def test_agreement_takes_what_has_no_slot_as_one_token() -> None:
    teacher, student = drawn(2), drawn(3)
    mask = torch.zeros_like(teacher, dtype=torch.bool)
    mask[:, :3] = True
    # What stands in a masked slot is nobody's.
    filled = [torch.where(mask, one, 7.0) for one in (teacher, student)]
    coarse = [torch.cat((one[:, :3], one[:, 3:].logsumexp(1, keepdim=True)), 1) for one in (teacher, student)]
    kl = kl_div(coarse[1], coarse[0], reduction="none", log_target=True).sum(1)
    found = weights("agreement_ridge", filled[0], filled[1], mask)
    torch.testing.assert_close(found, (-kl).exp().clamp_min(1e-3), rtol=1e-4, atol=1e-5)


def test_equal_models_agree_everywhere_and_opposite_ones_hardly() -> None:
    teacher = drawn(4)
    mask = torch.ones_like(teacher, dtype=torch.bool)
    torch.testing.assert_close(
        weights("agreement_ridge", teacher, teacher, mask), torch.ones(7, dtype=torch.float64)
    )
    sure = torch.full((1, 12), -40.0, dtype=torch.float64)
    one, other = sure.clone(), sure.clone()
    one[0, 0] = other[0, 1] = 0.0
    assert float(weights("agreement_ridge", one, other, mask[:1])) == pytest.approx(1e-3), (
        "no position is lost"
    )


def test_uncertainty_is_one_less_the_sum_of_squares() -> None:
    teacher = drawn(5)
    mask = torch.ones_like(teacher, dtype=torch.bool)
    expected = (1 - teacher.exp().square().sum(1)).clamp_min(1e-3)
    torch.testing.assert_close(weights("weighted_ridge", teacher, drawn(6), mask), expected)


def test_only_maps_that_are_fitted_weight_positions() -> None:
    assert {n for n, m in MAPS.items() if m.weight} == {"agreement_ridge", "weighted_ridge"}
    assert all(m.fitted for m in MAPS.values() if m.weight)
