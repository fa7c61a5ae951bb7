import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from semalign.errors import ModelError
from semalign.maths.full_vocabulary import closeness, cross_entropy_loss, full_kl_loss
from semalign.maths.head import PLAIN_HEAD, HeadOptions

from . import reference


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def models(
    positions: int, vocabulary: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student states and head (width 4), teacher states and head (width 6)."""
    shapes = ((positions, 4), (vocabulary, 4), (positions, 6), (vocabulary, 6))
    return tuple(normal(*shape, seed=seed + n).to(dtype) for n, shape in enumerate(shapes))  # type: ignore[return-value]


def reference_logits(hidden: torch.Tensor, weight: torch.Tensor, options: HeadOptions) -> torch.Tensor:
    bias = None if options.bias_V is None else options.bias_V.double()
    return reference.logits(hidden, weight.double(), bias, options.scale, options.softcap)


OPTIONS = [
    (PLAIN_HEAD, PLAIN_HEAD),
    (HeadOptions(bias_V=normal(9, seed=50), softcap=2.0), HeadOptions(scale=0.5)),
]


@settings(max_examples=40)
@given(
    st.integers(1, 7),
    st.integers(1, 4),
    st.sampled_from(["forward", "reverse", "jsd"]),
    st.sampled_from([1.0, 2.0]),
    st.sampled_from(OPTIONS),
    st.integers(0, 1000),
)
def test_full_kl(
    positions: int,
    chunk: int,
    kind: str,
    temperature: float,
    options: tuple[HeadOptions, HeadOptions],
    seed: int,
) -> None:
    hidden, weight, teacher_hidden, teacher_weight = models(positions, 9, seed)
    hidden.requires_grad_(), weight.requires_grad_()
    copy, weight_copy = reference.double(hidden, weight)
    bias = None if options[0].bias_V is None else options[0].bias_V.double()
    student_logits = reference.logits(copy, weight_copy, bias, options[0].scale, options[0].softcap)
    teacher_logits = reference_logits(teacher_hidden.double(), teacher_weight, options[1])
    expected = reference.divergence(student_logits, teacher_logits, kind, temperature)
    loss = full_kl_loss(
        hidden,
        weight,
        teacher_hidden,
        teacher_weight,
        chunk=chunk,
        kind=kind,  # type: ignore[arg-type]
        temperature=temperature,
        student=options[0],
        teacher=options[1],
    )
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, (copy, weight_copy)), strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-6)


@settings(max_examples=20)
@given(st.integers(1, 7), st.integers(1, 4), st.sampled_from([0.0, 0.1]), st.integers(0, 1000))
def test_cross_entropy(positions: int, chunk: int, smoothing: float, seed: int) -> None:
    hidden, weight, _, _ = models(positions, 9, seed)
    hidden.requires_grad_()
    labels = torch.randint(9, (positions,), generator=torch.Generator().manual_seed(seed))
    (copy,) = reference.double(hidden)
    expected = reference.cross_entropy_loss(reference_logits(copy, weight, OPTIONS[1][0]), labels, smoothing)
    loss = cross_entropy_loss(
        hidden, weight, labels, chunk=chunk, label_smoothing=smoothing, options=OPTIONS[1][0]
    )
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    (gradient,), (wanted,) = torch.autograd.grad(loss, hidden), torch.autograd.grad(expected, copy)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_weighted_cross_entropy_is_the_sum_of_each_rows_own_mean(chunk: int) -> None:
    hidden, weight, *_ = models(6, 9)
    hidden.requires_grad_()
    labels, counts = torch.tensor([1, 0, 8, 3, 3, 2]), [1, 3, 2]
    weights = torch.cat([torch.full((n,), 1 / n) for n in counts])
    loss = 6 * cross_entropy_loss(hidden, weight, labels, chunk=chunk, weights_N=weights)
    own = zip(hidden.split(counts), labels.split(counts), strict=True)
    expected = sum(cross_entropy_loss(h, weight, y) for h, y in own)
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(value, hidden)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_a_student_equal_to_the_teacher_has_no_divergence(kind: str) -> None:
    hidden, weight, _, _ = models(5, 9)
    hidden.requires_grad_()
    loss = full_kl_loss(hidden, weight, hidden.detach(), weight, kind=kind)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.autograd.grad(loss, hidden)[0].abs().max() < 1e-6


def test_the_incoming_gradient_scales_the_stored_one_and_losses_add() -> None:
    hidden, weight, teacher_hidden, teacher_weight = models(5, 9)
    labels = torch.arange(5)
    hidden.requires_grad_()

    def parts() -> tuple[torch.Tensor, torch.Tensor]:
        kl = full_kl_loss(hidden * 2, weight, teacher_hidden, teacher_weight, chunk=2)
        return kl, cross_entropy_loss(hidden, weight, labels, chunk=2)

    (of_kl,) = torch.autograd.grad(parts()[0], hidden)
    (of_ce,) = torch.autograd.grad(parts()[1], hidden)
    kl, ce = parts()
    (of_sum,) = torch.autograd.grad(3 * kl - 0.5 * ce, hidden)
    torch.testing.assert_close(of_sum, 3 * of_kl - 0.5 * of_ce)


def test_without_gradient_the_value_is_the_same() -> None:
    arguments = models(5, 9)
    arguments[0].requires_grad_()
    loss = full_kl_loss(*arguments, chunk=2)
    with torch.no_grad():
        plain = full_kl_loss(*arguments, chunk=2)
    assert loss.requires_grad
    assert not plain.requires_grad
    torch.testing.assert_close(plain, loss.detach())


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any single result had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_tensor_is_larger_than_a_chunk_of_logits() -> None:
    vocabulary, chunk = 500, 4
    hidden, weight, teacher_hidden, teacher_weight = models(32, vocabulary)
    hidden.requires_grad_()
    labels = torch.zeros(32, dtype=torch.long)
    with LargestTensor() as largest:
        full_kl_loss(hidden, weight, teacher_hidden, teacher_weight, chunk=chunk).backward()
        cross_entropy_loss(hidden, weight, labels, chunk=chunk).backward()
        closeness(hidden, weight, teacher_hidden, teacher_weight, labels, chunk=chunk)
    # The heads themselves have vocabulary x 4 and vocabulary x 6 elements (seen as transposed views).
    assert largest.elements <= vocabulary * 6


@pytest.mark.parametrize("trainable_head", [False, True])
def test_bfloat16_inputs_are_upcast(trainable_head: bool) -> None:
    hidden, weight, teacher_hidden, teacher_weight = models(5, 9, dtype=torch.bfloat16)
    hidden.requires_grad_(), weight.requires_grad_(trainable_head)
    copy, weight_copy = reference.double(hidden, weight)
    expected = reference.divergence(
        copy @ weight_copy.T, teacher_hidden.double() @ teacher_weight.double().T, "forward"
    )
    loss = full_kl_loss(hidden, weight, teacher_hidden, teacher_weight, chunk=2)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    leaves, copies = ((hidden, weight), (copy, weight_copy)) if trainable_head else ((hidden,), (copy,))
    for gradient, wanted in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, copies), strict=True
    ):
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient.double(), wanted, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("options", OPTIONS)
def test_closeness(options: tuple[HeadOptions, HeadOptions]) -> None:
    hidden, weight, teacher_hidden, teacher_weight = models(20, 9)
    labels = torch.arange(20) % 9
    figures = closeness(
        hidden,
        weight,
        teacher_hidden,
        teacher_weight,
        labels,
        chunk=3,
        student=options[0],
        teacher=options[1],
    )
    student = reference_logits(hidden.double(), weight, options[0])
    teacher = reference_logits(teacher_hidden.double(), teacher_weight, options[1])
    assert list(figures) == ["kl", "top1", "nll_student", "nll_teacher"]
    assert all(figure.shape == (20,) and figure.dtype == torch.float32 for figure in figures.values())
    for n in range(20):
        row = {name: float(figure[n]) for name, figure in figures.items()}
        assert row["kl"] == pytest.approx(
            float(reference.kl(teacher[n].softmax(0), student[n].softmax(0))), abs=1e-5
        )
        assert row["top1"] == float(teacher[n].argmax() == student[n].argmax())
        assert row["nll_student"] == pytest.approx(-float(student[n].softmax(0)[labels[n]].log()), abs=1e-5)
        assert row["nll_teacher"] == pytest.approx(-float(teacher[n].softmax(0)[labels[n]].log()), abs=1e-5)
    assert 0 < float(figures["top1"].sum()) < 20


def test_mistakes_are_refused() -> None:
    hidden, weight, teacher_hidden, teacher_weight = models(3, 9)
    with pytest.raises(ModelError, match="9 and 8"):
        full_kl_loss(hidden, weight, teacher_hidden, teacher_weight[:8])
    with pytest.raises(ModelError, match="3 and 2"):
        full_kl_loss(hidden, weight, teacher_hidden[:2], teacher_weight)
    with pytest.raises(ModelError, match="'sideways'"):
        full_kl_loss(hidden, weight, teacher_hidden, teacher_weight, kind="sideways")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="-100"):
        cross_entropy_loss(hidden, weight, torch.tensor([1, 2, -100]))
    with pytest.raises(ModelError, match="at least one supervised position"):
        full_kl_loss(hidden[:0], weight, teacher_hidden[:0], teacher_weight)
    with pytest.raises(ModelError, match="at least 1, got 0"):
        full_kl_loss(hidden, weight, teacher_hidden, teacher_weight, chunk=0)


def test_under_autocast_logits_are_those_of_half_precision_products() -> None:
    hidden, weight, labels = (
        normal(5, 64).requires_grad_(),
        normal(30, 64, seed=1).bfloat16(),
        torch.arange(5),
    )
    exact = cross_entropy_loss(hidden, weight, labels)

    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy_loss(hidden, weight, labels, chunk=2)

    logits = (hidden.detach().bfloat16() @ weight.T).float()
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, labels))
    assert loss.dtype == torch.float32 and 0 < float((loss - exact).detach().abs()) < 0.1
    (gradient,), (wanted,) = torch.autograd.grad(loss, hidden), torch.autograd.grad(exact, hidden)
    torch.testing.assert_close(gradient, wanted, rtol=0.1, atol=0.02)
