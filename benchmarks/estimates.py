"""How far are `semalign check`'s estimates from what a run then uses?

    python benchmarks/estimates.py --quick
    python benchmarks/estimates.py --teacher DIR --student DIR --rows mbpp_train.jsonl --layers 6

Estimated and used: cache bytes, peak memory (of the GPU where there is one), seconds of attribution, caching and training.
The ratio is estimated over used cache bytes; low and high are the smallest and largest ratio of all quantities.
A step that a recipe does without is left out, where both sides say nothing of it.
"""

import json
import math
from typing import Any

from common import Result, Worker, arguments, finish
from peers import add_pair, task_of
from sides import SemAlign, Task


class Checked(SemAlign):
    """Estimates first, then the run itself, each in the state a user would meet it in."""

    def estimate(self) -> Result:
        """What check says."""
        from rich.console import Console

        from semalign.estimate.check import check

        found = check(self.config, Console(quiet=True))["estimate"]
        return {**found, "peak_bytes": found.get("peak_gpu_bytes", found["peak_bytes"])}

    def used(self) -> Result:
        """What the steps' own results say after they ran."""
        self.prepare()
        self.whole_training()
        results: dict[str, Any] = {
            "attribute": json.loads(self.run.scores.read_text()),
            "cache": json.loads(self.run.manifest.read_text()),
            "train": json.loads((self.folder / "train.json").read_text()),
        }
        return {
            "cache_bytes": results["cache"]["bytes"],
            "peak_bytes": max(r.get("peak_gpu_bytes", r["peak_rss_bytes"]) for r in results.values()),
            "seconds": {step: r["seconds"] for step, r in results.items()},
        }


def compare(task: Task) -> Result:
    """Run both sides, each in a process of its own."""
    with Worker(Checked, task) as side:
        estimated = side.call("estimate")
    with Worker(Checked, task) as side:
        used = side.call("used")
        side.call("close")
    return compared(estimated, used)


def compared(estimated: Result, used: Result) -> Result:
    """Estimated over used, of each quantity of which either side says more than 0; infinite where none was used."""
    lines: list[Result] = []
    taken = _flat(used)
    for quantity, said in _flat(estimated).items():
        came = taken[quantity]
        if said or came:
            ratio = said / came if came else math.inf
            lines.append({"quantity": quantity, "estimated": said, "used": came, "ratio": ratio})
    each = [line["ratio"] for line in lines]
    return {"ratio": each[0], "low": min(each), "high": max(each), "quantities": lines}


def _flat(found: Result) -> dict[str, float]:
    """Bytes, then the seconds of each step."""
    steps = {f"{step}_seconds": value for step, value in found["seconds"].items()}
    return {"cache_bytes": found["cache_bytes"], "peak_bytes": found["peak_bytes"], **steps}


def main() -> None:
    """Parse, run, print."""
    parser = add_pair(arguments(__doc__))
    options = parser.parse_args()
    task = task_of(options)
    finish(options, {"pair": task.name, "rows": task.max_rows, "layers": task.layers, **compare(task)})


if __name__ == "__main__":
    main()
