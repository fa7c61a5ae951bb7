"""Eight-bit activations: one scale a row, one byte a channel.

Legend: N rows (tokens), E channels.
"""

from typing import Literal

import torch
from torch import Tensor

from semalign.maths._tensors import check_matrix

EightBit = Literal["int8", "fp8"]
LARGEST = {"int8": 127.0, "fp8": 448.0}  # of float8_e4m3fn, the format with three bits of fraction
TYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


def quantise_rows(rows_NE: Tensor, kind: EightBit) -> tuple[Tensor, Tensor]:
    """Codes (N, E) in eight bits and scales (N,) in float32, so that x is about code * scale.

    scale = max |x| of the row / largest code; a row of zeros has scale 1. With a the row's largest magnitude,
    int8:  |x - code * scale| <= a / 254, the same for small and large channels;
    fp8:   |x - code * scale| <= max(|x| / 16, a / 448 / 1024), so channels beside a very large one survive.
    """
    check_matrix("Activations", rows_NE)
    rows_NE = rows_NE.float()
    scale_N = rows_NE.abs().amax(1) / LARGEST[kind]
    scale_N = torch.where(scale_N > 0, scale_N, 1.0)
    scaled_NE = (rows_NE / scale_N[:, None]).clamp(-LARGEST[kind], LARGEST[kind])
    return (scaled_NE.round() if kind == "int8" else scaled_NE).to(TYPES[kind]), scale_N


def dequantise_rows(codes_NE: Tensor, scale_N: Tensor) -> Tensor:
    """code * scale in float32 (N, E)."""
    return codes_NE.float() * scale_N[:, None]


def relative_error(rows_NE: Tensor, restored_NE: Tensor) -> Tensor:
    """|x - restored| / |x| of every row (N,), in float32; 0 for a row of zeros that stays zero."""
    rows_NE = rows_NE.float()
    size_N = rows_NE.norm(dim=1)
    return (rows_NE - restored_NE.float()).norm(dim=1) / torch.where(size_N > 0, size_N, 1.0)
