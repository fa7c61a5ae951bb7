"""How often an attack is tried: `make attack` sets SEMALIGN_ATTACK for the full number, `make test` has the quick one."""

import os


def count(quick: int, full: int) -> int:
    """The number of tries."""
    return full if os.environ.get("SEMALIGN_ATTACK") else quick
