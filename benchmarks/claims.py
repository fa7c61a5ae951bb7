"""What the benchmarks claim: per claim its script, its bar, and which of its figures are shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Result = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """One question, answered by one script with one ratio."""

    name: str
    title: str
    meaning: str
    """What the ratio says, in a sentence or two."""
    script: str
    options: tuple[str, ...] = ()
    pair: str = "none"
    """`real` adds --teacher, --student and --rows; a run without them leaves the claim out and says so."""
    bar: str = ""
    holds: Callable[[Result], bool] | None = None
    shown: tuple[str, ...] = ()
    """Further keys of the result, for the table."""
    rows: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Lists of the result to print as tables, with their columns."""


TRAINING = ("maths", "methods", "models", "signals", "steps", "training")
TIMED = {
    "peers": TRAINING,
    "prefix": TRAINING,
    "scaling": TRAINING,
    "arithmetic": TRAINING,
    "estimates": (*TRAINING, "estimate"),
    "bases": ("maths",),
    "losses": ("maths",),
    "decoding": ("evaluation", "models"),
}
"""What each script times, below src/semalign: a figure is as old as these files were when it was measured."""


def _exponents_flat(result: Result) -> bool:
    free = [e for e in result["exponents"] if e["loss"] in ("cosine", "fisher", "topk_kl")]
    return all(abs(e["memory_exponent"]) < 0.1 for e in free)


def _estimates_close(result: Result) -> bool:
    limits = {"cache_bytes": 0.15, "peak_bytes": 0.15}
    return all(abs(q["ratio"] - 1) <= limits.get(q["quantity"], 0.3) for q in result["quantities"])


EPOCH = "The ratio is the seconds of a baseline epoch divided by the seconds of a SemAlign epoch, which reads the cache."
MEMORY = ("ours", "theirs", "memory_ours", "memory_theirs", "memory_share")
END = (
    "ours",
    "theirs",
    "kl_untouched",
    "kl_ours",
    "kl_theirs",
    "epochs_ours",
    "epochs_theirs",
    "reached",
    "memory_ours",
)
CURVE = ("epochs", "seconds", "kl")
TO_PEER = "The baseline trains three epochs, its default. SemAlign trains until its held-out KL is as low."
QUANTITIES: dict[str, tuple[str, ...]] = {"quantities": ("quantity", "estimated", "used", "ratio")}
CURVES: dict[str, tuple[str, ...]] = {"exponents": ("loss", "seconds_exponent", "memory_exponent")}


def _epoch(name: str, title: str, against: str, layers: int, pair: str, least: float | None = None) -> Claim:
    return Claim(
        name,
        title,
        f"{EPOCH} Both sides use the same rows, tokens, batch size and learning rate. The memory share also counts "
        "SemAlign's attribution and caching.",
        "peers",
        ("--against", against, "--layers", str(layers)),
        pair,
        bar=f"ratio at least {least:g}, memory at most 40%" if least else "",
        holds=(lambda r: r["ratio"] >= least and r["memory_share"] <= 0.4) if least else None,
        shown=MEMORY,
    )


def _end(name: str, title: str, meaning: str, pair: str, least: float | None, *options: str) -> Claim:
    return Claim(
        name,
        title,
        f"{meaning} SemAlign's seconds include loading, attribution, caching, training and saving. The baseline's seconds "
        "include its training only. The baseline's learning rate was chosen for it beforehand.",
        "peers",
        ("--against", "gkd", *options),
        pair,
        bar=f"ratio at least {least:g}" if least else "",
        holds=(lambda r: r["ratio"] >= least and r["reached"]) if least else None,
        shown=END,
        rows={"curve_ours": CURVE, "curve_theirs": CURVE},
    )


REAL_END = (
    *(
        "--recipe",
        "aligned_output",
        "--layers",
        "24",
        "--lora-alpha",
        "32",
        "--repetitions",
        "3",
        "--to-same-kl",
        "peer",
    ),
    *("--batch", "2", "--learning-rate", "3e-4", "--peer-rows", "128", "--peer-learning-rate", "3e-4"),
)
"""All layers and small steps, as they were chosen for SemAlign on rows of their own."""

FULL = (
    _epoch("gkd-last", "Real pair, last layer, against trl's GKDTrainer", "gkd", 1, "real", 20),
    _epoch("gkd-quarter", "Real pair, last six layers, against trl's GKDTrainer", "gkd", 6, "real", 8),
    _end(
        "gkd-end-to-end",
        "Real pair, end to end to the KL of three epochs of trl's GKDTrainer",
        TO_PEER,
        "real",
        5,
        *REAL_END,
        *("--max-rows", "64", "--peer-batch", "8"),
    ),
    _end(
        "gkd-small-steps",
        "Real pair, end to end to the KL of one epoch of trl's GKDTrainer in steps of two rows",
        "Small steps make the baseline faster too: this is the fastest way to that KL that was found for it. SemAlign trains until its "
        "held-out KL is as low.",
        "real",
        None,
        *REAL_END,
        *("--max-rows", "128", "--peer-batch", "2", "--peer-epochs", "1", "--most-epochs", "3"),
    ),
    _epoch(
        "sft-last",
        "Real pair, last layer, against trl's SFTTrainer with LoRA on all layers",
        "sft",
        1,
        "real",
    ),
    _epoch(
        "v1-last",
        "Real pair, last layer, against a literal implementation of the paper's version 1",
        "v1",
        1,
        "real",
    ),
    Claim(
        "prefix-quarter",
        "Real pair, last six layers, with and without the cached prefix",
        "The ratio is the seconds of an epoch that computes the frozen layers in every step, divided by the seconds of an "
        "epoch that reads their cached output. The losses of both agree; the loss difference is relative.",
        "prefix",
        ("--layers", "6"),
        "real",
        bar="losses equal within 1%",
        holds=lambda r: r["loss_difference"] < 0.01,
        shown=("ours", "theirs", "loss_difference"),
    ),
    Claim(
        "bases",
        "Semantic map of the real pair's widths against torch.linalg.pinv",
        "The ratio is the seconds with the pseudo-inverse divided by the seconds with blocked Gram matrices. Memory excludes the "
        "LM heads themselves.",
        "bases",
        shown=("ours", "theirs", "memory_ours", "memory_theirs", "relative_difference"),
    ),
    Claim(
        "bases-llama2",
        "Semantic map at Llama-2 13B -> 7B size",
        "The ratio is defined as in the previous claim. The pseudo-inverse runs at a quarter of every size, and its seconds are "
        "multiplied by 64.",
        "bases",
        ("--size", "llama2-13b"),
        bar="at most 90 s on two cores",
        holds=lambda r: r["ours_slowest"] <= 90,
        shown=("ours", "ours_slowest", "theirs", "theirs_scaled_by", "memory_ours"),
    ),
    Claim(
        "bases-llama3",
        "Semantic map at Llama-3 70B -> 8B size",
        "The ratio is defined as in the previous claim. The pseudo-inverse runs at an eighth of every size, and its seconds are "
        "multiplied by 512.",
        "bases",
        ("--size", "llama3-70b", "--repetitions", "1"),
        bar="under 6 GB besides the heads",
        holds=lambda r: r["memory_ours"] < 6e9,
        shown=("ours", "theirs", "theirs_scaled_by", "memory_ours"),
    ),
    Claim(
        "losses",
        "Output losses without vocabulary-sized tensors",
        "The ratio is the time of one forward and backward pass of the KL over all logits divided by that of the top-k KL, at "
        "the largest vocabulary size V. The table fits exponents of time and memory over V from 1k to 256k: 0 means "
        "independent of V, 1 means proportional to V.",
        "losses",
        ("--plot", "docs/losses.png"),
        bar="memory of cosine, Fisher and top-k losses independent of V (exponent below 0.1)",
        holds=_exponents_flat,
        shown=("vocabulary", "ours", "theirs"),
        rows=CURVES,
    ),
    Claim(
        "scaling",
        "How costs grow",
        "The ratio is the cost of a training step at the largest vocabulary size divided by the cost at the smallest. The table "
        "gives the exponent of the cost over each size.",
        "scaling",
        ("--plot", "docs/scaling.png"),
        bar="ratio at most 1.1",
        holds=lambda r: r["ratio"] <= 1.1,
        rows={"curves": ("curve", "exponent", "sizes", "seconds")},
    ),
    Claim(
        "arithmetic",
        "Share of the machine's matrix-product rate",
        "The ratio is the rate of operations that training the last layers reaches in its matrix products, divided by the rate of "
        "a single such product. The model has width 896.",
        "arithmetic",
        bar="at least 0.5",
        holds=lambda r: r["ratio"] >= 0.5,
        rows={"by_dtype": ("dtype", "share", "low", "high", "gemm_flops")},
    ),
    Claim(
        "decoding",
        "Answers to 100 prompts against transformers' generate",
        "The ratio is the seconds of transformers' generate on the same padded batch divided by ours. The share is the time of the weights' "
        "products alone divided by ours.",
        "decoding",
        shown=("ours", "theirs", "tokens", "tokens_per_second", "share"),
    ),
    Claim(
        "estimates",
        "Embedded pair: estimate of `semalign check` against actual use",
        "The ratio is the estimated size of the cache divided by its actual size. The range in brackets is over all quantities in "
        "the table.",
        "estimates",
        bar="bytes within 15%, seconds within 30%",
        holds=_estimates_close,
        rows=QUANTITIES,
    ),
    Claim(
        "estimates-real",
        "Real pair: estimate of `semalign check` against actual use",
        "The same comparison with six trained layers and three epochs.",
        "estimates",
        ("--layers", "6"),
        "real",
        bar="bytes within 15%, seconds within 30%",
        holds=_estimates_close,
        rows=QUANTITIES,
    ),
)

QUICK = (
    _epoch("quick-gkd", "Embedded pair, last layer, against trl's GKDTrainer", "gkd", 1, "none"),
    _epoch("quick-sft", "Embedded pair, last layer, against trl's SFTTrainer with LoRA", "sft", 1, "none"),
    _epoch(
        "quick-v1",
        "Embedded pair, last layer, against a literal implementation of the paper's version 1",
        "v1",
        1,
        "none",
    ),
    _end(
        "quick-end-to-end",
        "Embedded pair, end to end to the KL of three epochs of trl's GKDTrainer",
        TO_PEER,
        "none",
        None,
        "--layers",
        "4",
        "--to-same-kl",
        "peer",
        "--repetitions",
        "1",
    ),
    Claim(
        "quick-prefix",
        "Embedded pair, with and without the cached prefix",
        "The same comparison as on the real pair.",
        "prefix",
        shown=("ours", "theirs", "loss_difference"),
    ),
    *(
        Claim(
            f"quick-{c.name}",
            f"{c.title}, small sizes",
            c.meaning,
            c.script,
            bar=c.bar,
            holds=c.holds,
            shown=c.shown,
            rows=c.rows,
        )
        for c in FULL
        if c.name in ("bases", "losses", "scaling", "arithmetic", "decoding", "estimates")
    ),
)
