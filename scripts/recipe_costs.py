"""What each recipe makes both models do before the training, from what the recipes say they read -> the table in docs/howto/recipes.md.

Run it as: python scripts/recipe_costs.py [--write docs/howto/recipes.md]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pages

from semalign.config import DataConfig, ModelConfig, RecipeConfig, TransferConfig
from semalign.maths.pairing import LayerPair
from semalign.methods import methods, resolve, starts
from semalign.methods.maps import MAPS
from semalign.methods.recipe import Recipe
from semalign.signals.plan import Plan
from semalign.signals.request import request_of

BEGIN, END = "<!-- costs: begin -->", "<!-- costs: end -->"
PLAN = Plan((LayerPair(2, 2),), (2,))
HEAD = ("recipes", "student's pass", "its LM head", "teacher's pass", "its LM head", "maps of the layers")
NOTHING = "–"


def row(recipe: Recipe) -> tuple[str, ...]:
    """What a recipe pays, in the order of HEAD but for the names."""
    config = TransferConfig(
        ModelConfig("teacher"),
        ModelConfig("student"),
        DataConfig("rows"),
        "run",
        recipe=RecipeConfig(recipe.name),
    )
    request, wanted = request_of(config, PLAN)
    maps = [MAPS[name] for name, _ in wanted]
    student = teacher = NOTHING
    if request.needs_student:
        student = "to the last paired layer" if request.interfaces else "below the first trained layer"
        student = "all layers" if request.needs_student_output else student
    if recipe.start in starts():
        teacher = "its weights, in the train step"
    elif request.needs_teacher:
        teacher = "all layers" if request.needs_teacher_output else "to the last paired layer"
    head = "yes" if request.top_k else NOTHING
    moved = [m for m in maps if not m.is_own]
    told = ["scaled" if m.is_raw else "from the heads" if m.from_heads else "fitted" for m in moved]
    return student, head, teacher, head, ", ".join(told) or NOTHING


def table() -> str:
    """Recipes that pay the same share a row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for name in methods():
        rows.setdefault(row(resolve(RecipeConfig(name))), []).append(f"`{name}`")
    lines = [HEAD, ("---",) * len(HEAD), *((", ".join(names), *cells) for cells, names in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replaced(text: str) -> str:
    """The page's text with the table made anew."""
    return pages.replaced(text, BEGIN, END, f"\n{table()}\n")


def main() -> None:
    """See the module."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--write", type=Path, help="a page with the markers")
    path = options.parse_args().write
    if path is None:
        print(table())
    else:
        path.write_text(replaced(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
