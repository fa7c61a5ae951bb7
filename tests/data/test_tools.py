"""Tools reach the template, a call is an answer, and prompts with other tools or calls are other prompts."""

from __future__ import annotations

import copy
import json
from typing import Any

import datasets
import pyarrow
import pytest
from transformers import PreTrainedTokenizerBase

from semalign.data import encode_prompt, load_rows, prepare, prompt_of
from semalign.data.chat import prompt_row
from semalign.data.check import Tokens, check_rows
from semalign.errors import DataError

from .conftest import build
from .marked import only, supervised_text

TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}"
    "{{ '<|call_end|>' if m.tool_calls and special_end is defined else '<|im_end|>' }}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "size_of", "parameters": {"type": "object"}}}
ASK = {"role": "user", "content": "how large is a fox?"}


def call(name: str = "size_of", **arguments: Any) -> dict[str, Any]:
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments or {"animal": "fox"}}}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def tokenizer(template: str = TEMPLATE, *control: str) -> PreTrainedTokenizerBase:
    found = copy.deepcopy(build("chatml"))
    found.add_tokens(list(control), special_tokens=True)
    found.chat_template = template
    return found


WHOLE = {
    "messages": [
        ASK,
        call(),
        {"role": "tool", "content": "70 cm"},
        {"role": "assistant", "content": "70 cm."},
    ],
    "tools": [TOOL],
}


@pytest.mark.parametrize("given", [[TOOL], json.dumps([TOOL])])
def test_tools_are_in_the_row_and_in_what_a_model_is_asked(given: Any) -> None:
    tok = tokenizer()
    row = {**WHOLE, "tools": given}
    text = tok.decode(only(row, tok).input_ids)
    assert (
        text == tok.apply_chat_template(WHOLE["messages"], tools=[TOOL], tokenize=False).rstrip("\n") + "\n"
    )
    asked = tok.decode(encode_prompt(prompt_row(row), tok))
    wanted = WHOLE["messages"][:-1], {"tools": [TOOL], "tokenize": False, "add_generation_prompt": True}
    assert asked == tok.apply_chat_template(wanted[0], **wanted[1]) and text.startswith(asked)


@pytest.mark.parametrize("given", [None, [], "", "null"])
def test_no_tools_are_none(given: Any) -> None:
    tok = tokenizer("{% if tools is not none %}tools{% endif %}" + TEMPLATE)
    assert "tools" not in tok.decode(only({**WHOLE, "tools": given}, tok).input_ids)


@pytest.mark.parametrize("given", ["[1", '"x"', {"name": "f"}, ["f"], 3])
def test_other_values_are_no_tools(given: Any) -> None:
    with pytest.raises(
        DataError, match=r"^rows:1: tools is .*expected a list of JSON Schema objects, or such a list as JSON"
    ):
        prepare([{**WHOLE, "tools": given}], tokenizer(), max_length=99)


@pytest.mark.parametrize("control", [(), ("<call>", "</call>")], ids=["plain", "call tokens"])
@pytest.mark.parametrize("end", ["<|im_end|>", "<|call_end|>"])
@pytest.mark.parametrize("said", [None, "", "let me see"])
def test_a_call_is_an_answer(control: tuple[str, ...], end: str, said: str | None) -> None:
    template = TEMPLATE.replace("special_end is defined", str(end != "<|im_end|>").lower())
    tok = tokenizer(template, "<|call_end|>", *control)
    sample = only({"messages": [ASK, {**call(), "content": said}], "tools": [TOOL]}, tok)
    assert supervised_text(sample, tok) == f'{said or ""}<call>size_of {{"animal": "fox"}}</call>{end}'


def test_rows_that_differ_in_tools_or_calls_have_other_prompts() -> None:
    other_tool = {**WHOLE, "tools": [{**TOOL, "type": "other"}]}
    other_call = {**WHOLE, "messages": [ASK, call(animal="cat"), *WHOLE["messages"][2:]]}
    other_answer = {**WHOLE, "messages": [*WHOLE["messages"][:-1], {"role": "assistant", "content": "70"}]}
    assert len({prompt_of(row) for row in (WHOLE, other_tool, other_call)}) == 3
    assert prompt_of(other_answer) == prompt_of(WHOLE) == prompt_of({**WHOLE, "tools": json.dumps([TOOL])})
    repeats = check_rows([("1", WHOLE), ("2", other_tool), ("3", other_call), ("4", WHOLE)])["duplicates"]
    assert {key: len(found) for key, found in repeats.items()} == {"rows": 1, "prompts": 0, "near": 0}


def test_nulls_that_arrow_writes_are_as_absent(tmp_path: Any) -> None:
    rows = [
        {
            "messages": [
                ASK,
                call(name, **arguments),
                {"role": "tool", "content": "7"},
                {"role": "assistant", "content": "7."},
            ],
            "tools": [TOOL, extra],
        }
        for name, arguments, extra in (
            ("size_of", {"animal": "fox"}, {"name": "f"}),
            ("sky", {"city": "Rom"}, {"title": "g"}),
        )
    ]
    datasets.Dataset(pyarrow.Table.from_pylist(rows)).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    saved, given = load_rows(str(tmp_path / "saved")), load_rows(str(tmp_path / "rows.jsonl"))
    assert saved[0]["messages"][1]["tool_calls"][0]["function"]["arguments"]["city"] is None, (
        "Arrow has written nulls"
    )
    tok = tokenizer()
    samples = [prepare(found, tok, max_length=999) for found in (saved, given)]
    assert [s.sha for s in samples[0]] == [s.sha for s in samples[1]]
    assert "null" not in tok.decode(samples[0][0].input_ids)
    assert [prompt_of(row) for row in saved] == [prompt_of(row) for row in given]
    mixed = check_rows([("a", saved[0]), ("b", given[0])], tokens=Tokens(tok, 999))
    assert mixed["duplicates"]["rows"] == [{"place": "b", "first": "a"}] and not mixed["errors"]


def test_a_template_that_asks_whether_a_key_is_there_is_told_the_truth() -> None:
    template = (
        "{% for m in messages %}{% if 'tool_calls' in m %}{{ raise_exception('one call') }}{% endif %}"
        + TEMPLATE[TEMPLATE.index("{{ '<|im_start|>' + m.role") :]
    )
    row = {
        "messages": [{**ASK, "tool_calls": None}, {"role": "assistant", "content": "A", "tool_calls": None}]
    }
    assert supervised_text(only(row, tokenizer(template)), tokenizer(template)) == "A<|im_end|>"


def test_calls_that_are_no_list_are_refused() -> None:
    with pytest.raises(
        DataError, match="messages, message 2: tool_calls is a string, expected a list of objects"
    ):
        prepare(
            [{"messages": [ASK, {"role": "assistant", "tool_calls": "size_of()"}]}], tokenizer(), max_length=9
        )
