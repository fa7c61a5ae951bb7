"""The order of rows in an epoch: every row once, like lengths together, other batches in every epoch."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.trainer_pt_utils import get_length_grouped_indices

from semalign.training.collator import LENGTH_NOISE, EpochSampler, grouped

LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=80)


def steps_of(lengths: list[int], step: int, seed: int = 0) -> list[list[int]]:
    order = grouped(lengths, step, torch.Generator().manual_seed(seed))
    return [order[n : n + step] for n in range(0, len(order), step)]


@given(LENGTHS, st.integers(1, 20), st.integers(0, 5))
def test_every_row_comes_once_and_the_longest_in_the_first_full_step(
    lengths: list[int], step: int, seed: int
) -> None:
    steps = steps_of(lengths, step, seed)
    assert sorted(row for rows in steps for row in rows) == list(range(len(lengths)))
    full = [max(lengths[row] for row in rows) for rows in steps if len(rows) == step]
    assert not full or full[0] == max(full)


@given(LENGTHS, st.integers(1, 20), st.integers(0, 5))
def test_of_two_full_steps_one_has_the_longer_rows_but_for_the_noise(
    lengths: list[int], step: int, seed: int
) -> None:
    full = [[lengths[row] for row in rows] for rows in steps_of(lengths, step, seed) if len(rows) == step]
    most = (1 + LENGTH_NOISE) / (1 - LENGTH_NOISE)
    for one, other in combinations(full, 2):
        assert max(one) <= most * min(other) or max(other) <= most * min(one)


@pytest.mark.parametrize(("step", "share"), [(16, 0.7), (32, 0.5)])
def test_few_rows_have_less_padding_than_in_the_groups_of_transformers(step: int, share: float) -> None:
    draw = random.Random(0)
    lengths = [min(500, int(draw.lognormvariate(5, 0.5))) for _ in range(240)]

    def padding(order: list[int]) -> float:
        steps = [[lengths[row] for row in order[n : n + step]] for n in range(0, len(order), step)]
        return 1 - sum(lengths) / sum(max(rows) * len(rows) for rows in steps)

    ours, theirs = (
        padding(order(lengths, step, generator=torch.Generator().manual_seed(0)))
        for order in (grouped, get_length_grouped_indices)
    )
    assert ours < share * theirs


def test_epochs_have_other_batches_and_a_resumed_one_the_same() -> None:
    lengths, epoch = [100 + n % 7 for n in range(64)], 0
    sampler = EpochSampler(lengths, 8, 3, epoch=lambda: epoch)
    first, again = list(sampler), list(sampler)
    epoch = 1
    second = list(sampler)
    batches = [{frozenset(order[n : n + 8]) for n in range(0, 64, 8)} for order in (first, second)]
    assert first == again and len(batches[0] & batches[1]) < 2
    other = EpochSampler(lengths, 8, 4, epoch=lambda: 0)
    assert list(other) != first


def test_rows_that_only_keep_a_process_in_step_are_marked() -> None:
    order = list(EpochSampler([5, 6, 7], 4, 0, multiple=4, epoch=lambda: 0))
    assert sorted(order[:3]) == [0, 1, 2] and order[3] == ~order[2]
