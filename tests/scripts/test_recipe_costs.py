"""The table of what each recipe pays is what the recipes say they read."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_table_of_the_script() -> None:
    spec = importlib.util.spec_from_file_location("recipe_costs", ROOT / "scripts" / "recipe_costs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "docs" / "howto" / "recipes.md").read_text(encoding="utf-8")
    assert module.replaced(text) == text, "run python scripts/recipe_costs.py --write docs/howto/recipes.md"
    assert "| `cross_entropy`" in text and "| `aligned_output`" in text
