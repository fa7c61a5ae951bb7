"""What the tests of the jails share."""

from __future__ import annotations

from typing import Any

import pytest

from semalign.jail.process import Backend, Limits, probe

QUICK = Limits(cpu_seconds=1, wall_seconds=5.0, memory_bytes=256 * 2**20)
KINDS = ("bubblewrap", "landlock")


def backend(kind: Any) -> Backend:
    """The backend of that kind; skips the test where this machine has none."""
    found = probe(kind)
    if not isinstance(found, Backend):
        pytest.skip(f"{kind}: {found}")
    return found


def best() -> Backend:
    """The first backend that this machine has."""
    return next((f for kind in KINDS if isinstance(f := probe(kind), Backend)), None) or backend("limits")
