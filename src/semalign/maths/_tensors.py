"""Small helpers shared by the maths files: working precision, unit vectors, shape checks.

Legend: N rows (tokens), D any width, V vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from semalign.errors import ModelError


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """The precision to compute in: float64 if any input has it, else float32 (half is never enough)."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def unit(rows_ND: Tensor) -> Tensor:
    """Scale each row to length 1: x / |x|; a zero row stays zero and has a finite gradient."""
    norm_N1 = torch.linalg.vector_norm(rows_ND, dim=-1, keepdim=True)
    return rows_ND / torch.where(norm_N1 > 0, norm_N1, 1.0)


def row_blocks(count: int, block: int) -> Iterator[slice]:
    """Slices of at most `block` rows that cover `count` rows in order."""
    if block < 1:
        raise ModelError(f"Block and chunk sizes must be at least 1, got {block}; leave the default.")
    for start in range(0, count, block):
        yield slice(start, min(start + block, count))


def check_matrix(name: str, matrix: Tensor, width: int | None = None) -> None:
    """Raise ModelError unless `matrix` is a two-dimensional float tensor (with `width` columns)."""
    if matrix.dim() != 2 or not matrix.is_floating_point():
        raise ModelError(
            f"{name} must be a float matrix (rows x width), got {matrix.dtype} of shape "
            f"{tuple(matrix.shape)}; flatten batch and token axes first."
        )
    if width is not None and matrix.shape[1] != width:
        raise ModelError(
            f"{name} must have {width} columns, got shape {tuple(matrix.shape)}; "
            "check that it belongs to the same model as the other argument."
        )


def check_rows(first: str, second: str, first_rows: int, second_rows: int) -> None:
    """Raise ModelError unless two arguments have the same number of rows."""
    if first_rows != second_rows:
        raise ModelError(
            f"{first} and {second} must have the same number of rows, got {first_rows} and {second_rows}; "
            "pass the same tokens to both (for heads: the vocabulary rows the two models share)."
        )
