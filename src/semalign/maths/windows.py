"""Where in a large weight matrix the most sensitive part of a smaller shape lies, and its low-rank factors.

Legend: R rows, C columns, r rank.
"""

import torch
from torch import Tensor

from semalign.errors import ModelError
from semalign.maths._tensors import check_matrix


def best_window(sensitivity_RC: Tensor, shape: tuple[int, int]) -> tuple[int, int]:
    """Top row and left column of the contiguous window of `shape` with the largest sum.

    All sums come from one integral image I, in float64: I[b, r] - I[t, r] - I[b, l] + I[t, l]. Among equal
    sums the first in row-major order wins.
    """
    check_matrix("Sensitivity", sensitivity_RC)
    rows, columns = shape
    if not (1 <= rows <= sensitivity_RC.shape[0] and 1 <= columns <= sensitivity_RC.shape[1]):
        raise ModelError(
            f"A window must fit into its matrix, got a window of {shape} in {tuple(sensitivity_RC.shape)}; "
            "only a smaller model can take a window of a larger one."
        )
    image = torch.nn.functional.pad(sensitivity_RC.double(), (1, 0, 1, 0)).cumsum(0).cumsum(1)
    sums = (
        image[rows:, columns:] - image[:-rows, columns:] - image[rows:, :-columns] + image[:-rows, :-columns]
    )
    top, left = divmod(int(sums.argmax()), sums.shape[1])
    return top, left


def best_span(sums_W: Tensor, size: int, *, stride: int = 1) -> int:
    """Start, a multiple of `stride`, of the run of `size` neighbours with the largest sum; the first among equals."""
    if not 1 <= size <= len(sums_W):
        raise ModelError(f"A span must fit, got {size} of {len(sums_W)} values; shorten the span.")
    running = torch.nn.functional.pad(sums_W.double(), (1, 0)).cumsum(0)
    return int((running[size:] - running[:-size])[::stride].argmax()) * stride


def low_rank(matrix_RC: Tensor, rank: int, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """LoRA factors B = U_r Sigma_r / scale (R, r) and A = V_r' (r, C) from the SVD, in float32.

    scale * B A is the best approximation of that rank; at full rank it is the matrix. Ranks beyond
    min(R, C) are filled with zeros.
    """
    check_matrix("Matrix", matrix_RC)
    u, s, vh = torch.linalg.svd(matrix_RC.float(), full_matrices=False)
    b_Rr, a_rC = u[:, :rank] * (s[:rank] / scale), vh[:rank]
    missing = rank - len(a_rC)
    return torch.nn.functional.pad(b_Rr, (0, max(missing, 0))), torch.nn.functional.pad(
        a_rC, (0, 0, 0, max(missing, 0))
    )
