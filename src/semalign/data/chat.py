"""Conversations rendered with a tokenizer's chat template, and where in the rendering the answer lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from semalign.data.kinds import CONVERSATIONS, Kind, Row, row_kind, tools_of, without_nulls
from semalign.data.seen import (
    THINKING_FIELDS,
    Message,
    forms,
    is_seen,
    says_something,
    thinking_of,
    unseen,
    without_thinking,
)
from semalign.data.templates import Failure, Job, rendered, rendered_together
from semalign.errors import DataError

Tools = list[dict[str, Any]] | None
Thinking = Literal["keep", "drop"] | None
"""What becomes of the thinking in the given answers; None: what the template does with it."""


@dataclass(frozen=True)
class Rendering:
    """A rendered conversation that ends with an assistant turn."""

    text: str
    """Everything, from the first template character to the last."""
    answer: int
    """Where the model takes over: characters before it are given by the generation prompt."""
    tail: int
    """Where the answer's own text ends and what the template adds after it begins."""
    unseen: tuple[int, ...] = ()
    """Numbers of the turns whose text or calls the template leaves out."""
    lacks_thinking: bool = False
    """Whether it leaves out what the answer's model thought."""

    @property
    def is_blank(self) -> bool:
        """Whether the template writes nothing of the answer."""
        return not self.text[self.answer : self.tail].strip()


def asked(messages: Sequence[Message]) -> list[Message]:
    """A conversation without the answer that ends it."""
    return list(messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages)


def render(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    *,
    prompt: bool,
    tools: Tools = None,
) -> str:
    """The conversation as text, with the generation prompt of the next assistant turn when `prompt`.

    Null entries of turns and of their calls' arguments are left out, as absent ones are (see `without_nulls`).

    Raises:
        DataError: there is no chat template, or it refuses a turn or fails; `name` says which sample.
    """
    return _texts([(messages, prompt)], tools, tokenizer, name)[0]


def _texts(
    wanted: Sequence[tuple[Sequence[Message], bool]],
    tools: Tools,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
) -> list[str]:
    """Renderings of one sample, each with or without the generation prompt."""
    if not tokenizer.chat_template:
        raise DataError(
            f"{name}: expected a tokenizer with a chat template for rows of messages, but this one has none; "
            "take an instruction-tuned model's tokenizer, or give rows of prompt + completion strings or text"
        )
    found = rendered([Job(without_nulls(list(m)), tools, prompt) for m, prompt in wanted], tokenizer)
    for (messages, _), text in zip(wanted, found, strict=True):
        if isinstance(text, Failure):
            raise DataError(_refusal(text, messages, tools, tokenizer, name))
    return [text for text in found if isinstance(text, str)]


def _refusal(
    failure: Failure, messages: Sequence[Message], tools: Tools, tokenizer: PreTrainedTokenizerBase, name: str
) -> str:
    """The sentence about a template's failure, with the role of the first turn at which it fails."""
    if failure.is_broken or not messages:
        return f"{name}: the chat template cannot be rendered ({failure.reason}); mend it, or take a tokenizer with another"
    parts = [Job(without_nulls(list(messages[:n])), tools, False) for n in range(1, len(messages) + 1)]
    good = list(takewhile(lambda text: isinstance(text, str), rendered(parts, tokenizer)))
    role = messages[min(len(good), len(messages) - 1)]["role"]
    return (
        f"{name}: the chat template refuses the {role!r:.40} turn ({failure.reason}); expected roles and an order "
        "that it knows: merge the turn into another one, leave it out, or mend the template"
    )


def render_answer(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    *,
    tools: Tools = None,
    thinking: Thinking = None,
    texts: list[str] | None = None,
) -> Rendering:
    """Renders a conversation whose last message is the assistant's, and finds that answer in it.

    The answer begins where the rendering of the turns before it, with generation prompt, ends. If that is not
    how the whole rendering begins (a template may open a reasoning block for the model only), it begins after
    the answer's header. Header and tail are what two renderings with different answers share at both ends;
    nothing is searched for.

    Args:
        tools: what the answer's model may call.
        thinking: drop leaves out the thinking of every turn; keep gives the template that of the last one as its content, or in a
            field of its own, until it writes it.
        texts: what `render_ahead` made of the same messages.

    Raises:
        DataError: no or a refusing template, or one that changes more than the answer with the answer, shows none of the turns
            before it, or does not write thinking that is to be kept.
    """
    if thinking == "drop":
        messages = [without_thinking(turn) for turn in messages]
    wanted = thinking_of(messages[-1]) if thinking == "keep" else ""
    for last in forms(messages[-1]) if wanted else messages[-1:]:
        found = _located([*messages[:-1], last], tokenizer, name, tools, None if thinking else texts)
        if not (wanted and found.lacks_thinking):
            return found
    raise DataError(
        f"{name}: data.thinking is keep, but the chat template writes the answer's thinking neither from its content nor from "
        "reasoning_content; mend the template, or set data.thinking to drop"
    )


def _needed(messages: Sequence[Message]) -> list[tuple[Sequence[Message], bool]]:
    """The renderings that show where the last turn lies: the whole, two with other answers, and the prompt where there is one."""
    *before, last = messages
    probes: list[tuple[Sequence[Message], bool]] = [([*before, probe], False) for probe in _probes(last)]
    return [(messages, False), *probes, *([(before, True)] if before else [])]


def render_ahead(
    rows: Sequence[tuple[Sequence[Message], Tools]], tokenizer: PreTrainedTokenizerBase
) -> list[list[str] | None]:
    """What `render_answer` needs of each conversation, asked for together; None where it has to ask alone."""
    jobs = [
        [Job(list(part), tools, prompt) for part, prompt in _needed(without_nulls(list(turns)))]
        for turns, tools in rows
    ]
    return rendered_together(jobs, tokenizer)


def _located(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    tools: Tools,
    texts: list[str] | None = None,
) -> Rendering:
    before, last = messages[:-1], messages[-1]
    text, *probes = texts or _texts(_needed(messages), tools, tokenizer, name)
    prefix = probes.pop() if before else ""
    header, ending = common_prefix(*probes), common_prefix(probes[0][::-1], probes[1][::-1])
    tail = probes[0][len(probes[0]) - ending :]
    if last.get("tool_calls") and not text.endswith(tail):
        tail = _end_of_turn(text, tokenizer)
    shows_answer = header < len(probes[0]) and header + ending < len(probes[0]) and text.endswith(tail)
    answer = len(prefix) if before and text.startswith(prefix) else header
    begins_alike = text.startswith(probes[0][: min(answer, header)])
    if not (shows_answer and begins_alike and answer <= len(text) - len(tail)):
        raise DataError(
            f"{name}: the chat template renders the turns before the last answer differently once the answer "
            "is there, so prompt and answer cannot be told apart; expected the same text for the same turns: "
            "mend the template or supervise all tokens"
        )
    return Rendering(text, answer, len(text) - len(tail), *left_out(messages, text, name))


def left_out(messages: Sequence[Message], text: str, name: str) -> tuple[tuple[int, ...], bool]:
    """Numbers of the turns that a rendering leaves out, and whether it leaves out the thinking of the answer that ends them.

    Raises:
        DataError: none of the turns before the answer is in it, so that no prompt is left.
    """
    missing = unseen(messages, text)
    before = [n for n, turn in enumerate(asked(messages), 1) if says_something(turn)]
    if before and set(before) <= set(missing):
        roles = ", ".join(dict.fromkeys(str(messages[n - 1]["role"]) for n in before))
        raise DataError(
            f"{name}: the chat template writes none of the turns before the answer ({roles:.60}), so no prompt is left; merge them "
            "into turns that it knows, or mend the template"
        )
    last = messages[-1]
    lacks = last["role"] == "assistant" and not is_seen(thinking_of(last), text)
    return tuple(missing), lacks


def _probes(last: Message) -> list[Message]:
    """Two turns that differ from the last one, and from each other, in its text alone, thinking included; without its calls."""
    others = {k: v for k, v in last.items() if k != "tool_calls"}
    fields = ["content", *(name for name in THINKING_FIELDS if last.get(name))]
    return [others | dict.fromkeys(fields, letter) for letter in "AB"]


def _end_of_turn(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that a text ends with, and white space; templates may end a turn of calls otherwise than one of text."""
    body = text.rstrip()
    tokens = [
        t.content for t in tokenizer.added_tokens_decoder.values() if t.content and body.endswith(t.content)
    ]
    return text[len(body) - max(map(len, tokens), default=0) :]


def common_prefix(first: str, second: str) -> int:
    """How many leading characters two strings share."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def encode_prompt(
    prompt: Row | Sequence[Message], tokenizer: PreTrainedTokenizerBase, name: str = "prompt"
) -> list[int]:
    """Token ids of a conversation with the generation prompt: what the model meets when asked to answer.

    Args:
        prompt: the turns; or a row with `messages`, and `tools` where the model has some.

    Raises:
        DataError: as `render`; or the template shows none of the turns.
    """
    row: Mapping[str, Any] = prompt if isinstance(prompt, Mapping) else {"messages": prompt}
    text = render(row["messages"], tokenizer, name, prompt=True, tools=tools_of(dict(row)))
    left_out(row["messages"], text, name)
    return _encode(text, tokenizer)


def encode_next_turn(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: Tools = None
) -> list[int]:
    """Token ids of the conversation up to where the text of the user's next turn begins."""
    turns = [[*messages, probe] for probe in _probes({"role": "user"})]
    first, second = _texts([(chat, False) for chat in turns], tools, tokenizer, "next turn")
    return _encode(first[: common_prefix(first, second)], tokenizer)


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def conversation(row: Row, kind: Kind) -> list[Message]:
    """The messages of a conversational row."""
    if kind is Kind.MESSAGES:
        return list(row["messages"] or [])
    return [*row["prompt"], *(row.get("completion") or [])]


def prompt_row(row: Row) -> Row:
    """What is asked in a conversational row: its turns without the answer that ends them, and its tools."""
    tools = tools_of(row)
    return {"messages": asked(conversation(row, row_kind(row)))} | ({"tools": tools} if tools else {})


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
            name, tools = f"row {number}", tools_of(row)
            texts = [render(messages, t, name, prompt=False, tools=tools) for t in (teacher, student)]
        except DataError:
            return False
        if texts[0] != texts[1]:
            return False
    return True
