"""A wrong value in metrics.json is found and named with its place."""

from __future__ import annotations

from typing import Any

import pytest

from semalign.reading import UnreadableError, check_shape
from semalign.run.metrics import Metrics


def metrics(**changes: Any) -> dict[str, Any]:
    student = {"top": ["a"], "kl": [0.1], "lens": [["a"]]}
    row = {"prompt": "p", "expected": ["a"], "teacher": {"top": ["a"], "p": [0.5]}, "before": student}
    return {"tokens": [row], "cka": {"before": [[0.1, 0.2]], "after": [[0.1, None]]}} | changes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cka": {"before": [[0.1, 0.2]], "after": [[0.1], [0.2]]}}, "cka: .*of one size"),
        ({"cka": {"before": [[0.1] * 2000]}}, "cka: .*at most 1000"),
        ({"tokens": [metrics()["tokens"][0] | {"expected": ["a", "b"]}]}, "tokens.0: .*expected 2 tokens"),
        ({"tasks": {"sum": {"n": 1, "before": 5}}}, "tasks.sum.before: expected an object, got 5"),
        ({"tasks": {"sum": {"n": 1e308}}}, "tasks.sum.n: expected a whole number"),
        ({"closeness": {"before": {"kl": "small"}}}, "closeness.before.kl: expected a number, got 'small'"),
        ({"harness": [{"task": "x"}]}, "harness.0.metric: found nothing there"),
        ({"alignment": [{"teacher": 4.5, "student": 1, "fraction": 0.5}]}, "alignment.0: .*once"),
        ({"wall_seconds": float("inf")}, "wall_seconds"),
        ({"movement": [{"layer": 0}]}, "movement.0.layer: expected at least 1, got 0"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(changes: dict[str, Any], said: str) -> None:
    check_shape(Metrics, metrics())
    with pytest.raises(UnreadableError, match=said):
        check_shape(Metrics, metrics(**changes))
