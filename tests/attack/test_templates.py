"""Mutated chat templates: a rendering or one sentence comes out, and nothing hangs."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator

import pytest
from attack.counts import count
from tiny import TEMPLATE, tiny_tokenizer

from semalign.data import Sample, encode_prompt, prepare, templates, templates_agree
from semalign.data.chat import encode_next_turn
from semalign.errors import DataError

SEED = 25
REAL = (
    TEMPLATE,
    # Tools, calls, and thinking that earlier turns lose.
    "{%- if tools %}{{- '<|system|>\n# Tools\n' }}{%- for tool in tools %}{{- '\n' + (tool | tojson) }}{%- endfor %}{{- '<|end|>\n' }}{%- endif %}\n"
    "{%- set ns = namespace(last=messages|length - 1) %}\n"
    "{%- for message in messages %}\n"
    "{%- set content = message.content if message.content is string else '' %}\n"
    "{%- if message.role == 'assistant' %}{%- if '</think>' in content and loop.index0 < ns.last %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|assistant|>' + content }}{%- for call in message.tool_calls or [] %}{{- '\n<call>' + (call.function | tojson) + '</call>' }}{%- endfor %}"
    "{{- '<|end|>\n' }}\n"
    "{%- else %}{{- '<|' + message.role + '|>' + content + '<|end|>\n' }}{%- endif %}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}",
    # Roles that have to alternate, a system turn inside the first user's.
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + (system + '\n' if loop.first and system else '') + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
    # A macro, a date and numbers.
    "{% macro turn(role, text) -%}<|{{ role }}|>{{ text }}<|end|>{%- endmacro %}{{ turn('system', 'It is ' + strftime_now('%Y')) }}"
    "{% for m in messages %}{{ turn(m.role, (loop.index | string) + '. ' + m.content | default('', true)) }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
)
PIECES = (
    *(
        "{{ 10 ** 10000000 }}",
        "{{ 1 / 0 }}",
        "{{ x.y.z }}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ [1] * 10 ** 12 }}",
        "{{ m.content.center(10 ** 6) }}",
    ),
    *(
        "{% for i in range(99999) %}{% for j in range(99999) %}",
        "{% endfor %}",
        "{% endif %}",
        "{% if",
        "%}",
        "{{",
        "}}",
        "{#",
        "{% raw %}",
    ),
    *(
        "{% include 'x' %}",
        "{% import 'os' as o %}",
        "{% break %}",
        "{% set messages = [] %}",
        "{{ '\\ud83d' }}",
        "{{ lipsum(99) }}",
    ),
    *(
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ '%099999999d' % 1 }}",
        "{{ '{:>99999999}'.format(1) }}",
        "{{ messages | tojson }}",
    ),
    *(
        "{{ messages.clear() }}",
        "{{ ''.__class__ }}",
        "{{ raise_exception(messages | string * 999) }}",
        "{{ 1e308 * 10 }}",
        "{{ 'x' | indent(10 ** 9) }}",
    ),
    *(
        " | length",
        " | string",
        " | reverse",
        " | join",
        " | int",
        "[0]",
        "[-1]",
        ".a",
        "(",
        ")",
        "'",
        '"',
        " ** 9",
        " * 999999",
        " % 0",
        "\0",
        "\x85",
    ),
)
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "look", "arguments": {"at": "x"}}}],
}
ROWS = [
    {
        "messages": [
            {"role": "user", "content": "two and three"},
            {"role": "assistant", "content": "<think>5</think>\n\nfive"},
        ]
    },
    {"messages": [{"role": "user", "content": "look"}, CALL], "tools": TOOLS},
]


def mutant(random_: random.Random) -> str:
    """A template with one or two places cut out, doubled, exchanged or filled with something odd."""
    text = random_.choice(REAL)
    for _ in range(random_.randint(1, 2)):
        a, b = sorted(random_.randrange(len(text) + 1) for _ in "ab")
        b = min(b, a + random_.choice((1, 5, 40)))
        match random_.randrange(4):
            case 0:
                text = text[:a] + text[b:]
            case 1:
                text = text[:b] + text[a:b] * random_.choice((1, 3, 99)) + text[b:]
            case 2:
                text = (
                    text[:a] + chr(random_.choice((34, 39, 40, 123, 125, 37, 45, 0xD83D, 0x2028))) + text[b:]
                )
            case _:
                text = text[:a] + random_.choice(PIECES) + text[a:]
    return text


@pytest.fixture
def little_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(templates, "CPU_SECONDS", 0.5)
    yield
    templates._ENDED.clear()


def test_a_mutated_template_gives_a_rendering_or_one_sentence(little_time: None) -> None:
    tokenizer, random_ = copy.copy(tiny_tokenizer()), random.Random(SEED)
    good = bad = 0
    turns = ROWS[0]["messages"][:1]
    for _ in range(count(200, 10_000)):
        tokenizer.chat_template = mutant(random_)
        for use in (
            lambda: prepare(
                ROWS,
                tokenizer,
                max_length=999,
                max_dropped=1.0,
                thinking=random_.choice((None, "keep", "drop")),
            ),
            lambda: prepare(ROWS, tokenizer, max_length=999, max_dropped=1.0, supervise="all"),
            lambda: encode_prompt({"messages": turns, "tools": TOOLS}, tokenizer),
            lambda: encode_next_turn(turns, tokenizer),
        ):
            try:
                found = use()
            except DataError as error:
                bad += 1
                assert len(str(error)) <= 400 and "\n" not in str(error), str(error)
            else:
                good += 1
                assert all(
                    (isinstance(one, Sample) and one.supervised) or isinstance(one, int) for one in found
                )
        assert templates_agree(tokenizer, tokenizer, ROWS) in (True, False)
    assert min(good, bad) > 0.05 * (good + bad), "both happen often"
