"""The kinds of functions that the two code families ask for.

Templates use {f} function name, {x} argument, {k} and {m} parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Param = int | str
Reference = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class FunctionKind:
    """Functions of one shape: what they are called, how they are described and how they may be written."""

    name: str
    argument: str
    """"int", "ints", "text" or "texts"."""
    params: str
    """One character a parameter: "n" number 2..60, "s" small number 2..9, "l" letter, "w" short word."""
    descriptions: tuple[str, ...]
    bodies: tuple[str, ...]
    reference: Reference
    """(argument, k, m) -> the right result."""


def _loop(test: str, value: str) -> str:
    return f"out = []\nfor v in {{x}}:\n    if {test}:\n        out.append({value})\nreturn out"


def _both(expression: str) -> tuple[str, str]:
    return (f"return {expression}", f"out = {expression}\nreturn out")


COMPLETE_KINDS: tuple[FunctionKind, ...] = (
    FunctionKind(
        "plus",
        "int",
        "n",
        ("Add {k} to {x}.", "Return {x} raised by {k}."),
        (*_both("{x} + {k}"), "return {k} + {x}"),
        lambda x, k, m: x + k,
    ),
    FunctionKind(
        "keep_over",
        "ints",
        "n",
        ("Keep the items over {k}.", "Return only items larger than {k}."),
        (*_both("[v for v in {x} if v > {k}]"), _loop("v > {k}", "v")),
        lambda x, k, m: [v for v in x if v > k],
    ),
    FunctionKind(
        "sum_and",
        "ints",
        "n",
        ("Sum the items and add {k}.", "Return the total of {x} plus {k}."),
        (*_both("sum({x}) + {k}"), "out = {k}\nfor v in {x}:\n    out += v\nreturn out"),
        lambda x, k, m: sum(x) + k,
    ),
    FunctionKind(
        "cap",
        "int",
        "n",
        ("Cap {x} at {k}.", "Return {x}, but never above {k}."),
        (*_both("min({x}, {k})"), "if {x} > {k}:\n    return {k}\nreturn {x}"),
        lambda x, k, m: min(x, k),
    ),
    FunctionKind(
        "keep_under",
        "ints",
        "n",
        ("Keep the items under {k}.", "Return only items smaller than {k}."),
        (*_both("[v for v in {x} if v < {k}]"), _loop("v < {k}", "v")),
        lambda x, k, m: [v for v in x if v < k],
    ),
    FunctionKind(
        "scale_shift",
        "int",
        "sn",
        ("Multiply {x} by {k}, then add {m}.", "Return {k} times {x} plus {m}."),
        (*_both("{x} * {k} + {m}"), "return {m} + {k} * {x}"),
        lambda x, k, m: x * k + m,
    ),
    FunctionKind(
        "count_over",
        "ints",
        "n",
        ("Count the items over {k}.", "Say how many items exceed {k}."),
        (*_both("sum(v > {k} for v in {x})"), "return len([v for v in {x} if v > {k}])"),
        lambda x, k, m: sum(v > k for v in x),
    ),
    FunctionKind(
        "floor",
        "int",
        "n",
        ("Raise {x} to at least {k}.", "Return {x}, but never below {k}."),
        (*_both("max({x}, {k})"), "if {x} < {k}:\n    return {k}\nreturn {x}"),
        lambda x, k, m: max(x, k),
    ),
    FunctionKind(
        "shift_all",
        "ints",
        "n",
        ("Add {k} to every item.", "Return {x} with each item {k} higher."),
        (*_both("[v + {k} for v in {x}]"), "return list(map(lambda v: v + {k}, {x}))"),
        lambda x, k, m: [v + k for v in x],
    ),
    FunctionKind(
        "top_less",
        "ints",
        "n",
        ("Take {k} off the largest item.", "Return the maximum less {k}."),
        (*_both("max({x}) - {k}"), "return sorted({x})[-1] - {k}"),
        lambda x, k, m: max(x) - k,
    ),
    FunctionKind(
        "between",
        "int",
        "sn",
        ("Tell if {x} lies from {k} to {m}.", "Is {x} in the range {k} to {m}?"),
        (*_both("{k} <= {x} <= {m}"), "return {x} >= {k} and {x} <= {m}"),
        lambda x, k, m: k <= x <= m,
    ),
    FunctionKind(
        "distance",
        "int",
        "n",
        ("Distance of {x} from {k}.", "Return how far {x} is from {k}."),
        (*_both("abs({x} - {k})"), "return abs({k} - {x})"),
        lambda x, k, m: abs(x - k),
    ),
)
WRITE_KINDS: tuple[FunctionKind, ...] = (
    FunctionKind(
        "front",
        "text",
        "w",
        ("puts '{k}' in front of {x}", "starts {x} with '{k}'"),
        (*_both("'{k}' + {x}"), "return ''.join(['{k}', {x}])"),
        lambda x, k, m: k + x,
    ),
    FunctionKind(
        "replace",
        "text",
        "ll",
        ("replaces '{k}' by '{m}' in {x}", "turns each '{k}' of {x} into '{m}'"),
        (*_both("{x}.replace('{k}', '{m}')"), "return '{m}'.join({x}.split('{k}'))"),
        lambda x, k, m: x.replace(k, m),
    ),
    FunctionKind(
        "join",
        "texts",
        "w",
        ("joins {x} with '{k}'", "glues the words of {x} by '{k}'"),
        _both("'{k}'.join({x})"),
        lambda x, k, m: k.join(x),
    ),
    FunctionKind(
        "shout",
        "text",
        "w",
        ("puts {x} in capitals and adds '{k}'", "makes {x} upper case, then '{k}'"),
        (*_both("{x}.upper() + '{k}'"), "{x} = {x}.upper()\nreturn {x} + '{k}'"),
        lambda x, k, m: x.upper() + k,
    ),
    FunctionKind(
        "behind",
        "text",
        "w",
        ("puts '{k}' behind {x}", "ends {x} with '{k}'"),
        (*_both("{x} + '{k}'"), "return ''.join([{x}, '{k}'])"),
        lambda x, k, m: x + k,
    ),
    FunctionKind(
        "count_both",
        "text",
        "ll",
        ("counts '{k}' and '{m}' in {x}", "says how often {x} has '{k}' or '{m}'"),
        (*_both("{x}.count('{k}') + {x}.count('{m}')"), "return sum(c in '{k}{m}' for c in {x})"),
        lambda x, k, m: x.count(k) + x.count(m),
    ),
    FunctionKind(
        "backwards",
        "text",
        "w",
        ("turns {x} around and adds '{k}'", "reverses {x}, then '{k}'"),
        (*_both("{x}[::-1] + '{k}'"), "return ''.join(reversed({x})) + '{k}'"),
        lambda x, k, m: x[::-1] + k,
    ),
    FunctionKind(
        "drop",
        "text",
        "ll",
        ("drops '{k}' and '{m}' from {x}", "deletes each '{k}' and '{m}' of {x}"),
        (
            *_both("{x}.replace('{k}', '').replace('{m}', '')"),
            "return ''.join(c for c in {x} if c not in '{k}{m}')",
        ),
        lambda x, k, m: x.replace(k, "").replace(m, ""),
    ),
    FunctionKind(
        "wrap",
        "text",
        "ll",
        ("puts {x} between '{k}' and '{m}'", "wraps {x} in '{k}' and '{m}'"),
        (*_both("'{k}' + {x} + '{m}'"), "{x} = '{k}' + {x}\nreturn {x} + '{m}'"),
        lambda x, k, m: k + x + m,
    ),
    FunctionKind(
        "with_letter",
        "texts",
        "w",
        ("keeps the words of {x} that start with '{k}'", "picks from {x} what begins with '{k}'"),
        (*_both("[v for v in {x} if v.startswith('{k}')]"), _loop("v.startswith('{k}')", "v")),
        lambda x, k, m: [v for v in x if v.startswith(k)],
    ),
    FunctionKind(
        "first_plus",
        "text",
        "sw",
        ("takes the first {k} letters of {x} and adds '{m}'", "cuts {x} after {k} letters, then '{m}'"),
        (*_both("{x}[:{k}] + '{m}'"), "{x} = {x}[:{k}]\nreturn {x} + '{m}'"),
        lambda x, k, m: x[:k] + m,
    ),
    FunctionKind(
        "repeat",
        "text",
        "sw",
        ("repeats {x} {k} times and adds '{m}'", "writes {x} {k} times, then '{m}'"),
        (*_both("{x} * {k} + '{m}'"), "{x} = {x} * {k}\nreturn {x} + '{m}'"),
        lambda x, k, m: x * k + m,
    ),
)
BASIC_KINDS = ("plus", "keep_over", "sum_and", "cap", "front", "replace", "join", "shout")
"""The kinds whose answers the student was trained on."""
