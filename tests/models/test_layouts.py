"""What is written down of every architecture, against the modules of a model of it; and what is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import ARCHITECTURES, tiny_model
from transformers import AutoConfig, PreTrainedModel, T5Config

from semalign.config import ModelConfig
from semalign.data import Sample
from semalign.data.batches import batch_inputs
from semalign.errors import ConfigError, DataError, ModelError
from semalign.models import finding
from semalign.models import layouts as module
from semalign.models.decoder import Decoder, linear_names, lora_modules
from semalign.models.layouts import (
    LAYOUTS,
    PROJECTIONS,
    Layout,
    config_of_span,
    layout_of,
    layouts,
    shape_of,
)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Four layers of an architecture, with fewer key heads than heads where it allows that."""
    return tiny_model(request.param, layers=4, wide=True)


FUSED = {kind for kind in ARCHITECTURES if "moe" in kind or "qwen3_5" in kind} | {
    *("phi3", "gpt2", "glm", "glm4", "starcoder2", "lfm2"),
    *("mixtral", "qwen3_next", "gpt_oss", "deepseek_v3", "minimax_m2"),
}
"""Not all seven linear maps of a layer are modules of their own, or some layers have others."""


def parts(model: Any) -> tuple[Layout, Any, list[Any]]:
    """The layout of a model, its body and its layers."""
    layout = layout_of(model.config, "x")
    return layout, model.base_model, list(getattr(model.base_model, layout.layers))


def sizes(linear: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear map, GPT-2's included, which stores its weight the other way round."""
    outputs, inputs = (
        linear.weight.shape if isinstance(linear, torch.nn.Linear) else linear.weight.shape[::-1]
    )
    return inputs, outputs


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("t5", "an encoder-decoder"), ("olmoe", "a mixture of experts"), ("bert", "has not been tested")],
)
def test_other_architectures_are_refused_before_any_weight(tmp_path: Path, kind: str, reason: str) -> None:
    config = T5Config() if kind == "t5" else AutoConfig.for_model(kind)
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=reason):
        finding.load_shape(ModelConfig(str(tmp_path)))


def test_the_tiny_models_are_of_all_architectures() -> None:
    assert set(ARCHITECTURES) == set(LAYOUTS), "what is not tested is not supported"


def test_every_named_part_is_in_every_layer(model: PreTrainedModel) -> None:
    layout, body, layers = parts(model)
    assert len(layers) == 4 and isinstance(getattr(body, layout.norm), torch.nn.Module)
    for layer in layers:
        for names in (layout.attn, layout.mlp):
            assert not names or [n for n in names if hasattr(layer, n)], names
    # The last layer of a tiny hybrid has attention.
    assert not layout.out or isinstance(layers[-1].get_submodule(layout.out), torch.nn.Module)


def test_the_shape_is_that_of_the_model_s_weights(model: PreTrainedModel) -> None:
    layout, _, layers = parts(model)
    shape = shape_of(model.config)
    assert shape.layers == len(layers)
    head: Any = model.get_output_embeddings()
    assert tuple(head.weight.shape) == (shape.vocabulary, shape.width)
    assert shape.heads % shape.key_heads == 0 and shape.positions == 128
    assert bool(shape.experts) == any(n.endswith("experts") for n, _ in layers[1].named_modules())
    # In a hybrid, every second layer has attention.
    modules = dict(layers[1].named_modules())
    queries, keys = shape.heads * shape.head_dim, shape.key_heads * shape.head_dim
    if layout.out:
        # The values of all heads, side by side, enter the output projection.
        assert sizes(modules[layout.out]) == (queries, shape.width)
    if "self_attn.k_proj" in modules:
        gates = queries if layout.attn == ("self_attn", "linear_attn") else 0
        found = tuple(sizes(modules[f"self_attn.{name}_proj"])[1] for name in ("k", "q"))
        assert found == (keys, queries + gates) or not layout.out
    elif "self_attn.kv_b_proj" not in modules:
        fused = next(m for n, m in modules.items() if n.endswith(("qkv_proj", "c_attn")))
        assert sizes(fused)[1] == queries + 2 * keys


def test_the_projections_of_a_layer_are_its_separate_linear_maps(model: PreTrainedModel) -> None:
    _, _, layers = parts(model)
    found = [{n for n, m in layer.named_modules() if isinstance(m, torch.nn.Linear)} for layer in layers]
    if model.config.model_type in FUSED:
        assert not all(set(PROJECTIONS.values()) <= linear for linear in found)
    else:
        assert all(set(PROJECTIONS.values()) == linear for linear in found)
        assert all(path.endswith(f".{name}") for name, path in PROJECTIONS.items())


@torch.no_grad()
def test_a_norm_multiplies_by_its_weight_and_the_offset(model: PreTrainedModel) -> None:
    layout, body, _ = parts(model)
    norm = getattr(body, layout.norm)
    one, zero = (
        torch.full_like(norm.weight, value) for value in (1.0 - layout.norm_offset, -layout.norm_offset)
    )
    hidden = torch.randn(3, len(one), generator=torch.Generator().manual_seed(0))
    kept = norm.weight.clone()
    try:
        norm.weight.copy_(one)
        plain = norm(hidden)
        norm.weight.copy_(zero)
        nothing = norm(hidden)
    finally:
        norm.weight.copy_(kept)
    torch.testing.assert_close(
        nothing, nothing[:1].expand_as(nothing), msg="multiplied by 0 it has no input left"
    )
    spread = (plain - nothing).pow(2).mean(1)
    torch.testing.assert_close(spread, torch.ones(3), rtol=1e-3, atol=1e-3)


def test_a_shape_takes_what_a_configuration_leaves_out_from_the_rest() -> None:
    least = SimpleNamespace(num_hidden_layers=2, hidden_size=48, num_attention_heads=4, vocab_size=99)
    shape = shape_of(least)
    assert (shape.key_heads, shape.head_dim, shape.positions) == (4, 12, None)
    assert (shape.logit_scale, shape.logit_softcap) == (1.0, None)
    own = SimpleNamespace(**vars(least), num_key_value_heads=2, head_dim=16, max_position_embeddings=7)
    assert (shape_of(own).key_heads, shape_of(own).head_dim, shape_of(own).positions) == (2, 16, 7)
    none = SimpleNamespace(**vars(least), num_key_value_heads=None, head_dim=None)
    assert (shape_of(none).key_heads, shape_of(none).head_dim) == (4, 12)


def test_logits_are_scaled_by_a_factor_or_a_divisor_and_capped() -> None:
    def shape(**own: float) -> Any:
        return shape_of(
            SimpleNamespace(num_hidden_layers=1, hidden_size=4, num_attention_heads=2, vocab_size=9, **own)
        )

    assert shape(logit_scale=0.25).logit_scale == 0.25
    assert shape(logits_scaling=8.0).logit_scale == 1 / 8
    assert shape(logit_scale=0.5, logits_scaling=2.0).logit_scale == 0.25
    assert shape(final_logit_softcapping=30.0).logit_softcap == 30.0
    assert shape_of(tiny_model("gemma2", layers=1, wide=False).config).logit_softcap == 5.0


def test_spans_of_a_configuration_are_its_layers_parted(model: PreTrainedModel) -> None:
    config = model.config
    before = copy.deepcopy(config.to_dict())
    spans = [config_of_span(config, *span) for span in ((0, 1), (1, 3), (3, 4))]
    assert [s.num_hidden_layers for s in spans] == [1, 2, 1]
    assert config.to_dict() == before, "the given configuration stays as it is"
    if getattr(config, "layer_types", None) is not None:
        assert [t for s in spans for t in s.layer_types] == config.layer_types
    assert all(s.hidden_size == config.hidden_size for s in spans)


def test_of_two_attention_types_each_span_keeps_its_own() -> None:
    config = tiny_model("gemma3_text", layers=4, wide=False).config
    assert len(set(config.layer_types)) == 2, "the test needs layers that differ"
    assert config_of_span(config, 1, 2).layer_types == config.layer_types[1:2]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "model type 't5' is an encoder-decoder;"),
        ({"model_type": "llava", "vision_config": {}}, "model type 'llava' is a vision-language model;"),
        (
            {"model_type": "m", "num_experts": 8},
            "model type 'm' is a mixture of experts, which has not been tested;",
        ),
        ({"model_type": "m", "num_local_experts": 8}, "is a mixture of experts,"),
        ({"model_type": "m", "n_routed_experts": 8}, "is a mixture of experts,"),
        (
            {"model_type": "m", "num_experts": None},
            "model type 'm' is an architecture that has not been tested;",
        ),
        ({}, "model type 'unknown' is an architecture that has not been tested;"),
    ],
)
def test_an_architecture_that_is_not_supported_is_refused_with_the_reason(
    config: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError) as caught:
        layout_of(SimpleNamespace(**config), "org/model")
    assert str(caught.value).startswith("org/model: ") and said in str(caught.value)
    assert "the nearest type that SemAlign knows is" in str(caught.value)
    assert "docs/howto/architecture.md" in str(caught.value)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Iterator[Layout]:
    """A layout that a file outside the package adds."""
    own = Layout(attn=("attention",))
    monkeypatch.setattr(module, "gathered", lambda table: {"own_kind": own} if table == "LAYOUTS" else {})
    layouts.cache_clear()
    yield own
    layouts.cache_clear()


def test_a_layout_from_outside_is_one_of_them(added: Layout) -> None:
    assert layout_of(SimpleNamespace(model_type="own_kind"), "x") is added
    assert (
        layout_of(SimpleNamespace(model_type="llama"), "x") == LAYOUTS["llama"] and "own_kind" not in LAYOUTS
    )
    with pytest.raises(ModelError, match="knows is own_kind,"):
        layout_of(SimpleNamespace(model_type="own_kinds"), "x")


LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [8.0] * 4,
    "original_max_position_embeddings": 48,
}


@pytest.mark.parametrize(
    ("kind", "rope", "positions"),
    [
        ("phi3", LONG, 48),
        ("llama", LONG | {"rope_theta": 1e4}, 48),
        ("llama", {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, 128),
        ("llama", {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, 128),
        ("gemma3_text", {"full_attention": LONG, "sliding_attention": {"rope_type": "default"}}, 48),
        ("gpt2", None, 1024),
    ],
)
def test_positions_end_where_the_frequencies_of_a_batch_change(
    kind: str, rope: dict[str, Any] | None, positions: int
) -> None:
    # transformers writes into what it is given.
    sizes = {"max_position_embeddings": 128, "rope_parameters": copy.deepcopy(rope)} if rope else {}
    if kind == "phi3":
        sizes |= {"hidden_size": 32, "num_attention_heads": 4, "original_max_position_embeddings": 48}
    assert shape_of(AutoConfig.for_model(kind, **sizes)).positions == positions


def test_within_its_positions_a_row_of_a_longrope_model_does_not_depend_on_its_neighbours() -> None:
    rope = copy.deepcopy(LONG) | {"rope_theta": 1e4}
    decoder = Decoder(tiny_model("llama", layers=2, wide=False, rope_parameters=rope), None)
    assert decoder.shape.positions == 48
    samples = [
        Sample([9 + n % 50 for n in range(length)], [n > 3 for n in range(length)], "x")
        for length in (20, 48, 49)
    ]
    outputs = []
    for batch in (samples[:1], samples[:2]):
        ids, _ = batch_inputs(decoder, batch)
        with torch.no_grad():
            outputs.append(decoder.forward(ids)[0, :20])
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5)
    with pytest.raises(
        DataError, match=r"expected rows of at most 48 tokens, got 49; lower data\.max_length"
    ):
        batch_inputs(decoder, samples)
    with torch.no_grad():
        beside = decoder.model(torch.tensor([samples[0].input_ids + [0] * 29]), output_hidden_states=True)
        alone = decoder.model(torch.tensor([samples[0].input_ids]), output_hidden_states=True)
    assert not torch.allclose(beside.hidden_states[1][0, :20], alone.hidden_states[1][0], atol=1e-2), (
        "or this tests nothing"
    )


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("hidden_size_per_layer_input", "an embedding of the token"),
        ("num_kv_shared_layers", "keys and values of earlier layers"),
    ],
)
def test_layers_that_read_more_than_the_stream_are_refused(field: str, said: str) -> None:
    config = tiny_model("gemma4_text", layers=2, wide=False).config
    layout_of(config, "x")
    setattr(config, field, 2)
    with pytest.raises(ModelError, match=rf"its layers read {said}.*\({field}\).*from the stream alone"):
        layout_of(config, "x")


def test_heads_of_several_widths_are_not_captured() -> None:
    decoder = Decoder(tiny_model("gemma4_text", layers=2, wide=False), None)
    assert not decoder.has_heads(1) and decoder.shape.head_dim == 8
    with pytest.raises(ConfigError, match="no attention heads of one width"):
        decoder.out_projection(1)


def test_a_layer_without_attention_has_no_heads() -> None:
    decoder = Decoder(tiny_model("lfm2", layers=4, wide=False), None)
    assert [decoder.has_heads(n) for n in (1, 2, 3, 4)] == [False, True, False, True]


def test_lora_leaves_experts_and_what_stands_beside_them_alone() -> None:
    decoder = Decoder(tiny_model("glm4_moe", layers=3, wide=False), None)
    assert linear_names(decoder) == ["k_proj", "o_proj", "q_proj", "v_proj"]
    with pytest.raises(
        ModelError, match="up_proj match no linear map of the trained layers; available: k_proj"
    ):
        lora_modules(decoder, [1, 2], ["up_proj"])
