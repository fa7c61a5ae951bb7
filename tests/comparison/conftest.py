"""A whole comparison that the tests of its parts look into."""

from __future__ import annotations

from pathlib import Path

import pytest

from semalign.cli import main

from .small import write


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison from beginning to end in worker processes, one method at equal time too."""
    path = write(tmp_path_factory.mktemp("compare") / "straight", equal_time=["cross_entropy"])
    assert main(["compare", str(path), "--quiet"]) == 0
    return path
