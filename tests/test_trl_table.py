"""Every SemAlign option that docs/trl.md names exists, and its first example is a config."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from semalign.config.parsing import build_config, keys

TEXT = (Path(__file__).parents[1] / "docs" / "trl.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith("| trl")
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_option_exists(row: list[str]) -> None:
    theirs, ours, _ = row
    named = re.findall(r"`([\w.]+)`", ours)
    assert named or ours == "no counterpart"
    assert set(named) <= set(keys())
    assert theirs == "no counterpart" or re.search(r"`\w+`", theirs)


def test_the_table_has_every_field_that_keeps_its_name() -> None:
    ours = {key.rsplit(".", 1)[-1] for row in ROWS for key in re.findall(r"`([\w.]+)`", row[1])}
    train = {key.removeprefix("train.") for key in keys() if key.startswith("train.")}
    assert train - ours == {"cache_prefix", "live_teacher"}


def test_the_example_is_a_config() -> None:
    block = TEXT.split("```yaml\n")[1].split("```")[0]
    config = build_config(yaml.safe_load(block), Path())
    assert config.teacher.model_name_or_path == "org/large" and config.train.learning_rate == 2e-4
