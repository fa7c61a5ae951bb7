"""Tiny models and a tiny tokenizer."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from semalign.config import CacheConfig, DataConfig, ModelConfig, PairingConfig, TrainConfig, TransferConfig
from semalign.run.files import Record
from semalign.run.folder import RunFolder
from semalign.signals.remote import Remote
from semalign.signals.shards import ShardStore
from semalign.training.callbacks import LineLog

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXT = [
    "add two and three",
    "what is the colour of the sky",
    "the answer is five",
    "blue and green",
    "0 1 2 3 4 5 6 7 8 9",
]
COMMON: dict[str, Any] = {
    "vocab_size": 320,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WIDE = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
}
NARROW = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
PLAIN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
LINEAR_ATTENTION = {
    "full_attention_interval": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
# What a tiny model of an architecture needs beside its sizes.
EXTRA: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 8},
    "ministral": {"sliding_window": 8},
    "ministral3": {
        "rope_parameters": PLAIN_ROPE["rope_parameters"]
        | {"llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 8}
    },
    "qwen2": {},
    "qwen3": {},
    "qwen3_5_text": LINEAR_ATTENTION,
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 12, "sliding_window": 8, "final_logit_softcapping": 5.0},
    "gemma3_text": {"query_pre_attn_scalar": 12, "sliding_window": 8, "sliding_window_pattern": 2},
    "gemma4_text": {"hidden_size_per_layer_input": 0, "sliding_window": 8, "global_head_dim": 16},
    "phi3": {"original_max_position_embeddings": 128},
    "smollm3": {"no_rope_layer_interval": 2},
    "olmo2": {},
    "olmo3": {"sliding_window": 8},
    "granite": {"residual_multiplier": 0.22, "embedding_multiplier": 12.0, "logits_scaling": 8.0},
    "glm": {},
    "glm4": {},
    "seed_oss": {},
    "cohere2": {"sliding_window": 8},
    "exaone4": {"sliding_window": 8},
    "ernie4_5": {},
    "hunyuan_v1_dense": {},
    "starcoder2": {},
    "lfm2": {"full_attn_idxs": [1, 3], "block_auto_adjust_ff_dim": False},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3_moe": EXPERTS,
    "qwen3_next": EXPERTS | LINEAR_ATTENTION | {"shared_expert_intermediate_size": 32},
    "qwen3_5_moe_text": EXPERTS | LINEAR_ATTENTION | {"shared_expert_intermediate_size": 32},
    "gpt_oss": PLAIN_ROPE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "glm4_moe": ROUTED,
    "deepseek_v3": ROUTED
    | {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "head_dim": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
    },
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 8},
    "gpt2": {},
}
ARCHITECTURES = tuple(EXTRA)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a chat template and 320 ids."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXT * 20, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    )
    filler = [f"<unused{i}>" for i in range(320 - bpe.get_vocab_size())]
    bpe.add_special_tokens(filler)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="<|end|>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_model(kind: str, *, layers: int, wide: bool, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of an architecture, with weights large enough that layers matter; changes are of its sizes."""
    sizes = (WIDE if wide else NARROW) | changes
    if kind == "gpt2":
        config = AutoConfig.for_model(
            kind,
            n_embd=sizes["hidden_size"],
            n_layer=layers,
            n_head=4,
            n_positions=128,
            **{k: v for k, v in COMMON.items() if k != "max_position_embeddings"},
        )
    else:
        config = AutoConfig.for_model(
            kind, num_hidden_layers=layers, **COMMON | sizes | copy.deepcopy(EXTRA[kind])
        )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
            elif "norm" in name or "ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def save_model(model: PreTrainedModel, folder: Path) -> Path:
    """A folder that from_pretrained reads, tokenizer included."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def save_with_own_code(folder: Path, *, layers: int = 2) -> Path:
    """A folder with a Llama under a type that only the code in the folder knows."""
    save_model(tiny_model("llama", layers=layers, wide=False), folder)
    (folder / "modeling_own.py").write_text(OWN_CODE)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "OwnConfig", "AutoModelForCausalLM": "OwnForCausalLM"}
    config |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {auto: f"modeling_own.{own}" for auto, own in classes.items()}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


STEPS = ("attribute", "pair", "cache", "train")


def full_weights(**fields: Any) -> TrainConfig:
    """Full weights at a rate that moves a tiny random model within a few steps; fields replace what this says."""
    return TrainConfig(**{"lora_r": 0, "learning_rate": 1e-3} | fields)


def tiny_config(
    pair: tuple[Path, Path], rows: Path, out: Path, *, heldout_rows: int = 4, **changes: Any
) -> TransferConfig:
    """A run between two folders on a file of rows, exact in what it stores; changes are whole fields of the config."""
    config = TransferConfig(
        teacher=ModelConfig(str(pair[0])),
        student=ModelConfig(str(pair[1])),
        data=DataConfig(str(rows), max_length=128, heldout_rows=heldout_rows),
        output_dir=str(out),
        train=full_weights(),
        cache=CacheConfig(shard_rows=8, dtype="float32", top_k=8),
    )
    return replace(config, **changes)


TRAIN = full_weights(num_train_epochs=2, per_device_train_batch_size=4)
config_of = partial(
    tiny_config,
    pairing=PairingConfig(num_layers=2, interpolate=True),
    cache=CacheConfig(shard_rows=6, dtype="float32", top_k=8),
    train=TRAIN,
)
"""A run that pairs two layers and trains them for two epochs."""


def losses(run: RunFolder) -> list[float]:
    """The loss of every logged step."""
    return [json.loads(line)["loss"] for line in (run.root / "train.jsonl").read_text().splitlines()]


# A store of five samples in two shards.
PLAN = [[3, 1], [0, 2, 4]]


def record(sample: int) -> Record:
    generator = torch.Generator().manual_seed(sample)
    return {
        "tokens.prefix": torch.randn(5 + sample, 8, generator=generator).bfloat16(),
        "positions.ids": torch.randint(0, 99, (1 + sample, 4), generator=generator, dtype=torch.int32),
    }


def filled(folder: Path, fingerprint: dict | None = None, remote: Remote | None = None) -> ShardStore:
    store = ShardStore(folder, fingerprint or {"a": 1}, PLAN, remote)
    for number in store.missing():
        store.write(number, [record(s) for s in PLAN[number]])
    return store


class CutError(Exception):
    """A training was cut off by its test."""


@contextmanager
def cut_at(monkeypatch: pytest.MonkeyPatch, last: int) -> Iterator[None]:
    """Inside, a training stops with CutError once this step is logged."""
    logged = LineLog.on_log

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logged(self, args, state, control, **kwargs)
        if state.global_step == last:
            raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(LineLog, "on_log", stop)
        yield
