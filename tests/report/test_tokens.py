"""The token view: what each model says at each token, and after each layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from semalign.report.blocks import Grid
from semalign.report.files import read_run
from semalign.report.tokens import piece, tokens_section


def test_the_share_of_equal_tokens_is_counted_over_all_rows(row: Callable[..., Any]) -> None:
    section = tokens_section({"tokens": [row(4, 0), row(4, 1)]})
    # 16 tokens a row, wrong at 0, 3, ... 15 before and at 0, 6, 12 after
    assert "At 32 tokens of 2 held-out rows" in section.finding
    assert "62% of cases before and 81% after" in section.finding


def test_cells_carry_text_shade_and_mark(row: Callable[..., Any]) -> None:
    section = tokens_section({"tokens": [row(4, 0)]})
    grids = [block for block in section.blocks if isinstance(block, Grid)]
    main, before, after = grids
    teacher, untouched, trained = main.rows
    assert [cell.text for cell in teacher.cells[:5]] == ["·the", "·answer", "·is", "·", "4"]
    assert not untouched.cells[3].same and untouched.cells[3].shade == 16
    assert trained.cells[3].same and trained.cells[3].shade == 1
    assert "KL 2.500 nats" in untouched.cells[3].title
    assert [line.name for line in before.rows] == ["Layer 4", "Layer 3", "Layer 2", "Layer 1"]
    assert sum(cell.same for cell in after.rows[0].cells) == 13 and not any(
        c.same for c in after.rows[1].cells
    )


def test_blanks_are_visible() -> None:
    assert [piece(t) for t in (" a", "\n", "\t", "")] == ["·a", "⏎", "⇥", "∅"]


def test_a_run_without_a_token_view_says_what_makes_one(make_run: Callable[..., Path]) -> None:
    metrics = {k: v for k, v in read_run(make_run()).metrics.items() if k != "tokens"}
    assert "evaluate step" in tokens_section(metrics).missing
