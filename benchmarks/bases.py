"""How much faster is the semantic map by blocked Gram matrices than by torch.linalg.pinv, and how much smaller?

    python benchmarks/bases.py --quick            # 16384 x 512 -> 16384 x 384
    python benchmarks/bases.py                    # 32000 x 1536 -> 32000 x 896
    python benchmarks/bases.py --size llama2-13b  # 32000 x 5120 -> 32000 x 4096, ours alone
    python benchmarks/bases.py --size llama3-70b  # 128256 x 8192 -> 128256 x 4096, ours alone

Random heads. The other side forms both pseudo-inverses (V x D), scales their columns to length one and multiplies them.
"""

import torch
from common import Result, arguments, finish, peak_growth, ratios, seconds

from semalign.maths._tensors import unit
from semalign.maths.bases import semantic_map

SIZES = {
    "quick": (16_384, 512, 384),
    "qwen-1.5b": (32_000, 1536, 896),
    "llama2-13b": (32_000, 5120, 4096),
    "llama3-70b": (128_256, 8192, 4096),
}
ALONE = ("llama2-13b", "llama3-70b")


def heads(size: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Random heads of a teacher and a student, in bfloat16 as they come from a checkpoint."""
    vocabulary, wide, narrow = SIZES[size]
    torch.manual_seed(0)
    return tuple(torch.empty(vocabulary, n, dtype=torch.bfloat16).normal_(std=0.02) for n in (wide, narrow))


def by_pinv(teacher_VD: torch.Tensor, student_VE: torch.Tensor) -> torch.Tensor:
    """S_S S_T' from the pseudo-inverses themselves."""
    wide, narrow = (unit(torch.linalg.pinv(w.double()).T) for w in (teacher_VD, student_VE))
    return narrow.T @ wide


def ours_at(size: str) -> object:
    """For `peak_growth`."""
    given = heads(size)
    return lambda: semantic_map(*given)


def pinv_at(size: str) -> object:
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
    given = heads(size)
    if size in ALONE:
        each = [seconds(lambda: semantic_map(*given))() for _ in range(options.repetitions)]
        finish(
            options, {**setting, "seconds": sorted(each)[len(each) // 2], "low": min(each), "high": max(each)}
        )
        return
    setting["memory_theirs"] = peak_growth(pinv_at, size)
    difference = float((semantic_map(*given) - by_pinv(*given)).abs().max() / by_pinv(*given).abs().max())
    result = ratios(
        seconds(lambda: semantic_map(*given)), seconds(lambda: by_pinv(*given)), options.repetitions
    )
    finish(options, {**setting, **result, "relative_difference": difference})


if __name__ == "__main__":
    main()
