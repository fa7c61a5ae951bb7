"""How often an attack is tried: in quick form by `make test`, in full by `make attack`, which sets SEMALIGN_ATTACK."""

import os


def count(quick: int, full: int) -> int:
    """The number of tries."""
    return full if os.environ.get("SEMALIGN_ATTACK") else quick
