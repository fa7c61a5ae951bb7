"""What two runs have in common, and what killed ones leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import equal

# Digests of files that have times in them.
OF_THE_TIME = ("files", "seal")


def metrics(run: Path) -> Any:
    """Without times and memory."""
    return timeless(json.loads((run / "metrics.json").read_text()))


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {
            k: v for k, v in value.items() if k not in OF_THE_TIME and "seconds" not in k and "bytes" not in k
        }
        return {k: timeless(v) for k, v in kept.items()}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def leftovers(run: Path) -> list[Path]:
    return [p for p in run.rglob(".*") if p.name != ".lock"]


def assert_equal(ours: Path, straight: Path) -> None:
    """The same student bit for bit, and the same figures."""
    mine, theirs = (load_file(run / "student" / "model.safetensors") for run in (ours, straight))
    assert mine.keys() == theirs.keys() and all(equal(mine[k], theirs[k]) for k in mine)
    assert metrics(ours) == metrics(straight)
    assert not leftovers(ours)
