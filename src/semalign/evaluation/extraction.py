"""Which answer a text holds: a letter, a number, or code that defines a function."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings

# -$1,250.50, 3/4, 2 1/2, 1e5, and digits in groups of two and three.
_DIGITS = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = rf"(-?[$€£]?-?)({_DIGITS})([eE][+-]?\d+(?!\w))?(?:/(\d+)|\s(\d+)/(\d+))?"
_ANY_NUMBER = re.compile(rf"(?<![\w.]){_NUMBER}")
_STATED_NUMBER = re.compile(
    # Words, or a sum of which this is the result, may stand between.
    rf"(?:answer\s*(?:is|:|=)\s*:?|####|=>|boxed\{{)[\s(\[]*(?:(?:about|around|approximately|roughly|exactly|only|just)\s+)?"
    rf"(?:[a-z]\s*=\s*)?(?:[\d.,$()\s+*/×÷-]+=\s*)?{_NUMBER}",
    re.IGNORECASE,
)
_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
_MARKS = re.compile(r"`|(?<!\d)\*\*|\*\*(?!\d)|\\[()\[\],;!]|\\(?=[$%])")
_FENCE = re.compile(r"```[ \t]*\w*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_FUTURE = re.compile(r"^from __future__ import .*\n", re.MULTILINE)
_CODE_START = re.compile(r"^(?:def |async def |class |import |from |@)", re.MULTILINE)


def extract_letter(completion: str, options: int) -> str | None:
    """The chosen letter: after the last "answer is", "answer:", "correct option is" or in the last box, else after the last "answer", else
    that of a completion which is or begins with a bare letter."""
    text = _without_marks(completion)
    letter = rf"(?i:(?:the\s+)?(?:option|choice|letter)\s+)?[(\[\"']*([A-{chr(ord('A') + options - 1)}])(?![A-Za-z0-9'])"
    stated = rf"(?i:(?:answer|correct\s+(?:option|choice|letter))\s*(?:is|:|=)\s*:?|boxed\{{)\s*{letter}"
    for pattern in (stated, rf"(?i:answer)\s+{letter}"):
        if found := re.findall(pattern, text):
            return str(found[-1])
    bare = re.match(rf"\s*{letter}(?:[).:,\"'\]]|\s*$|\s*\n)", text)
    return bare.group(1) if bare else None


def extract_number(completion: str) -> float | None:
    """The final number: after the last "answer is", "answer:", "####", "=>" or in the last box, else the last number of all."""
    text = _without_marks(completion)
    found = _STATED_NUMBER.findall(text) or _ANY_NUMBER.findall(text)
    return _value(*found[-1]) if found else None


def without_thinking(text: str) -> str:
    """What is said after the thinking, of which nothing counts; nothing where it has not come to an end."""
    _, end, said = text.rpartition("</think>")
    return said if end or not text.lstrip().startswith("<think>") else ""


def _without_marks(text: str) -> str:
    """A text without the marks of Markdown and LaTeX in and around its words and numbers."""
    text = _WRAPPED.sub(r"\1", _FRACTION.sub(r"\1/\2", text))
    return _MARKS.sub("", text.replace("{,}", ",").replace("−", "-"))


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
    if body and not body[0].isspace():
        body = textwrap.indent(body, "    ")
    return _compilable(prefix + body, defines)


def plain_lines(text: str) -> str:
    """The text with line feeds alone at the ends of its lines."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _context(prefix: str, entry: str) -> str:
    """What a prompt defines beside the function that it asks for."""
    for text in (prefix, f"{prefix.rstrip()}\n    pass"):
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        nodes = [node for node in tree.body if getattr(node, "name", None) != entry]
        return "\n".join(map(ast.unparse, nodes))
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
        except (SyntaxError, ValueError):
            lines.pop()
        else:
            return text + "\n"
    return None
