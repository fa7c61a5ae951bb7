"""How much faster is the semantic map by blocked Gram matrices than by torch.linalg.pinv, and how much smaller?

    python benchmarks/bases.py --quick            # 16384 x 512 -> 16384 x 384
    python benchmarks/bases.py                    # 32000 x 1536 -> 32000 x 896
    python benchmarks/bases.py --size llama2-13b  # 32000 x 5120 -> 32000 x 4096
    python benchmarks/bases.py --size llama3-70b  # 128256 x 8192 -> 128256 x 4096

Random heads. The other side forms both pseudo-inverses (V x D), scales their columns to length one and multiplies them. At
the two large sizes it would take hours: it is run with every size divided by `theirs_scaled_by`'s cube root, and its seconds
are multiplied by that number, since its cost is cubic.
"""

from collections.abc import Callable
from typing import Any

import torch
from common import DEVICE, Result, arguments, finish, peak_growth, ratios, seconds

from semalign.maths._tensors import unit
from semalign.maths.bases import semantic_map

SIZES = {
    "quick": (16_384, 512, 384),
    "qwen-1.5b": (32_000, 1536, 896),
    "llama2-13b": (32_000, 5120, 4096),
    "llama3-70b": (128_256, 8192, 4096),
}
SHRUNK = {"llama2-13b": 4, "llama3-70b": 8}
"""Sizes at which the other side is run with V, D and E divided by this."""


def heads(size: str, divisor: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random heads of a teacher and a student, in bfloat16 as they come from a checkpoint."""
    vocabulary, wide, narrow = (n // divisor for n in SIZES[size])
    torch.manual_seed(0)
    teacher_VD, student_VE = (
        torch.empty(vocabulary, n, dtype=torch.bfloat16, device=DEVICE).normal_(std=0.02)
        for n in (wide, narrow)
    )
    return teacher_VD, student_VE


def by_pinv(teacher_VD: torch.Tensor, student_VE: torch.Tensor) -> torch.Tensor:
    """S_S S_T' from the pseudo-inverses themselves."""
    wide, narrow = (unit(torch.linalg.pinv(w.double()).T) for w in (teacher_VD, student_VE))
    return narrow.T @ wide


def ours_at(size: str) -> Callable[[], Any]:
    """For `peak_growth`."""
    given = heads(size)
    return lambda: semantic_map(*given)


def pinv_at(size: str) -> Callable[[], Any]:
    """For `peak_growth`."""
    given = heads(size)
    return lambda: by_pinv(*given)


def main() -> None:
    """Parse, run, print."""
    parser = arguments(__doc__)
    parser.add_argument("--size", choices=list(SIZES), default="qwen-1.5b")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    size = "quick" if options.quick else options.size
    vocabulary, wide, narrow = SIZES[size]
    setting: Result = {"size": size, "vocabulary": vocabulary, "teacher_width": wide, "student_width": narrow}
    setting["memory_ours"] = peak_growth(ours_at, size)
    divisor = SHRUNK.get(size, 1)
    given, small = heads(size), heads(size, divisor)
    difference = float((semantic_map(*small) - by_pinv(*small)).abs().max() / by_pinv(*small).abs().max())
    each: list[float] = []

    def ours() -> float:
        each.append(seconds(lambda: semantic_map(*given))())
        return each[-1]

    def theirs() -> float:
        return seconds(lambda: by_pinv(*small))() * divisor**3

    if divisor == 1:
        setting["memory_theirs"] = peak_growth(pinv_at, size)
    result = ratios(ours, theirs, options.repetitions)
    finish(
        options,
        {
            **setting,
            **result,
            "ours_slowest": max(each),
            "theirs_scaled_by": divisor**3,
            "relative_difference": difference,
        },
    )


if __name__ == "__main__":
    main()
