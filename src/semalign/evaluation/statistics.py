"""Intervals for reported figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

Z95 = 1.959963984540054  # standard normal quantile of 0.975


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95% Wilson score interval of a proportion; holds up at 0 and 1 and for few trials."""
    if trials == 0:
        return 0.0, 1.0
    p, z2 = successes / trials, Z95**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_bootstrap(
    ours: Sequence[float], theirs: Sequence[float], *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95% interval of mean(ours - theirs) over the same items, by resampling items."""
    difference = torch.tensor(ours, dtype=torch.float64) - torch.tensor(theirs, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(difference), (draws, len(difference)), generator=generator)
    low, high = torch.quantile(
        difference[picks].mean(1), torch.tensor([0.025, 0.975], dtype=torch.float64)
    ).tolist()
    return low, high
