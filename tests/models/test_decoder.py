"""Every supported architecture: parts, spans, self-test; and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ARCHITECTURES, save_model, tiny_model
from transformers import AutoModelForCausalLM

from semalign.config import ModelConfig
from semalign.errors import ConfigError, ModelError, SemAlignError
from semalign.models import decoder as models
from semalign.models import loading
from semalign.models.capture import Point, capture
from semalign.models.decoder import Decoder


@pytest.fixture(scope="module", params=ARCHITECTURES)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return Decoder(tiny_model(request.param, layers=4, wide=True), None, request.param)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 300, (2, 14), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    return ids, mask


def test_norm_and_head_on_the_last_capture_reproduce_the_logits(decoder: Decoder) -> None:
    assert decoder.self_test() < 1e-4


def test_the_self_test_notices_altered_logits() -> None:
    broken = Decoder(tiny_model("llama", layers=2, wide=False), None, "broken")
    broken.shape = replace(broken.shape, logit_scale=1.7)
    with pytest.raises(ModelError, match="miss the model's logits"):
        broken.self_test()


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_prefix_and_suffix_together_are_the_whole_model(decoder: Decoder, cut: int) -> None:
    ids, mask = batch()
    whole = decoder.model.base_model(ids, use_cache=False).last_hidden_state
    with decoder.span(0, cut, norm=False):
        stream = decoder.forward(ids)
    with decoder.span(cut, 4, norm=True):
        ours = decoder.forward(stream)
    assert torch.equal(ours, whole)
    again = decoder.model.base_model(ids, use_cache=False).last_hidden_state
    assert torch.equal(again, whole), "leaving a span must restore the model"
    masked = decoder.model.base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state
    is_real = mask.bool()
    torch.testing.assert_close(ours[is_real], masked[is_real], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_stream_is_the_sum_of_what_is_captured(decoder: Decoder) -> None:
    ids, _ = batch()
    # Of a hybrid, one layer has attention and the next one has what stands in its place.
    points = [Point(n, interface) for n in (1, 2, 3) for interface in ("block", "delta")]
    parts = [Point(n, interface) for n in (2, 3) for interface in ("attn", "mlp")]
    if not decoder.layout.attn:
        with pytest.raises(ConfigError, match="use block or delta"), capture(decoder, parts):
            pass
        parts = []
    with capture(decoder, points + parts) as found:
        decoder.forward(ids)
    for n in (2, 3):
        delta = found[Point(n, "delta")]
        torch.testing.assert_close(found[Point(n, "block")] - found[Point(n - 1, "block")], delta)
        if parts:
            total = found[Point(n, "attn")] + found[Point(n, "mlp")]
            torch.testing.assert_close(total, delta, rtol=1e-4, atol=1e-5)


def test_hooks_are_gone_after_the_block(decoder: Decoder) -> None:
    with capture(decoder, [Point(1, "block"), Point(4, "output")]):
        pass
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in decoder.model.modules())


def test_a_layer_out_of_range_is_named_with_the_range(decoder: Decoder) -> None:
    with pytest.raises(ConfigError, match="layers 1 to 4"), capture(decoder, [Point(5, "block")]):
        pass


@torch.no_grad()
def test_a_row_gives_the_same_states_alone_and_in_a_batch(decoder: Decoder) -> None:
    ids, _ = batch()
    together = decoder.forward(ids)[1, :9]
    alone = decoder.forward(ids[1:, :9])[0]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_lora_targets_are_resolved_to_full_names(decoder: Decoder) -> None:
    names = models.lora_modules(decoder, [2, 4], [])
    modules = dict(decoder.model.named_modules())
    inside = [name for name in names if name in modules]
    assert inside == names and len(names) >= 2 * len(models.linear_names(decoder, [2, 4]))
    assert all(any(modules[n] is m for k in (2, 4) for m in decoder.layers[k - 1].modules()) for n in names)


def test_a_lora_target_that_matches_nothing_is_an_error(decoder: Decoder) -> None:
    with pytest.raises(ModelError, match=r"o_prj match no linear map.*available"):
        models.lora_modules(decoder, [1], ["o_prj"])


def test_norm_weight_is_the_multiplier_the_norm_applies(decoder: Decoder) -> None:
    hidden = torch.randn(3, decoder.width) * 5
    with torch.no_grad():
        normed = decoder.final_norm(hidden)
    if "RMSNorm" not in type(decoder.final_norm).__name__:
        plain = torch.nn.functional.layer_norm(hidden, (decoder.width,))
        bias = getattr(decoder.final_norm, "bias", None)
        normed = normed if bias is None else normed - bias
    else:
        plain = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(normed, plain * decoder.norm_weight(), rtol=1e-3, atol=1e-3)


def test_loading_checks_for_nan_and_names_the_tensor(tmp_path: Path) -> None:
    folder = save_model(tiny_model("llama", layers=2, wide=False), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has 1 NaN"):
        loading.load(ModelConfig(str(folder)))


def test_a_quantised_load_without_the_extra_says_what_to_install(tiny_pair: tuple[Path, Path]) -> None:
    with pytest.raises(SemAlignError, match=r"pip install 'semalign\[bitsandbytes\]'"):
        loading.load(ModelConfig(str(tiny_pair[0]), load_in_4bit=True))


def write_gguf(path: Path, folder: Path) -> None:
    """A tiny Llama as a GGUF file, weights in float32."""
    import gguf

    model = AutoModelForCausalLM.from_pretrained(folder)
    from transformers import AutoTokenizer

    tokenizer, c = AutoTokenizer.from_pretrained(folder), model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([tokenizer.convert_ids_to_tokens(i) for i in range(c.vocab_size)])
    merges = tokenizer.backend_tokenizer.to_str()
    import json

    writer.add_token_merges(
        [" ".join(m) if isinstance(m, list) else m for m in json.loads(merges)["model"]["merges"]]
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    top = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    for name, tensor in model.state_dict().items():
        if name in top:
            writer.add_tensor(top[name], tensor.numpy())
            continue
        _, _, layer, rest = name.split(".", 3)
        module = rest.removesuffix(".weight")
        if module in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = c.num_attention_heads if "q_proj" in module else c.num_key_value_heads
            # GGUF interleaves the two halves of a rotary head.
            tensor = tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(f"blk.{layer}.{names[module]}.weight", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_model_loads_dequantised_and_can_be_saved(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "student.gguf"
    write_gguf(path, tiny_pair[1])
    loaded = loading.load(ModelConfig(str(path), dtype="float32", keep_dequantised=False))
    original = AutoModelForCausalLM.from_pretrained(tiny_pair[1])
    ids, _ = batch()
    with torch.no_grad():
        expected = original(ids).logits
        torch.testing.assert_close(loaded.model(ids).logits, expected, rtol=1e-4, atol=1e-4)
        loaded.model.save_pretrained(tmp_path / "saved")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        torch.testing.assert_close(again(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_recomputing_layers_turns_no_dropout_on(kind: str) -> None:
    """GPT-2 asks its own mode for the dropout of attention, whatever its dropout modules are set to."""
    model = tiny_model(kind, layers=3, wide=False)
    model.config.attention_dropout = 0.5
    ids, mask = batch()
    expected = model(ids, attention_mask=mask).logits
    model.activation_checkpointing_enable({"use_reentrant": False})
    models.let_checkpoint(model)
    assert any(module.training for module in model.modules())
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, expected)
