"""How much faster is an epoch than in the trainers a user would pick instead, and how much smaller?

    python benchmarks/peers.py --quick                              # embedded pair, against trl's GKDTrainer
    python benchmarks/peers.py --teacher DIR --student DIR --rows mbpp_train.jsonl --against gkd --layers 6
    python benchmarks/peers.py ... --to-same-kl peer                # end to end to the same held-out KL

The ratio is the peer's seconds per epoch over SemAlign's. Each side runs in a process of its own, in turn, and its
peak memory is its process's. With --to-same-kl one side's whole training sets a held-out KL; the ratio is the peer's training
time over SemAlign's attribution, caching and training together, both to that KL.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

from common import Result, Worker, arguments, finish, ratios
from sides import EMBEDDED, SemAlign, Task
from trainers import PEERS


def task_of(options: argparse.Namespace) -> Task:
    """The pair and rows of the command line."""
    pair = EMBEDDED
    if options.teacher is not None and not options.quick:
        pair = Task(
            options.teacher,
            options.student,
            options.rows,
            heldout_rows=options.heldout_rows,
            max_rows=options.max_rows,
            batch=options.batch,
        )
    return replace(
        pair,
        layers=options.layers,
        epochs=options.epochs,
        recipe=options.recipe,
        lora_r=options.lora_r,
        lora_alpha=options.lora_alpha,
        learning_rate=options.learning_rate,
        peer_learning_rate=options.peer_learning_rate,
        peer_batch=options.peer_batch,
        peer_rows=options.peer_rows,
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
    parser.add_argument("--batch", type=int, default=8, help="rows a step; the embedded pair has 32")
    parser.add_argument("--peer-batch", type=int, help="none: SemAlign's")
    parser.add_argument("--peer-rows", type=int, help="rows that the peer trains on; none: SemAlign's")
    parser.add_argument("--recipe", default="aligned", help="SemAlign's")
    parser.add_argument("--lora-r", type=int, default=16, help="LoRA's rank on both sides")
    parser.add_argument("--lora-alpha", type=int, default=16, help="SemAlign's; the peer's is 16")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--peer-learning-rate", type=float, help="none: SemAlign's")
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


def to_same_kl(task: Task, options: argparse.Namespace) -> Result:
    """End to end, once: one side's whole training sets a held-out KL, the other side trains until it is as low.

    SemAlign's seconds are attribution, caching, one whole schedule and saving, loading included; the peer's are those of its
    training alone. Whoever follows tries whole schedules of growing length, each from the untouched student, and only the
    first that reaches the goal counts. Both students are measured by one function, outside what is timed; SemAlign's run
    has no held-out rows to cache.
    """
    with (
        Worker(SemAlign, task, {"data": {"heldout_name": None, "heldout_rows": 0}}) as ours,
        Worker(PEERS[options.against], task) as theirs,
    ):
        untouched = theirs.call("heldout_kl")
        theirs.reset_peak()
        if options.to_same_kl == "peer":
            followed = [theirs.call("schedule", options.peer_epochs)]
        spent = ours.call("prepare")
        prepared = sum(spent.values())

        def train(epochs: float) -> Result:
            seconds = ours.call("whole_training", epochs)
            return {
                "epochs": epochs,
                "seconds": prepared + seconds,
                "kl": theirs.call("kl_of", ours.call("student")),
            }

        if options.to_same_kl == "peer":
            own = reach(followed[0]["kl"], train, options.most_epochs)
        else:
            own = [train(task.epochs)]
            followed = reach(own[0]["kl"], lambda n: theirs.call("schedule", n), options.most_epochs)
        memory = {"memory_ours": ours.peak_bytes(), "memory_theirs": theirs.peak_bytes()}
        ours.call("close")
    goal, last = (followed[0], own[-1]) if options.to_same_kl == "peer" else (own[0], followed[-1])
    return {
        "ratio": followed[-1]["seconds"] / own[-1]["seconds"],
        "reached": last["kl"] <= goal["kl"],
        "kl_untouched": untouched,
        "kl_ours": own[-1]["kl"],
        "kl_theirs": followed[-1]["kl"],
        "epochs_ours": own[-1]["epochs"],
        "epochs_theirs": followed[-1]["epochs"],
        "ours": own[-1]["seconds"],
        "theirs": followed[-1]["seconds"],
        "spent": spent,
        "curve_ours": own,
        "curve_theirs": followed,
        **memory,
        "memory_share": memory["memory_ours"] / memory["memory_theirs"],
    }


def reach(kl: float, train: Callable[[int], Result], most_epochs: int) -> list[Result]:
    """Schedules of 1, 2, ... epochs until one ends at most at `kl`."""
    lines: list[Result] = []
    while len(lines) < most_epochs and (not lines or lines[-1]["kl"] > kl):
        lines.append(train(len(lines) + 1))
    return lines


def end_to_end(task: Task, options: argparse.Namespace) -> Result:
    """`to_same_kl`, repeated with one seed after another: the run of the median ratio, with the spread of all."""
    runs = [to_same_kl(replace(task, seed=seed), options) for seed in range(options.repetitions)]
    each = sorted(run["ratio"] for run in runs)
    middle = min(runs, key=lambda run: abs(run["ratio"] - each[len(each) // 2]))
    return {**middle, "low": each[0], "high": each[-1], "repetitions": len(runs)}


def main() -> None:
    """Parse, run, print."""
    parser = add_pair(arguments(__doc__))
    parser.add_argument("--against", choices=sorted(PEERS), default="gkd")
    parser.add_argument(
        "--to-same-kl",
        choices=("ours", "peer"),
        help="end to end instead, to the held-out KL that this side ends at",
    )
    parser.add_argument(
        "--peer-epochs", type=int, default=3, help="of the peer's whole training; trl's own default"
    )
    parser.add_argument("--most-epochs", type=int, default=8, help="of the side that follows")
    parser.add_argument(
        "--every", type=int, default=2, help="the peer's steps between measurements of its KL"
    )
    options = parser.parse_args()
    task = task_of(options)
    if options.to_same_kl:
        result = end_to_end(task, options)
    else:
        result = epochs(task, options.against, options.repetitions)
    setting = {"pair": task.name, "against": options.against, "rows": task.max_rows, "layers": task.layers}
    finish(options, {**setting, **result})


if __name__ == "__main__":
    main()
