"""How much faster are the vocabulary-free output losses than the full-vocabulary ones, and does memory depend on V?

    python benchmarks/losses.py --quick
    python benchmarks/losses.py --plot docs/losses.png

Forward and backward from hidden states of width 896 at N positions; heads are random. For every vocabulary size the time
and the growth of peak memory beyond the inputs: cosine by the Gram matrix against cosine from logits, top-k KL and Fisher
from gathered rows against the KL of all logits. The ratio is the full KL's time over the top-k KL's at the largest V.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from common import DEVICE, Result, arguments, finish, fitted_exponent, peak_growth, ratios, seconds
from torch import Tensor, nn

from semalign.data.batches import CANDIDATES
from semalign.maths.bases import gram
from semalign.maths.head import gathered_logits
from semalign.maths.losses import output_cosine_loss
from semalign.maths.topk import fisher_loss, followed_logit, rest_logit, topk_kl_loss, with_rest

POSITIONS, WIDTH, TOP_K = 1024, 896, 32
SIZES = (1024, 4096, 16_384, 65_536, 151_936, 262_144)
QUICK = (1024, 8192, 65_536)
LABELS = {
    "cosine": "cosine, Gram matrix",
    "fisher": "Fisher, 2 x 32 gathered rows",
    "topk_kl": "top-k KL, 2 x 32 gathered rows",
    "cosine_logits": "cosine, all logits",
    "kl_logits": "KL, all logits",
}


def step(kind: str, vocabulary: int) -> Callable[[], Tensor]:
    """One forward and backward of a loss; inputs are made here, outside what is measured."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        head_VE = torch.empty(vocabulary, WIDTH, dtype=torch.bfloat16).normal_(std=0.02)
        hidden_NE = torch.randn(POSITIONS, WIDTH, requires_grad=True)
        labels_N = torch.randint(vocabulary, (POSITIONS,))
        ids_NJ = torch.randint(vocabulary, (POSITIONS, 2 * TOP_K))
        logp_NJ = torch.randn(POSITIONS, 2 * TOP_K).log_softmax(1)
        valid_NJ = torch.ones_like(ids_NJ, dtype=torch.bool)
        others_C = torch.arange(min(vocabulary, CANDIDATES))
        untouched_N = torch.zeros(POSITIONS)
        teacher_NE = torch.randn(POSITIONS, WIDTH)
    others_CE = head_VE[others_C].float()
    gram_EE = gram(head_VE) if kind == "cosine" else None

    def loss() -> Tensor:
        if gram_EE is not None:
            return output_cosine_loss(hidden_NE, head_VE, gram_EE, labels_N)
        if kind in ("topk_kl", "fisher"):
            followed_N = followed_logit(hidden_NE @ others_CE.T, others_C, ids_NJ, valid_NJ)
            rest_N1 = rest_logit(followed_N, untouched_N, untouched_N)
            logits_NJ = gathered_logits(hidden_NE, head_VE, ids_NJ)
            logits, logp, mask = with_rest(logits_NJ, rest_N1, logp_NJ, untouched_N[:, None], valid_NJ)
            if kind == "topk_kl":
                return topk_kl_loss(logits, logp, mask)
            return fisher_loss(logits, logp, logp, mask)
        logits_NV = nn.functional.linear(hidden_NE.bfloat16(), head_VE).float()
        if kind == "cosine_logits":
            return (1 - logits_NV.gather(1, labels_N[:, None])[:, 0] / logits_NV.norm(dim=1)).mean()
        with torch.no_grad():
            teacher_NV = nn.functional.linear(teacher_NE.bfloat16(), head_VE).float()
        ours, theirs = logits_NV.log_softmax(1), teacher_NV.log_softmax(1)
        return nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)

    def both() -> Tensor:
        hidden_NE.grad = None
        value = loss()
        value.backward()
        return value

    return both


def main() -> None:
    """Parse, run, print."""
    parser = arguments(__doc__)
    parser.add_argument("--plot", type=Path, help="PNG file to draw the curves into (needs matplotlib)")
    options = parser.parse_args()
    sizes = QUICK if options.quick else SIZES
    curve: list[Result] = []
    for vocabulary in sizes:
        for kind in LABELS:
            call = seconds(step(kind, vocabulary))
            call()
            curve.append(
                {
                    "vocabulary": vocabulary,
                    "loss": kind,
                    "seconds": min(call() for _ in range(3)),
                    "memory": peak_growth(step, kind, vocabulary),
                }
            )
    ours, theirs = (seconds(step(kind, sizes[-1])) for kind in ("topk_kl", "kl_logits"))
    exponents = [
        {
            "loss": kind,
            **{
                f"{of}_exponent": fitted_exponent(
                    sizes, [max(c[of], 1e-9) for c in curve if c["loss"] == kind]
                )
                for of in ("seconds", "memory")
            },
        }
        for kind in LABELS
    ]
    if options.plot:
        draw(curve, options.plot)
    finish(
        options,
        {
            "positions": POSITIONS,
            "width": WIDTH,
            "vocabulary": sizes[-1],
            **ratios(ours, theirs),
            "exponents": exponents,
            "curve": curve,
        },
    )


def draw(curve: list[Result], path: Path) -> None:
    """Memory and seconds over the vocabulary, a line a loss."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for panel, key, unit in zip(panels, ("memory", "seconds"), (1e6, 1), strict=True):
        for kind, label in LABELS.items():
            lines = [line for line in curve if line["loss"] == kind]
            panel.loglog(
                [line["vocabulary"] for line in lines],
                [line[key] / unit for line in lines],
                "o-",
                label=label,
            )
        panel.set(xlabel="vocabulary", ylabel="MB beyond the inputs" if key == "memory" else "seconds")
        panel.grid(visible=True, which="both", alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
