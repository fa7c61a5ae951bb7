"""Templates are programs of strangers: each failure is a few words with its line, and none takes more than its time or memory."""

from __future__ import annotations

import copy
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from semalign.data import encode_prompt, prepare, templates, templates_agree
from semalign.data.templates import Failure, Job, rendered
from semalign.errors import DataError
from semalign.models.variables import give_variables, variables_of

from .conftest import TEMPLATES, build
from .marked import chat

CHAT = [Job(chat("Q", "A", system="S")["messages"], None, False), Job(chat("Q")["messages"], None, True)]


def with_template(template: str) -> PreTrainedTokenizerBase:
    tokenizer = copy.copy(build("chatml"))
    tokenizer.chat_template = template
    return tokenizer


def failure(template: str) -> Failure:
    (found,) = rendered(CHAT[1:], with_template(template))
    assert isinstance(found, Failure), found
    return found


@pytest.fixture
def little_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(templates, "CPU_SECONDS", 0.3)
    monkeypatch.setattr(templates, "_ENDED", {})
    yield


@pytest.mark.parametrize("style", [name for name, template in TEMPLATES.items() if template])
def test_a_rendering_is_what_transformers_renders(style: str) -> None:
    tokenizer = build(style)
    turns = chat("Größe 世界\r\n", " A\u2028b ")["messages"]
    wanted = [
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=p) for p in (False, True)
    ]
    assert rendered([Job(turns, None, False), Job(turns, None, True)], tokenizer) == wanted


def test_a_template_s_own_variables_are_given_and_not_saved(tmp_path: Path) -> None:
    template = (
        "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{{ style }}"
    )
    tokenizer = with_template(template)
    assert rendered(CHAT[1:], tokenizer) == [""]
    give_variables(tokenizer, {"enable_thinking": False, "style": "short"})
    wanted = tokenizer.apply_chat_template(
        CHAT[1].messages, tokenize=False, add_generation_prompt=True, enable_thinking=False, style="short"
    )
    assert rendered(CHAT[1:], tokenizer) == [wanted] == ["<think></think>short"]
    tokenizer.save_pretrained(tmp_path)
    assert "semalign" not in "".join(p.read_text() for p in tmp_path.glob("*.json"))
    assert variables_of(AutoTokenizer.from_pretrained(tmp_path)) == {}


@pytest.mark.parametrize(
    ("template", "reason", "is_broken"),
    [
        ("a\n\n{{ 1 / 0 }}", "ZeroDivisionError: division by zero, line 3", False),
        ("a\n{{ a.b.c }}", "UndefinedError: 'a' is undefined, line 2", False),
        ("\n{{ raise_exception('no\n  such role') }}", "no such role, line 2", False),
        ("{{ 'a' + 1 }}", "TypeError: ", False),
        ("{{ 'abc' | float | round('x') }}", "TypeError: ", False),
        ("{{ range(10 ** 9) | list }}", "OverflowError: ", False),
        ("{{ 9.0 ** 9999 }}", "OverflowError: ", False),
        (
            "{% macro f() %}{{ f() }}{% endmacro %}\n{{ f() }}",
            "RecursionError: maximum recursion depth",
            False,
        ),
        ("{{ messages | map('nothing') | list }}", "TemplateRuntimeError: No filter named 'nothing'", False),
        ("{{ messages[0] is nothing }}", "TemplateAssertionError: No test named 'nothing'., line 1", True),
        ("{{ 'a' * 10 ** 11 }}", "MemoryError: no reason given", False),
        ("{{ [0] * 10 ** 12 }}", "MemoryError: no reason given", False),
        (
            "x\n{% if %}",
            "TemplateSyntaxError: Expected an expression, got 'end of statement block', line 2",
            True,
        ),
        ("{% break %}", "SyntaxError: 'break' outside loop", True),
        ("{{ messages.append(1) }}", "SecurityError: ", False),
        ("{{" + "(" * 20_000 + "1" + ")" * 20_000 + "}}", "RecursionError: ", False),
        ("{{ '\\ud83d' }}", "it writes half of a surrogate pair, which is no character", False),
        ("{{ 'a'.center(10 ** 6) }}", "it writes 1000000 characters, expected at most 1", False),
        ("{% include '/etc/passwd' %}", "TypeError: no loader for this environment specified, line 1", False),
        ("{% import 'os' as os %}", "TypeError: no loader for this environment specified, line 1", False),
        ("{% extends 'os' %}", "TypeError: no loader for this environment specified", False),
    ],
)
def test_a_failure_is_a_few_words_with_the_template_s_line(
    template: str, reason: str, is_broken: bool
) -> None:
    found = failure(template)
    assert found.reason.startswith(reason) and found.is_broken is is_broken
    assert len(found.reason) < 200 and "\n" not in found.reason


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ lipsum.__globals__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ open is defined }}{{ os is defined }}{{ __builtins__ is defined }}",
    ],
)
def test_a_template_reaches_nothing_of_python(template: str) -> None:
    (found,) = rendered(CHAT[1:], with_template(template))
    assert isinstance(found, Failure) or found in ("", "FalseFalseFalse")


@pytest.mark.parametrize(
    "template",
    [
        "{{ 10 ** 10000000 }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ (10 ** 5000000) | string | length }}",
    ],
)
def test_a_template_that_does_not_end_is_ended_and_not_tried_again(
    little_time: None, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, tokenizer = [chat("Q", "A")] * 2, with_template(template)
    sentence = (
        r"^rows:1: the chat template cannot be rendered \(it does not end within 0.3 s\); mend it, or take"
    )
    with pytest.raises(DataError, match=sentence):
        prepare(rows, tokenizer, max_length=99)
    monkeypatch.setattr(templates._RENDERER, "ask", lambda request: pytest.fail("it is tried again"))
    with pytest.raises(DataError, match=sentence):
        prepare(rows, tokenizer, max_length=99)
    with pytest.raises(DataError, match=r"^prompt: the chat template cannot be rendered"):
        encode_prompt(rows[0]["messages"], tokenizer)
    assert not templates_agree(tokenizer, tokenizer, rows)


def test_a_template_without_an_end_harms_no_other(little_time: None) -> None:
    failure("{{ 10 ** 10000000 }}")
    assert rendered(CHAT[1:], build("chatml")) == ["<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"]


def test_the_time_is_that_of_a_row_not_of_all_rows(little_time: None) -> None:
    slow = with_template("{% for a in range(99999) %}{% endfor %}x")
    used = psutil.Process(_child().pid).cpu_times().user
    for _ in range(150):
        assert rendered(CHAT[1:], slow) == ["x"]
    assert psutil.Process(_child().pid).cpu_times().user - used > 0.3


def _child() -> Any:
    rendered(CHAT, build("chatml"))
    return templates._RENDERER.process


def test_the_process_holds_no_file_of_its_parent(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("")
    rendered(CHAT, build("chatml"))
    os.kill(templates._RENDERER.process.pid, signal.SIGKILL)
    templates._RENDERER.process.join()
    with (tmp_path / "lock").open() as held:
        templates._RENDERER.owner = 0
        child = psutil.Process(_child().pid)
        names = {file.path for file in child.open_files()}
    assert held.name not in names and not child.net_connections("inet")


def test_an_interrupt_from_the_keyboard_ends_the_parent_not_the_rendering() -> None:
    child = _child()
    os.kill(child.pid, signal.SIGINT)
    assert rendered(CHAT, build("chatml")) and _child().pid == child.pid


def test_several_threads_each_get_their_own_texts() -> None:
    found: dict[int, Any] = {}

    def ask(n: int) -> None:
        found[n] = [
            rendered([Job(chat(f"{n} {k}")["messages"], None, False)], build("chatml")) for k in range(20)
        ]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, texts in found.items():
        assert texts == [[f"<|im_start|>user\n{n} {k}<|im_end|>\n"] for k in range(20)]


def test_what_no_json_has_is_told() -> None:
    (found,) = rendered([Job([{"role": "user", "content": b"x"}], None, False)], build("chatml"))
    assert isinstance(found, Failure) and "holds a value that no JSON has" in found.reason


def test_tools_choose_among_named_templates() -> None:
    tokenizer = copy.copy(build("chatml"))
    tokenizer.chat_template = {"default": "plain", "tool_use": "{{ tools[0].name }}"}
    jobs = [Job(chat("Q")["messages"], tools, False) for tools in (None, [{"name": "look"}])]
    assert [rendered([job], tokenizer) for job in jobs] == [["plain"], ["look"]]
    tokenizer.chat_template = {"other": "x"}
    (found,) = rendered(CHAT[1:], tokenizer)
    assert isinstance(found, Failure)
