"""The projected hidden-state loss: its value by hand, and the same at the start whatever the size of the student's stream."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from semalign.methods.hidden_mse import Projectors

E, D, N = 6, 9, 40


def made(seed: int) -> Projectors:
    torch.manual_seed(seed)
    head = SimpleNamespace(weight_VD=torch.zeros(1, D))
    setting = SimpleNamespace(teacher_head=head, decoder=SimpleNamespace(width=E), places=["2", "3"])
    return Projectors(setting)  # type: ignore[arg-type]


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    hidden, target = torch.randn(N, E, generator=draw), torch.randn(N, D, generator=draw)
    target = target - target.mean(0)
    return hidden, target / target.square().sum(1).mean().sqrt()


def test_value_by_hand() -> None:
    projectors, (hidden, target) = made(0), rows()
    found = projectors("3", hidden, target, [N], {})
    weight, bias = (p.detach().double() for p in (projectors["3"].weight, projectors["3"].bias))
    total = 0.0
    for h, t in zip(hidden.double(), target.double(), strict=True):
        unit = h / h.square().mean().sqrt()
        said = weight @ unit + bias
        total += float((said / D**0.5 - t).square().sum())
    assert abs(float(found.detach()) - total / N) < 1e-5


def test_a_large_stream_is_not_dragged_to_an_untrained_projector() -> None:
    projectors, (hidden, target) = made(1), rows()
    losses = [float(projectors("2", size * hidden, target, [N], {}).detach()) for size in (0.02, 1.0, 50.0)]
    # A constant guess at the mean has 1.
    assert max(losses) < 2.0 and max(losses) - min(losses) < 1e-2
