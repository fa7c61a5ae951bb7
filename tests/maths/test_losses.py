import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from semalign.errors import ModelError
from semalign.maths.bases import gram
from semalign.maths.losses import cosine_loss, geometry_loss, output_cosine_loss, squared_distance_loss
from semalign.maths.regression import Spread

from . import reference

sizes = st.tuples(st.integers(1, 5), st.integers(2, 6), st.integers(6, 14), st.integers(0, 1000))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same_value_and_gradient(loss: torch.Tensor, expected: torch.Tensor, *leaves: torch.Tensor) -> None:
    """Compare a float32 loss and the gradients of its leaf with a float64 reference on a copy of the leaf."""
    leaf, copy = leaves
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=2e-6)
    (gradient,) = torch.autograd.grad(loss, leaf)
    (wanted,) = torch.autograd.grad(expected, copy)
    assert gradient.dtype == leaf.dtype
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-5)


@settings(max_examples=25)
@given(sizes)
def test_cosine_loss(size: tuple[int, int, int, int]) -> None:
    positions, width, _, seed = size
    hidden, target = (
        normal(positions, width, seed=seed).requires_grad_(),
        normal(positions, width, seed=seed + 1),
    )
    copy, wanted = reference.double(hidden, target)
    same_value_and_gradient(cosine_loss(hidden, target), reference.cosine_loss(copy, wanted), hidden, copy)


def test_cosine_loss_at_its_ends_and_with_zero_rows() -> None:
    hidden = normal(4, 6)
    assert float(cosine_loss(hidden, 3 * hidden)) == pytest.approx(0.0, abs=1e-6)
    assert float(cosine_loss(hidden, -hidden)) == pytest.approx(2.0, abs=1e-6)
    zero = torch.zeros(2, 6, requires_grad=True)
    for target in (normal(2, 6), torch.zeros(2, 6)):
        loss = cosine_loss(zero, target)
        assert loss.item() == 1.0
        assert torch.autograd.grad(loss, zero)[0].isfinite().all()


def test_the_target_of_the_cosine_loss_is_constant() -> None:
    hidden, target = normal(3, 4).requires_grad_(), normal(3, 4, seed=1).requires_grad_()
    cosine_loss(hidden, target).backward()
    assert target.grad is None
    assert hidden.grad is not None


@settings(max_examples=25)
@given(sizes, st.sampled_from([0.0, 0.1, 0.9]))
def test_output_cosine_loss(size: tuple[int, int, int, int], smoothing: float) -> None:
    positions, width, vocabulary, seed = size
    hidden, weight = (
        normal(positions, width, seed=seed).requires_grad_(),
        normal(vocabulary, width, seed=seed + 1),
    )
    labels = torch.randint(vocabulary, (positions,), generator=torch.Generator().manual_seed(seed))
    copy, weight_copy = reference.double(hidden, weight)
    assume(torch.linalg.cond(weight_copy) < 1e3)
    expected = reference.output_cosine_loss(copy, weight_copy, labels, smoothing)
    loss = output_cosine_loss(hidden, weight, gram(weight), labels, label_smoothing=smoothing)
    total = weight.double().sum(0)
    given_sum = output_cosine_loss(
        hidden, weight, gram(weight), labels, label_smoothing=smoothing, weight_sum_E=total
    )
    torch.testing.assert_close(given_sum, loss)
    same_value_and_gradient(loss, expected, hidden, copy)


def test_output_cosine_loss_stays_accurate_at_a_high_condition_number() -> None:
    """A state along the weakest direction of a head of condition 1e4, where float32 would lose the norm."""
    rotation = torch.linalg.qr(normal(8, 8).double())[0]
    weight = normal(200, 8, seed=1).double() * torch.logspace(0, -4, 8).double() @ rotation
    hidden = rotation[-1:].clone()
    labels = torch.tensor([5])
    expected = reference.output_cosine_loss(hidden, weight, labels, 0.0)
    loss = output_cosine_loss(hidden, weight, gram(weight), labels)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_output_cosine_loss_of_bfloat16_and_of_a_zero_state() -> None:
    hidden, weight = normal(3, 4).bfloat16().requires_grad_(), normal(9, 4, seed=1).bfloat16()
    labels = torch.tensor([0, 8, 3])
    copy, weight_copy = reference.double(hidden, weight)
    loss = output_cosine_loss(hidden, weight, gram(weight), labels)
    expected = reference.output_cosine_loss(copy, weight_copy, labels, 0.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(loss, hidden)[0].dtype == torch.bfloat16
    zero = torch.zeros(1, 4, requires_grad=True)
    loss = output_cosine_loss(zero, weight, gram(weight), labels[:1])
    assert loss.item() == 1.0
    assert torch.autograd.grad(loss, zero)[0].isfinite().all()


def test_a_head_bias_is_one_more_column() -> None:
    hidden, weight, bias = normal(3, 4).double(), normal(9, 4, seed=1).double(), normal(9, seed=2).double()
    labels = torch.tensor([0, 8, 3])
    wide = torch.cat([weight, bias[:, None]], dim=1)
    states = torch.cat([hidden, torch.ones(3, 1).double()], dim=1)
    logits = reference.logits(hidden, weight, bias)
    expected = 1 - torch.stack([logits[n, labels[n]] / logits[n].norm() for n in range(3)]).mean()
    torch.testing.assert_close(output_cosine_loss(states, wide, gram(wide), labels), expected)


@settings(max_examples=25)
@given(st.integers(2, 9), st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_geometry_loss(tokens: int, width: int, other: int, seed: int) -> None:
    student, target = normal(tokens, width, seed=seed).requires_grad_(), normal(tokens, other, seed=seed + 1)
    copy, wanted = reference.double(student, target)
    expected = reference.geometry_loss(copy, wanted)
    loss = geometry_loss(student, target)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=5e-6)
    (gradient,), (correct,) = torch.autograd.grad(loss, student), torch.autograd.grad(expected, copy)
    # The gradient grows as the states shrink (the loss ignores scale): compare relative to their spread.
    torch.testing.assert_close(
        gradient.double(), correct, rtol=1e-3, atol=1e-4 / float(copy.detach().std(0).max())
    )


@pytest.mark.parametrize("tokens", [6, 40])
def test_geometry_ignores_rotation_shift_and_scale(tokens: int) -> None:
    student, target = normal(tokens, 8), normal(tokens, 5, seed=1)
    rotation = torch.linalg.qr(normal(8, 8, seed=2))[0]
    changed = 3 * student @ rotation + 2
    torch.testing.assert_close(
        geometry_loss(changed, target), geometry_loss(student, target), rtol=1e-4, atol=1e-5
    )
    assert float(geometry_loss(changed, student)) == pytest.approx(0.0, abs=1e-5)


def test_geometry_without_relations() -> None:
    for student, expected in ((torch.ones(1, 3), 0.0), (torch.ones(4, 3), 1.0)):
        student = student.requires_grad_()
        loss = geometry_loss(student, normal(len(student), 3))
        assert loss.item() == expected
        assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_mistakes_are_refused() -> None:
    rows, weight = torch.ones(2, 3), torch.ones(5, 3)
    with pytest.raises(ModelError, match="2 and 4"):
        cosine_loss(rows, torch.ones(4, 3))
    with pytest.raises(ModelError, match="at least one supervised position"):
        cosine_loss(torch.ones(0, 3), torch.ones(0, 3))
    with pytest.raises(ModelError, match=r"0\.\.4, got -100"):
        output_cosine_loss(rows, weight, gram(weight), torch.tensor([0, -100]))
    with pytest.raises(ModelError, match="smoothing"):
        output_cosine_loss(rows, weight, gram(weight), torch.tensor([0, 1]), label_smoothing=1.0)
    with pytest.raises(ModelError, match="The Gram matrix"):
        output_cosine_loss(rows, weight, torch.eye(4), torch.tensor([0, 1]))
    with pytest.raises(ModelError, match="2 and 3"):
        geometry_loss(rows, torch.ones(3, 3))


def test_targets_of_spread_one_make_the_unexplained_share_of_their_variance() -> None:
    rows = 3 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) + torch.arange(6)
    spread = Spread(6)
    for part in rows.split((1, 150, 49)):
        spread.add(part)
    spread.reduce(lambda sums: sums)
    scale, shift = spread.solve()
    target = rows * scale + shift
    torch.testing.assert_close(target.mean(0), torch.zeros(6), rtol=0, atol=1e-5)
    assert float(target.square().sum(1).mean()) == pytest.approx(1.0, rel=1e-5)
    guess = rows[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    expected = (guess - rows).square().sum() / (rows - rows.mean(0)).square().sum()
    assert float(squared_distance_loss(guess * scale + shift, target)) == pytest.approx(
        float(expected), rel=1e-4
    )
    assert float(squared_distance_loss(torch.zeros(200, 6), target)) == pytest.approx(1.0, rel=1e-4)
    alike = Spread(2)
    alike.add(torch.ones(5, 2))
    assert alike.solve()[0].tolist() == [1.0]
