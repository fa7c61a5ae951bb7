"""What share of the machine's own matrix-product rate does suffix training reach?

    python benchmarks/arithmetic.py --quick
    python benchmarks/arithmetic.py

A random Qwen2 decoder of width 896 (the 0.5B's shape) with its last layers trained in full on cached prefixes and
cached signals, through SuffixModel. Counted are the matrix products alone: 6 operations per weight and token where
weights are trained, and 12 T width per token and layer for the attention's two products; everything else (norms,
softmax, activations, the loss, the optimiser) is time without credit. The rate is that of one product of the MLP's
shape in the same type, measured in between.
"""

import torch
from common import Result, arguments, finish, gemm_rate, seconds
from synthetic import INNER, WIDTH, suffix_step

ROWS, LENGTH = 8, 256


def main() -> None:
    """Parse, run, print."""
    parser = arguments(__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    lines: list[Result] = []
    for dtype in (torch.float32, torch.bfloat16):
        step, operations = suffix_step(ROWS, LENGTH, dtype=dtype)
        timed = seconds(step)
        timed()
        shares, rates = [], []
        for _ in range(2 if options.quick else options.repetitions):
            peak = gemm_rate(ROWS * LENGTH, WIDTH, INNER, dtype)
            rates.append(peak)
            shares.append(operations / timed() / peak)
        name = str(dtype).removeprefix("torch.")
        lines.append(
            {
                "dtype": name,
                "share": sorted(shares)[len(shares) // 2],
                "low": min(shares),
                "high": max(shares),
                "gemm_flops": max(rates),
            }
        )
    best = lines[0]
    finish(
        options,
        {
            "width": WIDTH,
            "tokens": ROWS * LENGTH,
            "ratio": best["share"],
            "low": best["low"],
            "high": best["high"],
            "by_dtype": lines,
        },
    )


if __name__ == "__main__":
    main()
