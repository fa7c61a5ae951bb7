"""SIGINT and SIGTERM in every step: one line that says how to go on, a code of their own, and the same result in the end."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from .commands import Commands, Strike
from .counts import count
from .runs import assert_equal

CODES = {"SIGINT": 130, "SIGTERM": 143}
# A path that each step alone writes.
PLACES = {
    "generate": "rows.part",
    "attribute": "scores.json",
    "pair": "pairs.json",
    "cache": "targets/teacher",
    "train": "checkpoint-1",
    "evaluate": "metrics.json",
    "report": "report.html",
}


@pytest.mark.parametrize("of", ["transfer", "step"])
def test_each_step_ends_on_a_signal_and_the_same_command_goes_on(
    ready: Commands, config: Path, straight: Path, tmp_path: Path, of: str
) -> None:
    if of == "step" and count(0, 1) == 0:
        pytest.skip("`make attack` signals the commands of single steps too; they share the handler")
    run = tmp_path / "run"
    for number, (step, place) in enumerate(PLACES.items()):
        if count(0, 1) == 0 and step in ("attribute", "pair", "report"):
            continue
        if (step, of) == ("report", "step"):
            continue  # it has no config, and is asked for again by its own name
        name = ["SIGTERM", "SIGINT"][number % 2]
        words = [of if of == "transfer" else step, str(config), "--output_dir", str(run)]
        ended = ready.run(words, Strike(run, 1, place, name))
        assert ended.struck and ended.code == CODES[name], (step, ended)
        command = f"run the same command again to go on: {shlex.join(['semalign', *words])}"
        said = "stopped after step" if step == "train" else "semalign: interrupted;"
        assert ended.said.endswith(command) and said in ended.said and "Traceback" not in ended.said, ended
        if of == "step":
            assert ready.run(words).code == 0
    assert ready.run(["transfer", config, "--output_dir", run]).code == 0
    assert_equal(run, straight)
