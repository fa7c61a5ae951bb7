"""What a GPU's memory is reported as, with a count that stands in for the GPU's."""

from __future__ import annotations

import json
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
