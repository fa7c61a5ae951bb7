import pytest
import torch

from semalign.errors import ModelError
from semalign.maths import head
from semalign.maths.head import HeadOptions, gathered_logits, head_logits

from . import reference


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CASES = [
    HeadOptions(),
    HeadOptions(scale=0.25),
    HeadOptions(bias_V=normal(11, seed=9)),
    HeadOptions(bias_V=normal(11, seed=9), scale=2.0, softcap=1.5),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", CASES)
def test_logits_and_gathered_logits_follow_the_options(
    options: HeadOptions, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small blocks, so that several of them are needed.
    monkeypatch.setattr(head, "_UPCAST_ROWS", 4)
    monkeypatch.setattr(head, "_GATHER_BYTES", 2 * 3 * 5 * 4)
    hidden, weight = normal(7, 5).to(dtype).requires_grad_(), normal(11, 5, seed=1).to(dtype)
    ids = torch.randint(11, (7, 3), generator=torch.Generator().manual_seed(2))
    copy, weight_copy = reference.double(hidden, weight)
    bias = None if options.bias_V is None else options.bias_V.double()
    expected = reference.logits(copy, weight_copy, bias, options.scale, options.softcap)
    logits = head_logits(hidden, weight, options)
    gathered = gathered_logits(
        hidden, weight, ids, bias_V=options.bias_V, scale=options.scale, softcap=options.softcap
    )
    assert logits.dtype == gathered.dtype == torch.float32
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(logits.double(), expected, **tolerance)
    torch.testing.assert_close(gathered.double(), expected.gather(1, ids), **tolerance)
    chosen = expected.gather(1, ids)
    seeds = normal(7, 3, seed=3)
    (wanted,) = torch.autograd.grad(chosen, copy, seeds.double())
    half = {"rtol": 1e-2, "atol": 1e-2}  # a bfloat16 gradient is rounded once, at the leaf
    for result in (logits.gather(1, ids), gathered):
        (gradient,) = torch.autograd.grad(result, hidden, seeds)
        limits = tolerance if dtype == torch.float32 else half
        torch.testing.assert_close(gradient.double(), wanted, **limits)


def test_gradients_pass_gradcheck() -> None:
    hidden, weight = normal(3, 4).double().requires_grad_(), normal(6, 4, seed=1)
    ids = torch.tensor([[0, 5], [3, 3], [2, 1]])
    assert torch.autograd.gradcheck(lambda h: gathered_logits(h, weight, ids, softcap=2.0), hidden)
    assert torch.autograd.gradcheck(lambda h: head_logits(h, weight, CASES[1]), hidden)


def test_a_trainable_half_precision_head_gets_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_UPCAST_ROWS", 4)
    hidden, weight = normal(3, 5), normal(11, 5, seed=1).bfloat16().requires_grad_()
    seeds = normal(3, 11, seed=2)
    (gradient,) = torch.autograd.grad(head_logits(hidden, weight), weight, seeds)
    torch.testing.assert_close(gradient, (seeds.T @ hidden).bfloat16())


def test_the_gathered_head_is_frozen() -> None:
    hidden, weight = normal(2, 4).requires_grad_(), normal(6, 4, seed=1).requires_grad_()
    gathered_logits(hidden, weight, torch.tensor([[0], [1]])).sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(hidden.grad, weight.detach()[:2])


def test_there_may_be_more_slots_than_tokens() -> None:
    # The slots of a top-k of the whole vocabulary: both models' and the label.
    torch.manual_seed(0)
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(6, 8)
    ids = torch.randint(0, 6, (4, 13))
    found = gathered_logits(hidden, weight, ids)
    torch.testing.assert_close(found, (hidden @ weight.T).gather(1, ids))
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    torch.testing.assert_close(gradient, weight[ids].sum(1))


def test_no_positions_and_no_tokens() -> None:
    weight = normal(6, 4)
    assert gathered_logits(torch.ones(0, 4), weight, torch.ones(0, 3, dtype=torch.long)).shape == (0, 3)
    assert gathered_logits(torch.ones(2, 4), weight, torch.ones(2, 0, dtype=torch.long)).shape == (2, 0)


def test_mistakes_are_refused() -> None:
    weight = normal(6, 4)
    with pytest.raises(ModelError, match=r"0\.\.5, got 0\.\.6"):
        gathered_logits(torch.ones(1, 4), weight, torch.tensor([[0, 6]]))
    with pytest.raises(ModelError, match="must have 5 columns"):
        head_logits(torch.ones(1, 5), weight)
    with pytest.raises(ModelError, match="2 and 1"):
        gathered_logits(torch.ones(2, 4), weight, torch.tensor([[0, 1]]))
    with pytest.raises(ModelError, match="positive"):
        HeadOptions(softcap=0.0)
