"""How much faster is an epoch than in the trainers a user would pick instead, and how much smaller?

    python benchmarks/peers.py --quick                              # embedded pair, against trl's GKDTrainer
    python benchmarks/peers.py --teacher DIR --student DIR --rows mbpp_train.jsonl --against gkd --layers 6
    python benchmarks/peers.py ... --to-same-kl                     # end to end to the same held-out KL

The ratio is the peer's seconds per epoch over SemAlign's. Each side runs in a process of its own, in turn, and its
peak memory is its process's. With --to-same-kl the ratio is the peer's training time until its held-out KL is SemAlign's
over SemAlign's attribution, caching and training together.
"""

import argparse
from dataclasses import replace

from common import Result, Worker, arguments, finish, ratios
from sides import EMBEDDED, PEERS, SemAlign, Task


def task_of(options: argparse.Namespace) -> Task:
    """The pair and rows of the command line."""
    if options.quick or options.teacher is None:
        return replace(EMBEDDED, layers=options.layers, epochs=options.epochs)
    return Task(
        options.teacher,
        options.student,
        options.rows,
        heldout_rows=options.heldout_rows,
        max_rows=options.max_rows,
        layers=options.layers,
        epochs=options.epochs,
    )


def add_pair(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options that say which pair and rows, and how much is trained."""
    parser.add_argument("--teacher", help="folder or .gguf file; none: the embedded pair")
    parser.add_argument("--student")
    parser.add_argument("--rows", help="jsonl file")
    parser.add_argument("--heldout-rows", type=int, default=30)
    parser.add_argument("--max-rows", type=int, default=16)
    parser.add_argument("--layers", type=int, default=1, help="last layers that SemAlign trains")
    parser.add_argument("--epochs", type=int, default=3, help="of SemAlign's whole training")
    parser.add_argument("--repetitions", type=int, default=5)
    return parser


def v1(task: Task, against: str) -> Result:
    """Against the literal version 1, the same objective through the product's recipe `cosine`."""
    return {"recipe": {"name": "cosine", "learning_rate": task.learning_rate}} if against == "v1" else {}


def epochs(task: Task, against: str, repetitions: int) -> Result:
    """Seconds per epoch and peak memory of both sides."""
    with Worker(SemAlign, task, v1(task, against)) as ours, Worker(PEERS[against], task) as theirs:
        prepared = ours.call("prepare")
        cached_peak = ours.peak_bytes()
        ours.call("epoch")
        ours.reset_peak()
        result = ratios(lambda: ours.call("epoch"), lambda: theirs.call("epoch"), repetitions)
        memory = {"memory_ours": ours.peak_bytes(), "memory_theirs": theirs.peak_bytes()}
        ours.call("close")
    return {
        **result,
        **memory,
        "memory_ours_caching": cached_peak,
        "memory_share": max(memory["memory_ours"], cached_peak) / memory["memory_theirs"],
        "prepare_seconds": prepared,
    }


def to_same_kl(task: Task, against: str, most_epochs: int) -> Result:
    """End to end, once: SemAlign from attribution to the trained student, then the peer until its KL is as low."""
    with Worker(SemAlign, task) as side:
        spent = side.call("prepare")
        spent["train"] = side.call("whole_training")
        kl = side.call("heldout_kl")
        side.call("close")
    with Worker(PEERS[against], task) as side:
        untouched = side.call("heldout_kl")
        lines = side.call("until", kl, most_epochs)
    ours, theirs = sum(spent.values()), lines[-1]["seconds"]
    return {
        "ratio": theirs / ours,
        "low": theirs / ours,
        "high": theirs / ours,
        "reached": lines[-1]["kl"] <= kl,
        "kl_untouched": untouched,
        "kl_ours": kl,
        "ours": ours,
        "theirs": theirs,
        "spent": spent,
        "curve": lines,
    }


def main() -> None:
    """Parse, run, print."""
    parser = add_pair(arguments(__doc__))
    parser.add_argument("--against", choices=sorted(PEERS), default="gkd")
    parser.add_argument("--most-epochs", type=int, default=12, help="of the peer, with --to-same-kl")
    parser.add_argument("--to-same-kl", action="store_true")
    options = parser.parse_args()
    task = task_of(options)
    if options.to_same_kl:
        result = to_same_kl(task, options.against, options.most_epochs)
    else:
        result = epochs(task, options.against, options.repetitions)
    setting = {"pair": task.name, "against": options.against, "rows": task.max_rows, "layers": task.layers}
    finish(options, {**setting, **result})


if __name__ == "__main__":
    main()
