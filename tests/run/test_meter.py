"""What a GPU's memory is reported as, with a count that stands in for the GPU's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from semalign.cli import main
from semalign.run import meter

GIB = 2**30


def _printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr()).replace("\n", " ")


def test_a_run_tells_the_memory_of_its_gpu(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readings = iter(range(2, 100))
    monkeypatch.setattr(meter, "peak_gpu", lambda: next(readings) * GIB)
    assert main(["transfer", str(config_file)]) == 0
    run = config_file.parent / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    each = [step["peak_gpu_bytes"] for step in metrics["steps"]]
    assert len(set(each)) == len(each) > 3 and metrics["peak_gpu_bytes"] == max(each)
    assert f"{max(each) / GIB:.2f} GiB on the GPU" in _printed(capsys)
    assert "On the GPU" in (run / "report.html").read_text()


def test_without_a_gpu_nothing_is_said_of_it(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transfer", str(config_file)]) == 0
    run = config_file.parent / "run"
    written = (run / "metrics.json").read_text() + (run / "report.html").read_text()
    assert "peak_gpu" not in written and "n the GPU" not in written + _printed(capsys)


def test_seconds_are_those_of_all_tries_at_the_same_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])
    tries = meter.Tries(tmp_path / "seconds.part", {"work": 1})

    def work(seconds: float, tries: meter.Tries, is_stopped: bool = False) -> float:
        result: dict[str, float] = {}
        with meter.measured(result, tries):
            now[0] += seconds
            if is_stopped:
                raise KeyboardInterrupt
        return result["seconds"]

    for seconds in (5, 7):
        with pytest.raises(KeyboardInterrupt):
            work(seconds, tries, is_stopped=True)
    assert work(1, meter.Tries(tries.path, {"work": 2})) == 1, "other work begins at 0"
    with pytest.raises(KeyboardInterrupt):
        work(3, tries, is_stopped=True)
    assert work(2, tries) == 5 and not tries.path.exists()
    assert work(4, tries) == 4


def test_a_try_that_is_killed_leaves_what_it_had_taken(tmp_path: Path) -> None:
    path = tmp_path / "seconds.part"
    code = (
        "import os, sys, time; from pathlib import Path; from semalign.run import meter; meter.KEPT_EVERY = 0.05\n"
        f"with meter.timed(meter.Tries(Path({str(path)!r}), {{}})):\n"
        f"    while not Path({str(path)!r}).exists(): time.sleep(0.01)\n"
        "    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    with meter.timed(meter.Tries(path, {})) as seconds:
        assert seconds() >= 0.05
