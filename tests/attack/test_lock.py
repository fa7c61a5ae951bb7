"""Races for one run folder: never two owners, and never none, whatever a dead one left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .counts import count


@pytest.mark.parametrize("processes", [2, 4, 8])
@pytest.mark.parametrize("content", ["none", "dead", "odd"])
def test_of_processes_that_want_a_folder_at_once_one_owns_it(
    tmp_path: Path, processes: int, content: str
) -> None:
    if count(0, 1) == 0 and (processes, content) not in ((4, "none"), (4, "dead")):
        pytest.skip("`make attack` races 2 and 8 processes too, and files of random bytes")
    races = count(25, 1000)
    driver = Path(__file__).with_name("racing.py")
    command = [sys.executable, driver, tmp_path / "run", processes, races, content, 0]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    assert counted["races"] == races and counted["owners"] + counted["killed"] >= races
    assert counted["double"] == counted["failed"] == counted["nobody"] == 0, (counted, done.stderr)
    if races > 20:
        assert counted["killed"] > 0 and counted["refused"] > 0, "the race is one"
