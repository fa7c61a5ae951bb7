import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from semalign.training import lora


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def adapted(**options: object) -> nn.Module:
    torch.manual_seed(0)
    model = get_peft_model(
        Two(),
        LoraConfig(r=3, target_modules=["first", "second"], init_lora_weights=False, **options),  # type: ignore[arg-type]
    )
    return model.eval()


def gradients(model: nn.Module, *, mixed: bool) -> list[torch.Tensor]:
    model.zero_grad()
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        model(x).float().square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("mixed", [False, True])
def test_the_fused_modules_have_peft_s_gradients_and_then_their_own_forward_again(mixed: bool) -> None:
    model = adapted()
    wanted = copy.deepcopy(gradients(model, mixed=mixed))

    with lora.fused(model) as count:
        got = copy.deepcopy(gradients(model, mixed=mixed))

    assert count == 2 and len(got) == len(wanted) == 4
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.dtype == theirs.dtype == torch.float32
        torch.testing.assert_close(
            mine,
            theirs,
            rtol=0.05 if mixed else 1e-5,
            atol=0.05 * float(theirs.abs().max()) if mixed else 1e-6,
        )
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_other_adapters_keep_peft_s_own_way(options: dict[str, bool]) -> None:
    model = adapted(**options)
    wanted = model(torch.ones(2, 8))

    with lora.fused(model) as count:
        assert count == 0
        torch.testing.assert_close(model(torch.ones(2, 8)), wanted)


def test_dropout_in_train_mode_keeps_peft_s_own_way() -> None:
    model = adapted(lora_dropout=0.5)
    with lora.fused(model) as off:
        pass
    with lora.fused(model.train()) as on:
        pass
    assert (off, on) == (2, 0)


def test_an_error_inside_restores_the_modules() -> None:
    model = adapted()
    with pytest.raises(KeyError), lora.fused(model):
        raise KeyError
    assert not any("forward" in vars(module) for module in model.modules())
