"""What a page is made of: every block is printed with its text escaped, and the models compared have one order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup

import semalign.report
from semalign.report import blocks
from semalign.report.blocks import (
    Answer,
    Cell,
    Code,
    Facts,
    Grid,
    GridCell,
    GridRow,
    HeatLegend,
    Legend,
    Panel,
    Panels,
    Report,
    Row,
    Sample,
    Samples,
    Section,
    Table,
    Text,
    Tile,
    baseline_names,
    contenders,
)
from semalign.report.build import render
from semalign.report.words import Headline

from .pages import Checker

BAD = '<b onclick=x>&amp; "it\'s"</b>'
"""Text that has to be read as it is; `say` makes one for each place of a block."""
EVERY: list[Any] = [
    Panels([Panel(f"panel {BAD}", Markup("<svg></svg>"), f"aside {BAD}")]),
    Legend([("c-after", f"legend {BAD}")]),
    HeatLegend(f"low {BAD}", f"high {BAD}"),
    Table(f"caption {BAD}", [f"column {BAD}"], [Row(f"row {BAD}", [Cell(f"cell {BAD}", best=True)])]),
    Table("", ["", ""], [Row("", [Cell(f"bar {BAD}", Markup("<svg></svg>"))])], summary=f"folded {BAD}"),
    Grid(f"grid {BAD}", [f"token {BAD}"], [GridRow(f"said {BAD}", [GridCell(f"piece {BAD}", 3, True)])], "fold"),
    Text(f"heading {BAD}", f"text {BAD}"),
    Facts([(f"name {BAD}", f"value {BAD}")]),
    Code(f"summary {BAD}", f"code {BAD}"),
    Samples([Sample(f"task {BAD}", f"prompt {BAD}", f"gold {BAD}", [Answer(f"who {BAD}", "c-after", f"answer {BAD}", True)])]),
]  # fmt: skip


def page(*parts: Section) -> str:
    """A page of these sections and nothing else."""
    headline = Headline("lead ", "", "rest")
    return render(Report("run", "big", "small", "r", "", "", headline, (), None, (), parts))


def strings(value: Any) -> list[str]:
    """All text in a block, without finished drawings and class names."""
    if isinstance(value, str):
        return [] if isinstance(value, Markup) or value in ("", "c-after", "fold") else [value]
    if isinstance(value, list | tuple):
        return [text for part in value for text in strings(part)]
    return strings([*vars(value).values()]) if hasattr(value, "__dict__") else []


def test_the_template_knows_every_block_and_no_other() -> None:
    template = Path(semalign.report.__file__).with_name("blocks.jinja").read_text()
    types = {value.type for value in vars(blocks).values() if isinstance(getattr(value, "type", None), str)}
    assert set(re.findall(r'item\.type == "(\w+)"', template)) == types == {b.type for b in EVERY}


@pytest.mark.parametrize("block", EVERY, ids=[f"{type(b).__name__}-{n}" for n, b in enumerate(EVERY)])
def test_all_text_of_a_block_is_on_the_page_and_none_of_it_is_markup(block: Any) -> None:
    checker = Checker(page(Section("s", "Part", blocks=[block])))
    wanted = strings(block)
    assert wanted and all(text in checker.text for text in wanted)
    assert not [name for _, name, _ in checker.attributes if name == "onclick"]


def test_finished_drawings_are_printed_as_they_are() -> None:
    drawing = Markup('<svg class="plot"><title>a &lt; b</title></svg>')
    printed = page(Section("s", "Part", blocks=[Panels([Panel("", drawing)])]))
    assert str(drawing) in printed


def test_what_has_a_summary_is_folded_under_it() -> None:
    rows = [Row("", [Cell("x")])]
    for summary, count in (("", 0), ("All numbers", 1)):
        checker = Checker(page(Section("s", "Part", blocks=[Table("", [""], rows, summary)])))
        assert checker.tags.count("details") == checker.tags.count("summary") == count


def test_answers_carry_a_verdict_where_they_were_judged_and_an_empty_one_is_called_so() -> None:
    answers = [Answer("a", "", "yes", True), Answer("b", "", "no", False), Answer("c", "", " ", None)]
    text = Checker(page(Section("s", "Part", blocks=[Samples([Sample("", "", "", answers)])]))).text
    assert text.count("✓ right") == text.count("✗ wrong") == text.count("empty answer") == 1


def test_a_section_shows_its_blocks_or_why_there_are_none() -> None:
    blocks = [Text("heading", "the text")]
    there = Checker(page(Section("s", "Part", "what was found", "how to read it", blocks)))
    assert all(words in there.text for words in ("what was found", "how to read it", "the text"))
    missing = Checker(page(Section("s", "Part", "found", "note", blocks, missing="run the step first")))
    assert "run the step first" in missing.text and "the text" not in missing.text


def test_tiles_and_notes_are_on_the_page() -> None:
    report = Report("run", "big", "small", "r", "2026-01-02", "9.9", Headline("lead ", "61%", "."), ["a note"],
                    None, [Tile("label", "value", "beside it")], [], kind="trial")  # fmt: skip
    text = Checker(render(report)).text
    words = ("big", "small", "2026-01-02", "SemAlign 9.9", "a note", "label", "value", "beside it", "trial")
    assert all(word in text for word in words) and "lead 61%." in text


def test_models_compared_go_from_untouched_to_teacher_and_colours_repeat_after_four() -> None:
    names = ["kl", "cosine", "fisher", "pissa", "my_own"]
    found = contenders({"recipe": "aligned", "baselines": dict.fromkeys(names)})
    assert [c.key for c in found] == ["before", *names, "after", "teacher"]
    assert [c.label for c in found] == [
        "Untouched", "Full KL", "Cosine", "Fisher", "Pissa", "My own", "Aligned (ours)", "Teacher",
    ]  # fmt: skip
    kinds = ["c-base1", "c-base2", "c-base3", "c-base4", "c-base1"]
    assert [c.kind for c in found] == ["c-before", *kinds, "c-after", "c-teacher"]


def test_a_baseline_that_was_measured_in_one_place_only_is_found() -> None:
    metrics = {
        "baselines": {"kl": {}},
        "closeness": {"rows": 64, "before": {"kl": 1.0}, "cosine": {"kl": 0.5}, "kl": {"kl": 0.2}},
        "tasks": {"sums": {"n": 3, "after": {}, "fisher": {}, "teacher": {}}},
    }
    assert baseline_names(metrics) == ["kl", "cosine", "fisher"]
    assert baseline_names({}) == [] and [c.key for c in contenders({})] == ["before", "after", "teacher"]
