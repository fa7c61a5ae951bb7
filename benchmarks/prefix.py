"""How much faster is an epoch with the frozen prefix cached than with it computed in every step?

    python benchmarks/prefix.py --quick
    python benchmarks/prefix.py --teacher DIR --student DIR --rows mbpp_train.jsonl --layers 6

The two sides differ in train.cache_prefix alone, and their losses agree (`loss_difference`).
"""

from common import Worker, arguments, finish, ratios
from peers import add_pair, task_of
from sides import SemAlign


def main() -> None:
    """Parse, run, print."""
    parser = add_pair(arguments(__doc__))
    options = parser.parse_args()
    task = task_of(options)
    with Worker(SemAlign, task) as ours, Worker(SemAlign, task, {"train": {"cache_prefix": False}}) as theirs:
        for side in (ours, theirs):
            side.call("prepare")
            side.call("epoch")
        losses = [side.call("last_loss") for side in (ours, theirs)]
        result = ratios(lambda: ours.call("epoch"), lambda: theirs.call("epoch"), options.repetitions)
        for side in (ours, theirs):
            side.call("close")
    setting = {"pair": task.name, "rows": task.max_rows, "layers": task.layers}
    finish(options, {**setting, **result, "loss_difference": abs(losses[0] - losses[1]) / losses[1]})


if __name__ == "__main__":
    main()
