"""What tokens write: the bytes of every token of a vocabulary, and the token with which a tokenizer begins to write some bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from semalign.data.tokens import control_ids

SPACE = "▁"  # how SentencePiece writes a space


class Lexicon:
    """The tokens of one tokenizer as bytes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._first: dict[bytes, int | None] = {}

    @cached_property
    def texts(self) -> list[bytes | None]:
        """The bytes that each id stands for within a text; None for control tokens and holes of the vocabulary."""
        vocabulary = self.tokenizer.get_vocab()
        found: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
        added = {index: token.content for index, token in self.tokenizer.added_tokens_decoder.items()}
        control, read = control_ids(self.tokenizer), _reader(self.tokenizer)
        for token, index in vocabulary.items():
            if index not in control:
                found[index] = added[index].encode() if index in added else read(token)
        return found

    @cached_property
    def by_text(self) -> dict[bytes, int]:
        """The id of each text; of several the lowest that is no lone byte."""
        found: dict[bytes, int] = {}
        names = self.tokenizer.convert_ids_to_tokens(list(range(len(self.texts))))
        for index in sorted(range(len(names)), key=lambda i: (_is_lone_byte(names[i]), i)):
            text = self.texts[index]
            if text:
                found.setdefault(text, index)
        return found

    def first(self, text: bytes) -> int | None:
        """The token of exactly these bytes, else the first one of the tokenizer's own split of them; None where there is neither.

        None too where the split begins with other bytes, as that of half a character does.
        """
        if text not in self._first:
            self._first[text] = self._found(text)
        return self._first[text]

    def _found(self, text: bytes) -> int | None:
        if (exact := self.by_text.get(text)) is not None:
            return exact
        try:
            words = text.decode()
        except UnicodeDecodeError:
            return None
        ids = self.tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"]
        begun = self.text_of(ids[0]) if ids else None
        return int(ids[0]) if begun and text.startswith(begun) else None

    def text_of(self, index: int) -> bytes | None:
        """The bytes of one id."""
        return self.texts[index] if index < len(self.texts) else None


def _reader(tokenizer: PreTrainedTokenizerBase) -> Any:
    """How a vocabulary writes bytes: byte by byte in stand-in characters, or as text with a sign for a space."""
    kinds = {node.get("type") for node in _nodes(_decoder(tokenizer))}
    if "ByteLevel" in kinds:
        byte_of = {character: byte for byte, character in enumerate(_stand_ins())}
        # A token that is no stand-ins, as one may be that was added by hand, is its own text.
        return lambda token: (
            bytes(byte_of[c] for c in token) if all(c in byte_of for c in token) else token.encode()
        )
    return lambda token: (
        bytes([int(token[3:5], 16)]) if _is_lone_byte(token) else token.replace(SPACE, " ").encode()
    )


def _decoder(tokenizer: PreTrainedTokenizerBase) -> Any:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return json.loads(backend.to_str()).get("decoder")
    # Python's own tokenizers have no description; GPT-2's sign for a space tells those that work on bytes.
    return {"type": "ByteLevel"} if any("Ġ" in token for token in tokenizer.get_vocab()) else None


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for part in tree:
            yield from _nodes(part)


def _is_lone_byte(token: str | Sequence[str] | None) -> bool:
    return isinstance(token, str) and len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _stand_ins() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies: itself where it is printable, else the next free one above 255."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
