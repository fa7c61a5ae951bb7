"""Tokenizers that write the same texts in different tokens: byte-level ones of other merges, and one with a sign for a space."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

OTHER_TEXT = ["seven and eleven make eighteen", "the sky is bluest at noon", "what is two and three", "green"]
OTHER_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]\n{{ m.content }}{% if m.role == 'assistant' %}<eot>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


def byte_level(text: Sequence[str] = OTHER_TEXT, size: int = 330) -> PreTrainedTokenizerFast:
    """On bytes, with merges learned from a text, ends of turns of its own and another chat template than tests/tiny.py has."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<bos>", "<eot>", "<eos>"]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    bpe.train_from_iterator(list(text) * 20, trainer)
    return _wrapped(bpe)


def with_sign(text: Sequence[str] = OTHER_TEXT) -> PreTrainedTokenizerFast:
    """As Llama's: ▁ for a space and one before the first word, <0x41> for bytes that have no token."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.train_from_iterator(list(text) * 20, trainers.BpeTrainer(vocab_size=60))
    model = json.loads(learned.to_str())["model"]
    tokens = ["<unk>", *(f"<0x{n:02X}>" for n in range(256)), *model["vocab"]]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    vocabulary = {token: n for n, token in enumerate(dict.fromkeys([*tokens, "▁"]))}
    bpe = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.add_special_tokens(
        [
            AddedToken(t, normalized=False, special=True)
            for t in ("<pad>", "<bos>", "<eot>", "<eos>", "<turn>")
        ]
    )
    tokenizer = _wrapped(bpe)
    # After a control token the next word begins with a space.
    tokenizer.chat_template = OTHER_TEMPLATE.replace("[assistant]\n", "[assistant]<turn>").replace(
        "]\n{{ m.content }}", "]<turn>{{ m.content }}"
    )
    return tokenizer


def _wrapped(bpe: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    tokenizer.chat_template = OTHER_TEMPLATE
    return tokenizer
