"""Which answer a text holds: a letter, a number, or code that defines a function."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings

from semalign.jail.inside.checker import NO_PYTHON

# -$1,250.50, 3/4, 2 1/2, 1e5, and digits in groups of two and three.
_DIGITS = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_UNSIGNED = rf"({_DIGITS})([eE][+-]?\d+(?!\w))?(?:/(\d+)|[ \t](\d+)/(\d+))?"
_SIGN = r"-?[$€£]?-?"
# The 2 of cm^2 or cm^{2} is none.
_ANY_NUMBER = re.compile(rf"(?<![\w.^])(?<!\^[{{-])({_SIGN}){_UNSIGNED}")
# 5, ($2.50), 50% or 3 red apples, joined as in 5 x 3 = or 50% of 20 =.
_TERM = r"\.?\d[\d.,]*(?: \d+/\d+)?[)%$€£ \t]*(?:[a-z]+\b[) \t]*){0,2}"
_SUM = rf"(?:-[ \t]*)?{_TERM}(?:(?:[-+*/×÷^]{{1,2}}|x|of)[-($€£ \t]*{_TERM})+=\s*"
_STATED_NUMBER = re.compile(
    # Words, or sums of which this is the result, may stand between. A minus apart from its number is no mark of a list.
    rf"(?:answer\s*(?:is|:|=)|####|=>|boxed\{{)[\s:(\[$]*(?:(?:about|around|approximately|roughly|exactly|only|just)\s+)?"
    rf"(?:[a-z]\s*=\s*)?(?:{_SUM})*((?:(?<!\n)-[ \t]+)?{_SIGN}){_UNSIGNED}",
    re.IGNORECASE,
)
_BEFORE_FRACTION = re.compile(r"(?<=\d)\s*(?=\\[dt]?frac\{)")
_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
_TIMES = re.compile(r"\\(?:times|cdot)(?![a-z])|·")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
_EMPHASIS = re.compile(r"(?<![\w*])[*_]{1,3}(?=\S)(.{0,200}?\S)[*_]{1,3}(?![\w*])")
_MARKS = re.compile(r"`|(?<!\d)\*\*|\*\*(?!\d)|\\[()\[\],;!]|\\(?=[$%])")
_FENCE = re.compile(r"```[ \t]*\w*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_FUTURE = re.compile(r"^from __future__ import .*\n", re.MULTILINE)
# What a model thinks before it answers, from the first mark to the second. In Harmony every channel but the final one is thought.
_THINKING = (
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel|>", "<|channel|>final<|message|>"),
)
_CODE_START = re.compile(r"^(?:def |async def |class |import |from |@)", re.MULTILINE)


def extract_letter(completion: str, options: int) -> str | None:
    """The chosen letter: after the last "answer is", "answer:", "correct option is" or in the last box, else after the last "answer", else
    that of a completion which is or begins with a bare letter."""
    text, last = _without_marks(completion), chr(ord("A") + options - 1)
    # A lower-case letter is one only in brackets, as "a" is a word.
    one = rf"[A-{last}](?![A-Za-z0-9]|'[a-z])|(?<=[(\[])[a-{last.lower()}](?=[)\]])"
    letter = rf"(?i:(?:the\s+)?(?:option|choice|letter)\s+)?[(\[\"'$_*]*({one})"
    stated = rf"(?i:(?:answer|correct\s+(?:option|choice|letter))\s*(?:is|:|=)|boxed\{{)[\s:]*{letter}"
    for pattern in (stated, rf"(?i:answer)\s+{letter}"):
        if found := re.findall(pattern, text):
            return str(found[-1]).upper()
    bare = re.match(rf"\s*{letter}(?:[).:,\"'\]$]|\s*$|\s*\n)", text)
    return bare.group(1).upper() if bare else None


def extract_number(completion: str) -> float | None:
    """The final number: after the last "answer is", "answer:", "####", "=>" or in the last box, else the last number of all."""
    text = _without_marks(completion)
    found = _STATED_NUMBER.findall(text) or _ANY_NUMBER.findall(text)
    return _value(*found[-1]) if found else None


def without_thinking(text: str) -> str:
    """What is said after the thinking, of which nothing counts; nothing where it has not come to an end."""
    for start, end in _THINKING:
        if end in text:
            return text.rpartition(end)[2]
        if text.lstrip().startswith(start):
            return ""
    return text


def thinking_opened(prompt: str) -> str:
    """The mark at the end of a rendered prompt after which a model thinks; "" where it may answer at once."""
    return next((start for start, _ in _THINKING if prompt.rstrip().endswith(start)), "")


def _without_marks(text: str) -> str:
    """A text without the marks of Markdown and LaTeX in and around its words and numbers."""
    # 2\frac{1}{2} is 2 1/2.
    text = _WRAPPED.sub(r"\1", _FRACTION.sub(r"\1/\2", _BEFORE_FRACTION.sub(" ", text)))
    text = _TIMES.sub("×", text.replace(r"\div", "÷").replace("{,}", ",").replace("−", "-"))
    return _MARKS.sub("", _EMPHASIS.sub(r"\1", text))


def _value(sign: str, digits: str, exponent: str, under: str, above: str, under_that: str) -> float:
    value = float(digits.replace(",", "") + exponent)
    # As floats: Python reads no integer of thousands of digits, and a model may write one.
    if under and float(under):
        value /= float(under)
    elif above and float(under_that):
        value += float(above) / float(under_that)
    return -value if "-" in sign else value


def extract_code(completion: str, entry: str, prefix: str = "") -> str | None:
    """Python source that defines ``entry``, from a completion with or without fences; None when nothing compiles.

    An answer may be the whole of a module, begin at its definition, or be the body alone, which then continues ``prefix``. It has
    the prompt's imports, helpers and constants in every case, as it was written below them: those of ``prefix`` stand before it, and
    what the answer defines anew replaces them. Lines after the code that are no Python are dropped.
    """
    text, prefix = plain_lines(completion), plain_lines(prefix)
    defines = re.compile(rf"^(?:async )?def {re.escape(entry)}\s*\(", re.MULTILINE)
    blocks = _FENCE.findall(text)
    # A text with a fence that closes and none that opens is code up to there.
    open_text = text.partition("\n```")[0]
    is_defined = False
    for source in map(textwrap.dedent, (*blocks, open_text, text)):
        if definition := defines.search(source):
            is_defined = True
            # Prose may begin as code does: "from here on".
            starts = [m.start() for m in _CODE_START.finditer(source) if m.start() <= definition.start()]
            codes = (_compilable(source[start:], defines) for start in starts)
            # A draft that does not compile may come before the code.
            if code := next((code for code in codes if code is not None), None):
                return _below(_context(prefix, entry), code)
    if is_defined or not defines.search(prefix):
        return None
    body = (blocks[0] if blocks else open_text).strip("\n")
    indent = body[: len(body) - len(body.lstrip())]
    # It may have another indent than the prompt, or lack it in its first line alone.
    forms = [
        *([body] if indent else []),
        re.sub(rf"^{indent}(?=.)", "    ", body, flags=re.MULTILINE),
        "    " + body.lstrip(),
    ]
    longest = max(
        (_compilable(prefix + form, defines) or "" for form in forms), key=lambda code: code.count("\n")
    )
    # A prompt with a docstring compiles without any body.
    return longest if len(longest.rstrip()) > len(prefix.rstrip()) else None


def plain_lines(text: str) -> str:
    """The text with line feeds alone at the ends of its lines."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _context(prefix: str, entry: str) -> str:
    """What a prompt defines beside the function that it asks for."""
    for text in (prefix, f"{prefix.rstrip()}\n    pass"):
        try:
            nodes = [node for node in ast.parse(text).body if getattr(node, "name", None) != entry]
            return "\n".join(map(ast.unparse, nodes))
        except NO_PYTHON:
            continue
    return ""


def _below(context: str, code: str) -> str:
    """Code below other code; imports from __future__ may only stand at the top of both."""
    if not context.strip():
        return code
    return "".join(_FUTURE.findall(code)) + f"{context}\n\n{_FUTURE.sub('', code)}"


def _compilable(source: str, defines: re.Pattern[str]) -> str | None:
    """The longest run of whole lines from the start that compiles and still defines the function."""
    lines = source.rstrip().split("\n")
    while lines and defines.search(text := "\n".join(lines)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd code of a model is no news to the user
                compile(text, "completion", "exec")
        except NO_PYTHON:
            lines.pop()
        else:
            return text + "\n"
    return None
