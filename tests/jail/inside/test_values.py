"""Values as plain data: every type comes back as itself, and nothing but exact built-in types comes back."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semalign.jail.inside.values import MOST_ITEMS, NotPlainError, decode, encode

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(), st.complex_numbers(allow_nan=False),
    st.decimals(allow_nan=False), st.fractions(),
)  # fmt: skip
KEYS = st.recursive(SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3))
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.sets(KEYS, max_size=4)
        | st.builds(deque, st.lists(inner, max_size=3))
    ),
    max_leaves=20,
)


def there_and_back(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value))))


def types(value: Any) -> Any:
    """The types of a value and of all inside it that has an order."""
    if isinstance(value, dict):
        return dict, [(types(k), types(v)) for k, v in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return type(value), [types(item) for item in value]
    return type(value)


@pytest.mark.filterwarnings(
    "ignore::hypothesis.errors.HypothesisWarning"
)  # of its own long name for the strategy
@given(VALUES)
def test_a_value_comes_back_as_itself_with_its_types(value: Any) -> None:
    found = there_and_back(value)
    assert found == value
    assert types(found) == types(value)


@pytest.mark.parametrize(
    "value",
    [
        True, 1, 1.0, -0.0, math.inf, 2**63, -(2**63), 2**5000, "\ud800", "", b"", bytearray(b"x"), range(1, 9, 2), {1: {2: {3}}},
        frozenset({(1, 2)}), Decimal("1.10"), Fraction(1, 3), deque([1]), {}, set(), (), [], [[]], {"int": 1}, {"a": 1}, 1j,
    ],
)  # fmt: skip
def test_exact_types(value: Any) -> None:
    found = there_and_back(value)
    assert (type(found), found) == (type(value), value)
    assert repr(found) == repr(value)


def test_numbers_that_json_cannot_hold_come_back() -> None:
    assert there_and_back(10**5000) == 10**5000
    assert math.isnan(there_and_back(math.nan))


def test_iterators_and_views_come_back_as_such() -> None:
    assert list(there_and_back(n * n for n in range(4))) == [0, 1, 4, 9]
    assert next(there_and_back(iter([5]))) == 5
    assert list(there_and_back(zip([1], [2], strict=True))) == [(1, 2)]
    table = {"a": 1, "b": 2}
    assert there_and_back(table.keys()) == table.keys()
    assert there_and_back(table.items()) == table.items()
    assert list(there_and_back(table.values())) == [1, 2]


class Same(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


def test_an_instance_of_a_subclass_leaves_as_the_type_itself() -> None:
    point = namedtuple("point", "x y")
    for value, plain in (
        (Same(3), 3),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(int, a=1), {"a": 1}),
        (point(1, 2), (1, 2)),
    ):
        found = there_and_back(value)
        assert type(found) is type(plain) and found == plain
    assert there_and_back(Same(3)) != 4


@pytest.mark.parametrize(
    "value", [len, lambda: 1, int, object(), [len], {"a": object()}, re := __import__("re").match("a", "a")]
)
def test_what_is_no_data_does_not_leave(value: Any) -> None:
    with pytest.raises(NotPlainError, match="cannot leave the sandbox"):
        encode(value)


def test_what_never_ends_does_not_leave() -> None:
    with pytest.raises(NotPlainError, match=str(MOST_ITEMS)):
        encode(itertools.count())
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(RecursionError):
        encode(endless)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["int", "float", "dict", "set", "tuple", "bytes", "keys", "items", "range", "iterator", "x"]
            ),
            inner,
            max_size=2,
        )
    ),
)


@given(JSON)
def test_anything_else_that_arrives_is_refused_or_plain(data: Any) -> None:
    try:
        found = decode(data)
    except (ValueError, TypeError, LookupError, ArithmeticError):
        return
    assert type(found).__module__ in ("builtins", "collections", "decimal", "fractions")
