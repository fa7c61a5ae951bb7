"""What of rows and their answers is refused before they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from semalign.config import (
    DataConfig,
)
from semalign.errors import ConfigError

from .refused import assert_refused


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DataConfig(""), "data.dataset_name: expected a dataset, or several with weights, got 'none'"),
        (lambda: DataConfig({"a": float("inf")}), "data.dataset_name.a: expected a weight greater than 0, got inf"),
        (lambda: DataConfig({"a": float("nan")}), "data.dataset_name.a: expected a weight greater than 0, got nan"),
        (lambda: DataConfig("x", heldout_rows=-1), "data.heldout_rows: expected a count of rows, got -1"),
        (lambda: DataConfig("x", max_rows=0), "data.max_rows: expected a positive count or null, got 0"),
        (lambda: DataConfig("x", variants=-1), "data.variants: expected a count of prompts per row, got -1"),
        (lambda: DataConfig("x", max_new_tokens=0), "data.max_new_tokens: expected a positive count, got 0"),
        (lambda: DataConfig("x", max_length=1), "data.max_length: expected at least 2 tokens, got 1"),
        (lambda: DataConfig("x", max_dropped=1.1), "data.max_dropped: expected a share between 0 and 1, got 1.1"),
        (lambda: DataConfig("x", max_dropped=-0.1), "data.max_dropped: expected a share between 0 and 1, got -0.1"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named_with_what_was_expected(
    make: Callable[[], object], said: str
) -> None:
    assert_refused(make, said)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataConfig("x", heldout_rows=0, max_rows=1, max_length=2, max_new_tokens=1, max_dropped=1.0),
        lambda: DataConfig({"a": 1e-9, "b": 3.0}, max_dropped=0.0),
    ],
)
def test_what_lies_just_inside_a_bound_is_taken(make: Callable[[], object]) -> None:
    make()


@pytest.mark.parametrize(
    ("weights", "field"),
    [({"a": 0}, "data.dataset_name.a"), ({}, "data.dataset_name"), ({"a": -1.0}, "a: expected a weight")],
)
def test_weights_are_checked(weights: dict[str, float], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        DataConfig(weights)


def test_one_dataset_has_the_weight_one() -> None:
    assert DataConfig("a").weights == {"a": 1.0}
    assert DataConfig({"a": 3.0, "b": 1.0}).weights == {"a": 3.0, "b": 1.0}


@pytest.mark.parametrize(
    ("changes", "is_generated"),
    [
        ({}, False),
        ({"completions": "teacher"}, True),
        ({"variants": 1}, True),
        ({"variants_by": "teacher"}, False),
    ],
)
def test_the_teacher_writes_where_answers_or_new_prompts_are_asked_for(
    changes: dict[str, Any], is_generated: bool
) -> None:
    assert DataConfig("x", **changes).is_generated is is_generated
