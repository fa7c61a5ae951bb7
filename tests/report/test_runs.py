"""Several runs on one page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from semalign import cli
from semalign.errors import CacheError, ConfigError
from semalign.report import build_comparison
from semalign.report.blocks import Table
from semalign.report.files import read_run
from semalign.report.runs import _value, view
from semalign.run.files import find_json, write_json, write_yaml

RunMaker = Callable[..., Path]


@pytest.fixture
def two(make_run: RunMaker, tmp_path: Path) -> list[Path]:
    """Two runs that differ in an option and in what came out."""
    first, second = make_run(), tmp_path / "other"
    second.mkdir()
    for file in ("metrics.json", "config.yaml"):
        (second / file).write_bytes((first / file).read_bytes())
    write_json(second / "metrics.json", find_json(second / "metrics.json") | {"accuracy_gap_closed": 0.7})
    config = (second / "config.yaml").read_text().replace("num_train_epochs: 3.0", "num_train_epochs: 9.0")
    write_yaml(second / "config.yaml", yaml.safe_load(config))
    return [first, second]


def test_figures_and_options_stand_side_by_side(two: list[Path]) -> None:
    report = view([read_run(run) for run in two], ["one", "two"])
    assert report.headline.sentence == "two closes 70% of the accuracy gap, one 61%."
    figures, options = (section.blocks[0] for section in report.sections)
    assert isinstance(figures, Table) and isinstance(options, Table)
    cells = {row.name: [cell.text for cell in row.cells] for row in figures.rows}
    assert cells["Accuracy gap closed"] == ["61%", "70%"]
    assert cells["Accuracy: knowledge"] == ["74.0%", "74.0%"]
    assert [(r.name, [c.text for c in r.cells]) for r in options.rows] == [
        ("train.num_train_epochs", ["3.0", "9.0"])
    ]


def test_an_option_is_found_whose_name_has_dots() -> None:
    config = {"data": {"dataset_name": {"a.jsonl": 1.0, "a.jsonl.old": 2.0}, "rows": {"n": 3}}}
    assert _value(config, "data.dataset_name.a.jsonl") == "1.0"
    assert _value(config, "data.dataset_name.a.jsonl.old") == "2.0"
    assert _value(config, "data.rows.n") == "3" and _value(config, "data.rows.m") == "–"


def test_the_command_writes_the_page_and_opens_it(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    page = tmp_path / "both.html"
    assert cli.main(["report", *map(str, two), "--output", str(page), "--open", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(page)}
    assert opened == [page.as_uri()] and "side" not in page.read_text()[:15]
    assert "other closes" in page.read_text()


def test_a_run_twice_and_a_run_without_figures_are_refused(two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="twice"):
        build_comparison([two[0], two[0]], tmp_path / "page.html")
    with pytest.raises(CacheError, match="evaluate step"):
        build_comparison([two[0], tmp_path], tmp_path / "page.html")
