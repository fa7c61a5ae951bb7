"""Conversations rendered with a tokenizer's chat template, and where in the rendering the answer lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from semalign.data.kinds import CONVERSATIONS, Kind, Row, row_kind
from semalign.errors import DataError

Message = dict[str, Any]


@dataclass(frozen=True)
class Rendering:
    """A rendered conversation that ends with an assistant turn."""

    text: str
    """Everything, from the first template character to the last."""
    answer: int
    """Where the model takes over: characters before it are given by the generation prompt."""
    tail: int
    """Where the answer's own text ends and what the template adds after it begins."""


def asked(messages: Sequence[Message]) -> list[Message]:
    """A conversation without the answer that ends it."""
    return list(messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages)


def render(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, name: str, *, prompt: bool
) -> str:
    """The conversation as text, with the generation prompt of the next assistant turn when `prompt`.

    Raises:
        DataError: there is no chat template, or it refuses a role; `name` says which sample.
    """
    if not tokenizer.chat_template:
        raise DataError(
            f"{name}: expected a tokenizer with a chat template for rows of messages, but this one has none; "
            "take an instruction-tuned model's tokenizer, or give rows of prompt + completion strings or text"
        )
    try:
        return _apply(messages, tokenizer, prompt)
    except (TemplateError, TypeError, ValueError) as error:
        role = _refused_role(messages, tokenizer)
        raise DataError(
            f"{name}: the chat template refuses the {role!r} turn ({error}); expected roles and an order "
            "that the template knows, so merge the turn into another one or leave it out"
        ) from error


def _apply(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, prompt: bool) -> str:
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
    assert isinstance(text, str)
    return text


def _refused_role(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """Role of the first message with which the template fails."""
    for count, message in enumerate(messages, start=1):
        try:
            _apply(messages[:count], tokenizer, False)
        except (TemplateError, TypeError, ValueError):
            return str(message["role"])
    return str(messages[-1]["role"]) if messages else "first"


def render_answer(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, name: str) -> Rendering:
    """Renders a conversation whose last message is the assistant's, and finds that answer in it.

    The answer begins where the rendering of the turns before it, with generation prompt, ends. If that is not
    how the whole rendering begins (a template may open a reasoning block for the model only), it begins after
    the answer's header. Header and tail are what two renderings with different answers share at both ends;
    nothing is searched for.

    Raises:
        DataError: no or a refusing template, or one that changes more than the answer with the answer.
    """
    *before, last = messages
    text = render(messages, tokenizer, name, prompt=False)
    prefix = render(before, tokenizer, name, prompt=True) if before else ""
    probes = _probes(before, last, tokenizer, name)
    header = common_prefix(*probes)
    tail = probes[0][header + 1 :]
    shows_answer = header < len(probes[0]) and probes[1][header + 1 :] == tail and text.endswith(tail)
    answer = len(prefix) if before and text.startswith(prefix) else header
    if not (
        shows_answer and text.startswith(probes[0][: min(answer, header)]) and answer <= len(text) - len(tail)
    ):
        raise DataError(
            f"{name}: the chat template renders the turns before the last answer differently once the answer "
            "is there, so prompt and answer cannot be told apart; expected the same text for the same turns: "
            "mend the template or supervise all tokens"
        )
    return Rendering(text, answer, len(text) - len(tail))


def _probes(
    before: Sequence[Message], last: Message, tokenizer: PreTrainedTokenizerBase, name: str
) -> tuple[str, str]:
    """Two renderings that differ in the last turn's text alone."""
    first, second = (
        render([*before, {**last, "content": letter}], tokenizer, name, prompt=False) for letter in "AB"
    )
    return first, second


def common_prefix(first: str, second: str) -> int:
    """How many leading characters two strings share."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def encode_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the conversation with the generation prompt: what the model meets when asked to answer."""
    return _encode(render(messages, tokenizer, "prompt", prompt=True), tokenizer)


def encode_next_turn(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the conversation up to where the text of the user's next turn begins."""
    probes = _probes(messages, {"role": "user"}, tokenizer, "next turn")
    return _encode(probes[0][: common_prefix(*probes)], tokenizer)


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def conversation(row: Row, kind: Kind) -> list[Message]:
    """The messages of a conversational row."""
    if kind is Kind.MESSAGES:
        return list(row["messages"] or [])
    return [*row["prompt"], *(row.get("completion") or [])]


def lacks_answer(row: Row) -> bool:
    """Whether a row is a conversation that no assistant turn ends yet."""
    kind = row_kind(row)
    turns = conversation(row, kind) if kind in CONVERSATIONS else []
    return bool(turns) and turns[-1]["role"] != "assistant"


def answered(row: Row, text: str) -> Row:
    """A conversational row with an answer in place of its own or of none; ids and tasks stay."""
    turns = [*asked(conversation(row, row_kind(row))), {"role": "assistant", "content": text}]
    others = {k: v for k, v in row.items() if k not in ("messages", "prompt", "completion")}
    return others | {"messages": turns}


def templates_agree(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, rows: Sequence[Row]
) -> bool:
    """Whether both chat templates render all conversations alike; rows of other kinds need no template."""
    for number, row in enumerate(rows, start=1):
        kind = row_kind(row)
        if kind not in CONVERSATIONS:
            continue
        messages = conversation(row, kind)
        try:
            texts = [
                render(messages, tokenizer, f"row {number}", prompt=False) for tokenizer in (teacher, student)
            ]
        except DataError:
            return False
        if texts[0] != texts[1]:
            return False
    return True
