"""How do costs grow with rows, sequence length, vocabulary, teacher size and the k of the top-k?

    python benchmarks/scaling.py --quick
    python benchmarks/scaling.py --plot docs/scaling.png

One size varies, the others stay (8 rows of 128 tokens, half of them supervised, V 32000, k 32, 2 layers of width 896). For
each curve the least-squares exponent of cost over size: 1 is proportional, 0 is free. The ratio is the cost of a training
step at the largest vocabulary over that at the smallest.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import Result, arguments, finish, fitted_exponent, ratios, seconds
from synthetic import suffix_step, teacher_pass

Make = Callable[[int], Callable[[], Any]]


def curves(is_quick: bool) -> dict[str, tuple[Make, Sequence[int]]]:
    """Name -> how to make the call for a size, and the sizes."""

    def sizes(first: int, count: int) -> list[int]:
        return [first * 2**n for n in range(min(count, 3) if is_quick else count)]

    return {
        "training step, rows": (lambda n: suffix_step(n, 128, layers=2)[0], sizes(2, 5)),
        "training step, tokens a row": (lambda n: suffix_step(8, n, layers=2)[0], sizes(32, 5)),
        "training step, vocabulary": (
            lambda n: suffix_step(8, 128, layers=2, vocabulary=n)[0],
            sizes(4000, 7),
        ),
        "training step, k": (lambda n: suffix_step(8, 128, layers=2, top_k=n)[0], sizes(8, 6)),
        "training step, trained layers": (lambda n: suffix_step(8, 128, layers=n)[0], sizes(1, 4)),
        "caching, rows": (lambda n: teacher_pass(n, 128), sizes(2, 5)),
        "caching, teacher layers": (lambda n: teacher_pass(8, 128, layers=n), sizes(2, 4)),
        "caching, vocabulary": (lambda n: teacher_pass(8, 128, layers=2, vocabulary=n), sizes(4000, 6)),
    }


def main() -> None:
    """Parse, run, print."""
    parser = arguments(__doc__)
    parser.add_argument("--plot", type=Path, help="PNG file to draw the curves into (needs matplotlib)")
    options = parser.parse_args()
    lines: list[Result] = []
    repetitions = 3 if options.quick else 5
    for name, (make, sizes) in curves(options.quick).items():
        costs = []
        for size in sizes:
            call = seconds(make(size))
            call()
            costs.append(min(call() for _ in range(repetitions)))
        lines.append(
            {"curve": name, "exponent": fitted_exponent(sizes, costs), "sizes": list(sizes), "seconds": costs}
        )
    if options.plot:
        draw(lines, options.plot)
    make, sizes = curves(options.quick)["training step, vocabulary"]
    result = ratios(seconds(make(sizes[0])), seconds(make(sizes[-1])))
    finish(
        options, {"vocabularies": [{"smallest": sizes[0], "largest": sizes[-1]}], **result, "curves": lines}
    )


def draw(lines: Sequence[Result], path: Path) -> None:
    """One panel a curve, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 4, figsize=(13, 6), constrained_layout=True)
    for panel, line in zip(panels.flat, lines, strict=True):
        cost, of = line["curve"].split(", ")
        panel.loglog(line["sizes"], line["seconds"], "o-", color="#2563eb")
        panel.set(title=f"{cost}\nexponent {line['exponent']:.2f}", xlabel=of, ylabel="seconds")
        panel.grid(visible=True, which="both", alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
