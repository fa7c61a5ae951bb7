"""Windows against brute force, factors against the matrix itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semalign.errors import ModelError
from semalign.maths.windows import best_span, best_window, low_rank

sizes = st.integers(1, 7)


@settings(max_examples=60)
@given(sizes, sizes, st.data())
def test_the_window_is_the_first_of_the_largest_sums(rows: int, columns: int, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, rows)), data.draw(st.integers(1, columns))
    # Small integers make ties, and exact sums.
    values = data.draw(st.lists(st.integers(0, 3), min_size=rows * columns, max_size=rows * columns))
    matrix = torch.tensor(values, dtype=torch.float32).view(rows, columns)
    sums = {
        (top, left): float(matrix[top : top + height, left : left + width].sum())
        for top in range(rows - height + 1)
        for left in range(columns - width + 1)
    }
    # dicts keep order, and max takes the first: row-major.
    assert best_window(matrix, (height, width)) == max(sums, key=lambda corner: sums[corner])


@settings(max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 3), st.data())
def test_the_span_is_the_first_of_the_largest_sums(
    values: list[int], stride: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, len(values)))
    sums = {i: sum(values[i : i + size]) for i in range(0, len(values) - size + 1, stride)}
    assert best_span(torch.tensor(values).float(), size, stride=stride) == max(sums, key=lambda i: sums[i])


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_factors_at_full_rank_are_the_matrix(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    b, a = low_rank(matrix, 8, scale=0.5)
    assert b.shape == (shape[0], 8) and a.shape == (8, shape[1])
    torch.testing.assert_close(0.5 * b @ a, matrix)


def test_a_lower_rank_loses_exactly_the_smaller_singular_values() -> None:
    matrix = torch.randn(9, 7, generator=torch.Generator().manual_seed(1))
    b, a = low_rank(matrix, 3)
    lost = torch.linalg.svdvals(matrix)[3:]
    assert float((matrix - b @ a).norm()) == pytest.approx(float(lost.norm()), rel=1e-5)


def test_a_window_larger_than_its_matrix_is_refused() -> None:
    with pytest.raises(ModelError, match="must fit"):
        best_window(torch.ones(3, 4), (4, 4))
    with pytest.raises(ModelError, match="must fit"):
        best_span(torch.ones(3), 4)
