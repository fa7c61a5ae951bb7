"""The worked plan: the page says what the script computes, and the script counts what the code keeps."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def costs() -> ModuleType:
    return importlib.import_module("plan_costs")


def test_the_page_has_the_tables_of_the_script(costs: ModuleType) -> None:
    plan = importlib.import_module("plan")
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    made = plan.replaced(text, plan.page(costs.Work(), costs.Machine()))
    assert text == made, "run: python scripts/plan.py --write docs/scale.md"


def test_parameters_are_those_that_are_published(costs: ModuleType) -> None:
    counts = {
        name: costs.shape_of(name, sizes).parameters
        for p in (*costs.PAIRS, costs.SERVED)
        for name, sizes in (p.teacher, p.student)
    }
    assert list(counts.values()) == [
        *(68_976_648_192, 6_738_415_616, 405_853_388_800, 8_030_261_248),
        *(235_093_634_560, 8_190_735_360),
    ]
    # A22B.
    moe = costs.shape_of(*costs.SERVED.teacher)
    assert moe.layers * moe.active_parameters + moe.outer_parameters == pytest.approx(22e9, rel=0.02)


def test_a_layer_keeps_what_is_counted(costs: ModuleType) -> None:
    """Tensors that autograd saves in one layer's forward pass, weights apart, against the plan's formula."""
    fields = costs.sizes(256, 704, 1, 8, 8, 64)
    shape = costs.shape_of("small", fields)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), dtype=torch.float32)
    layer, tokens = model.model.layers[0], 32
    stream = torch.randn(1, tokens, 256, requires_grad=True)
    places = model.model.rotary_emb(stream, torch.arange(tokens)[None])
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        layer(stream, position_embeddings=places)
    assert sum(saved.values()) / tokens == pytest.approx(costs.layer_numbers(shape), rel=0.2)
