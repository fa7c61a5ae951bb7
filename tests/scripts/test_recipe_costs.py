"""The table of what each recipe pays is what the recipes say they read."""

from __future__ import annotations

from pathlib import Path

import recipe_costs

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_table_of_the_script() -> None:
    text = (ROOT / "docs" / "howto" / "recipes.md").read_text(encoding="utf-8")
    assert recipe_costs.replaced(text) == text, (
        "run python scripts/recipe_costs.py --write docs/howto/recipes.md"
    )
    assert "| `cross_entropy`" in text and "| `aligned_output`" in text
