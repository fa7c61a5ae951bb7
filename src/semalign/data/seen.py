"""What a rendering shows of a conversation: a template may leave out a turn, a tool call or the thinking of an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

Message = dict[str, Any]
THINKING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names under which a message holds its thinking apart from its content; transformers gives templates the first for any."""
END = "</think>"


def thinking_of(message: Message) -> str:
    """What an assistant turn thinks before it answers: a field of its own, or the content up to `</think>`."""
    field = next((message[name] for name in THINKING_FIELDS if message.get(name)), None)
    if isinstance(field, str):
        return field.strip()
    return (message.get("content") or "").rpartition(END)[0].strip().removeprefix("<think>").strip()


def without_thinking(message: Message) -> Message:
    """The same turn with its answer alone."""
    if message["role"] != "assistant" or not thinking_of(message):
        return message
    others = {k: v for k, v in message.items() if k not in THINKING_FIELDS}
    return others | {"content": _answer(message)}


def forms(message: Message) -> Iterator[Message]:
    """A turn with its thinking as it is given, inside its content, and in a field of its own."""
    thinking, bare = thinking_of(message), without_thinking(message)
    yield message
    yield bare | {"content": f"<think>\n{thinking}\n{END}\n\n{bare['content']}"}
    yield bare | {"reasoning_content": thinking}


def unseen(messages: Sequence[Message], text: str) -> list[int]:
    """Numbers, from 1, of the turns whose content or calls are not in the text; thinking does not count.

    A text that another turn has too is taken for shown.
    """
    return [n for n, turn in enumerate(messages, 1) if not all(is_seen(part, text) for part in _parts(turn))]


def says_something(message: Message) -> bool:
    """Whether a turn has a text or a call."""
    return any(part.strip() for part in _parts(message))


def is_seen(part: str, text: str) -> bool:
    """Whether a text, stripped, is in another: as it is, as JSON writes it, or with other white space."""
    part = part.strip()
    if part in text or json.dumps(part, ensure_ascii=False)[1:-1] in text:
        return True
    return " ".join(part.split()) in " ".join(text.split())


def called(message: Message) -> list[str]:
    """Names of the functions that a turn calls."""
    calls = [call.get("function") or call for call in message.get("tool_calls") or []]
    return [str(call.get("name") or "") for call in calls if isinstance(call, dict)]


def _parts(message: Message) -> list[str]:
    return [_answer(message), *called(message)]


def _answer(message: Message) -> str:
    content = message.get("content") or ""
    return content.rpartition(END)[2].lstrip() if message["role"] == "assistant" else content
