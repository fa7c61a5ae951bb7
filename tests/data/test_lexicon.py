"""Tokens as bytes, and the token with which a tokenizer begins to write some."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer
from tokenizers_apart import byte_level, with_sign
from transformers import PreTrainedTokenizerFast

from semalign.data.lexicon import Lexicon

TEXTS = st.text(
    alphabet=st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12
) | st.sampled_from(["a\r\nb", "🙂👩‍👧 é", "你好,世界", "  two  and\tthree\n\n", "what is seven"])
BYTES, SIGN = byte_level(), with_sign()


def written(tokenizer: PreTrainedTokenizerFast, text: str) -> bytes:
    lexicon = Lexicon(tokenizer)
    parts = [lexicon.text_of(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    return b"".join(part or b"" for part in parts)


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_the_bytes_of_a_text_s_tokens_are_the_text_s(text: str) -> None:
    if not any(token in text for token in ("<pad>", "<bos>", "<eot>", "<eos>")):
        assert written(BYTES, text) == text.encode()
        # SentencePiece writes a space before the first word, and none where there is no word.
        assert written(SIGN, text) == (b" " + text.encode() if text else b"")


def test_every_id_of_a_vocabulary_has_its_bytes_and_control_tokens_have_none() -> None:
    lexicon = Lexicon(BYTES)
    assert len(lexicon.texts) == len(BYTES)
    assert [lexicon.text_of(BYTES.convert_tokens_to_ids(t)) for t in ("<eot>", "Ġ", "Ċ")] == [
        None,
        b" ",
        b"\n",
    ]
    assert {lexicon.text_of(n) for n in range(len(BYTES))} >= {bytes([n]) for n in range(256)}
    assert lexicon.text_of(10**6) is None
    sign = Lexicon(SIGN)
    assert sign.text_of(SIGN.convert_tokens_to_ids("<0xE2>")) == b"\xe2"
    assert sign.text_of(SIGN.convert_tokens_to_ids("▁")) == b" "
    # Of a letter's own token and that of its byte the letter's is taken.
    assert sign.by_text[b"a"] == SIGN.convert_tokens_to_ids("a")


def test_a_text_begins_with_the_token_of_exactly_it_or_the_first_of_its_split() -> None:
    tokenizer = tiny_tokenizer()
    lexicon = Lexicon(tokenizer)
    known = tokenizer.convert_tokens_to_ids("Ġand")
    assert lexicon.first(b" and") == known
    split = tokenizer(" andante", add_special_tokens=False)["input_ids"]
    assert len(split) > 1 and lexicon.first(b" andante") == split[0]
    # Half a character: its first byte has a token, and two of three bytes have none.
    assert (
        lexicon.first("€".encode()[:1]) == lexicon.by_text[b"\xe2"]
        and lexicon.first("€".encode()[:2]) is None
    )
    assert lexicon.first(b"") is None
    # The split of a word in the middle begins with a space that is not written there.
    assert Lexicon(SIGN).first(b"andante") is None
