import pytest
import torch
from torch import nn

from semalign.errors import ModelError
from semalign.maths.attribution import layer_scores

captum_attr = pytest.importorskip("captum.attr")


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Residual(nn.Module):
    """Three residual layers over tokens; returns one loss per sample."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return -self.head(x).log_softmax(-1)[..., 1].mean(-1)


def recorded(model: Residual, inputs: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs of every block and the loss's gradient with respect to them, from one backward pass."""
    outputs: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda *call: outputs.append(call[2])) for block in model.blocks]
    loss = model(inputs).sum()
    for hook in hooks:
        hook.remove()
    return outputs, list(torch.autograd.grad(loss, outputs))


def test_scores_agree_with_captum() -> None:
    torch.manual_seed(0)
    model, inputs = Residual(), torch.randn(2, 5, 6)
    mask = torch.tensor([[True, True, False, True, False], [False, True, True, True, True]])
    outputs, gradients = recorded(model, inputs)
    for block, output, gradient in zip(model.blocks, outputs, gradients, strict=True):
        elementwise = captum_attr.LayerGradientXActivation(model, block).attribute(inputs)
        for aggregate, values in (("sum", elementwise), ("abs", elementwise.abs())):
            expected = torch.stack([values[b][mask[b]].sum() for b in range(2)]).detach()
            scores = layer_scores(output, gradient, mask, aggregate=aggregate)
            torch.testing.assert_close(scores, expected)
            torch.testing.assert_close(
                layer_scores(output, gradient, None, aggregate=aggregate), values.sum((1, 2)).detach()
            )


def test_abs_is_the_default_and_never_below_the_signed_score() -> None:
    activation, gradient = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    assert torch.equal(
        layer_scores(activation, gradient, None), layer_scores(activation, gradient, None, aggregate="abs")
    )
    signed = layer_scores(activation, gradient, None, aggregate="sum")
    assert (layer_scores(activation, gradient, None) >= signed.abs()).all()


def test_a_linear_loss_is_attributed_completely() -> None:
    activation, weight = torch.randn(2, 3, 4), torch.randn(4)
    scores = layer_scores(activation, weight.expand(2, 3, 4), None, aggregate="sum")
    torch.testing.assert_close(scores, (activation @ weight).sum(1))


def test_padding_may_hold_nan() -> None:
    activation, gradient = torch.ones(1, 3, 2), torch.ones(1, 3, 2)
    activation[0, 2] = float("nan")
    scores = layer_scores(activation, gradient, torch.tensor([[True, True, False]]))
    assert scores.tolist() == [4.0]


def test_half_precision_gradients_do_not_underflow() -> None:
    activation = torch.full((1, 300, 8), 2.0**-14, dtype=torch.float16)
    gradient = torch.full((1, 300, 8), 2.0**-14, dtype=torch.float16)
    assert layer_scores(activation, gradient, None).tolist() == [2400 * 2.0**-28]


def test_mistakes_are_refused() -> None:
    activation = torch.ones(2, 3, 4)
    with pytest.raises(ModelError, match="same shape"):
        layer_scores(activation, torch.ones(2, 3, 5), None)
    with pytest.raises(ModelError, match="bool"):
        layer_scores(activation, activation, torch.ones(2, 3))
    with pytest.raises(ModelError, match="aggregate"):
        layer_scores(activation, activation, None, aggregate="mean")  # type: ignore[arg-type]
