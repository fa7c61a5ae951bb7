"""What of a measurement is refused."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from semalign.config import (
    EvaluationConfig,
)
from semalign.errors import ConfigError


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: EvaluationConfig(batch_size=0), "evaluation.batch_size"),
        (lambda: EvaluationConfig(max_new_tokens=0), "evaluation.max_new_tokens"),
        (lambda: EvaluationConfig(max_items=-1), "evaluation.max_items"),
        (lambda: EvaluationConfig(cka_rows=-1), "evaluation.cka_rows"),
    ],
)
def test_counts_are_checked_before_anything_runs(make: Callable[[], object], field: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(field)):
        make()


@pytest.mark.parametrize(
    "label", ["..", "../../victim", "/etc", "a/b", "", "-x", "before", "after", "teacher"]
)
def test_a_baseline_s_name_is_no_path_and_no_name_that_is_taken(label: str) -> None:
    with pytest.raises(
        ConfigError, match=r"evaluation\.baselines: expected names of letters, digits, \. _ and -"
    ):
        EvaluationConfig(baselines={label: {"name": "cross_entropy"}})
    with pytest.raises(ConfigError, match=r"evaluation\.baselines"):
        EvaluationConfig(baselines=(label,))
