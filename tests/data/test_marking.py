"""Rows that are rendered together are marked as rows that are rendered alone; why a row gives no tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from semalign.data import prepare, templates
from semalign.data.marking import AHEAD, Drop, Marked, cut_to, mark_row, rendered_ahead
from semalign.errors import DataError

from .conftest import build
from .marked import chat, only, supervised_text

TOOLS = [{"type": "function", "function": {"name": "look"}}]
ROWS: list[dict[str, Any]] = [
    *(chat(f"Q{n}", f"A{n} " * n) for n in range(1, AHEAD)),
    chat("Q", None),
    chat("Q", "A", "unanswered"),
    {"prompt": "Q", "completion": "A"},
    {"messages": chat("Q", "A")["messages"], "tools": TOOLS},
    {"messages": [{"role": "assistant", "content": "A"}]},
    {"prompt": chat("Q")["messages"], "completion": [{"role": "assistant", "content": "A"}]},
    {"text": 5},
    *(chat(f"R{n}", "A") for n in range(AHEAD)),
]


def alone(row: dict[str, Any], tokenizer: Any) -> Any:
    try:
        return mark_row(row, tokenizer, "completion", "x")
    except DataError as error:
        return str(error)


def test_rows_rendered_together_are_marked_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = build("chatml")
    together = list(rendered_ahead(ROWS, tokenizer, "completion"))
    is_asked = [texts is not None for texts in together]
    wanted = [
        isinstance(alone(row, tokenizer), Marked) and "text" not in row and row.get("prompt") != "Q"
        for row in ROWS
    ]
    assert is_asked == wanted and sum(wanted) == 2 * AHEAD + 2
    expected = [alone(row, tokenizer) for row, texts in zip(ROWS, together, strict=True) if texts]
    rows = [(row, texts) for row, texts in zip(ROWS, together, strict=True) if texts]
    monkeypatch.setattr(templates._RENDERER, "ask", lambda request: pytest.fail("it is rendered again"))
    assert [mark_row(row, tokenizer, "completion", "x", texts=texts) for row, texts in rows] == expected


def test_a_row_that_the_template_refuses_is_named_among_those_of_its_chunk() -> None:
    rows = [chat("Q", f"A{n}", system="S" if n == 70 else None) for n in range(100)]
    with pytest.raises(DataError, match=r"^rows:71: the chat template refuses the 'system' turn"):
        prepare(rows, build("gemma"), max_length=99)
    texts = list(rendered_ahead(rows, build("gemma"), "completion"))
    assert [n for n, found in enumerate(texts) if found is None] == [70]


def test_a_row_that_does_not_end_is_named_among_those_of_its_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "CPU_SECONDS", 0.3)
    monkeypatch.setattr(templates, "_ENDED", {})
    monkeypatch.setattr(templates, "_ALONE", set())
    tokenizer = copy.copy(build("chatml"))
    tokenizer.chat_template = (
        "{% if 'slow' in messages[0].content %}{% for a in range(99999) %}{% for b in range(99999) %}"
        "{% endfor %}{% endfor %}{% endif %}" + tokenizer.chat_template
    )
    rows = [chat("slow" if n == 5 else "quick", "A") for n in range(9)]
    with pytest.raises(
        DataError, match=r"^rows:6: the chat template cannot be rendered \(it does not end within"
    ):
        prepare(rows, tokenizer, max_length=99)


def test_cutting_keeps_what_is_known_of_the_row() -> None:
    marked = Marked([1, 2, 3, 4], [True, False, True, True], (2,), True)
    assert cut_to(marked, 3) == Marked([1, 2, 3], [False, False, True], (2,), True)
    assert cut_to(marked, 2) is Drop.TOO_LONG
    assert cut_to(Marked([1, 2], [True, False]), 9) is Drop.NOTHING


@pytest.mark.parametrize(
    ("row", "drop"),
    [
        (chat("Q", " "), Drop.BLANK),
        ({"prompt": "Q", "completion": None}, Drop.BLANK),
        ({"text": ""}, Drop.BLANK),
        ({"input_ids": []}, Drop.BLANK),
        (chat("Q", "A", "B"), Drop.NO_ANSWER),
    ],
)
def test_a_row_without_tokens_says_why(row: dict[str, Any], drop: Drop) -> None:
    assert mark_row(row, build("chatml"), "completion", "x") is drop


def test_an_answer_of_thinking_alone_is_an_answer() -> None:
    row = {"messages": [*chat("Q")["messages"], {"role": "assistant", "content": "<think>cut off</think>"}]}
    assert only(row, build("chatml")).supervised > 3


@pytest.mark.parametrize(
    ("style", "said"),
    [
        ("chatml", "One.<|im_end|>Two.<|im_end|>"),
        ("llama2", " One. </s> Two. </s>"),
        ("gemma", "One.<end_of_turn>Two.<end_of_turn>"),
    ],
)
def test_every_assistant_turn_is_supervised_as_the_last_one_is(style: str, said: str) -> None:
    tokenizer, row = build(style), chat("Q", "One.", "And?", "Two.")
    found = only(row, tokenizer, supervise="assistant")
    assert supervised_text(found, tokenizer).replace(" ", "") == said.replace(" ", "")
    last, first = only(row, tokenizer), only(chat("Q", "One."), tokenizer)
    assert found.input_ids == last.input_ids
    stop = len(first.mask) - first.mask[::-1].index(True)
    assert found.mask == [
        a or b for a, b in zip(last.mask, [*first.mask[:stop], *[False] * 999], strict=False)
    ]
    assert only(chat("Q", "One."), tokenizer, supervise="assistant") == first


def test_what_follows_the_last_assistant_turn_is_left_out() -> None:
    tokenizer = build("chatml")
    found = only(chat("Q", "One.", "And?"), tokenizer, supervise="assistant")
    assert found.input_ids == only(chat("Q", "One."), tokenizer).input_ids
    empty = only(chat("Q", "", "And?", "Two."), tokenizer, supervise="assistant")
    assert supervised_text(empty, tokenizer) == "Two.<|im_end|>"
    assert mark_row(chat("Q"), tokenizer, "assistant", "x") is Drop.NO_ANSWER


def test_a_template_that_writes_earlier_turns_otherwise_is_refused() -> None:
    tokenizer = copy.deepcopy(build("chatml"))
    # As Qwen3's: the thinking of earlier turns is left out.
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}"
        "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    row = chat("Q", "<think>hm</think>One.", "And?", "<think>so</think>Two.")
    assert only(row, tokenizer).supervised
    with pytest.raises(
        DataError, match=r"rows:1: data\.supervise is assistant, but .* assistant turn 2 differently"
    ):
        prepare([row], tokenizer, max_length=99, supervise="assistant")
    plain = only(row, tokenizer, supervise="assistant", thinking="drop")
    assert supervised_text(plain, tokenizer) == "One.<|im_end|>Two.<|im_end|>"


@pytest.mark.parametrize(
    "row",
    [{"prompt": "Q", "completion": "A"}, {"text": "All of it"}, {"input_ids": [5, 6], "labels": [-100, 6]}],
)
def test_rows_without_turns_are_supervised_as_ever(row: dict[str, Any]) -> None:
    tokenizer = build("chatml")
    assert mark_row(row, tokenizer, "assistant", "x") == mark_row(row, tokenizer, "completion", "x")
