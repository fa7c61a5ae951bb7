"""How much an attack tries: a handful in `make test`, all of it where the environment variable SEMALIGN_ATTACK is set."""

from __future__ import annotations

import os


def count(quick: int, full: int) -> int:
    """`full` where SEMALIGN_ATTACK is set, else `quick`."""
    return full if os.environ.get("SEMALIGN_ATTACK") else quick
