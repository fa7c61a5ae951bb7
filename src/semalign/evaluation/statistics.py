"""Intervals for reported figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, pvariance, variance

Z95 = 1.959963984540054  # standard normal quantile of 0.975


def interval_of_shares(shares: Sequence[float], answers: int) -> tuple[float, float]:
    """95% interval of the mean of items' shares of right answers.

    The Wilson score interval for n p (1 - p) / v independent answers, with n items, their mean p and the variance v of their shares: n where
    an item has one answer, more where it has several that differ, and never more than there are answers.

    Args:
        answers: how many there are to all items together.
    """
    p = mean(shares) if shares else 0.0
    variance = pvariance(shares) if shares else 0.0
    trials = min(float(answers), len(shares) * p * (1 - p) / variance) if variance else float(len(shares))
    return wilson_interval(p * trials, trials)


def wilson_interval(successes: float, trials: float) -> tuple[float, float]:
    """95% Wilson score interval of a proportion; holds up at 0 and 1 and for few trials."""
    if trials == 0:
        return 0.0, 1.0
    p, z2 = successes / trials, Z95**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_change(tasks: Sequence[Sequence[Sequence[float]]]) -> tuple[float, float, float]:
    """Mean over tasks of the mean change of items' shares of right answers, and the ends of its 95% interval.

    The normal interval for independent items; a task with one item says nothing of chance, so that the interval has no ends.

    Args:
        tasks: for each the shares before and after, of the same items.
    """
    changes = [[b - a for a, b in zip(before, after, strict=True)] for before, after in tasks]
    middle = mean(mean(c) for c in changes)
    spread = sum(variance(c) / len(c) if len(c) > 1 else math.inf for c in changes)
    half = Z95 * math.sqrt(spread) / len(changes)
    return middle, middle - half, middle + half
