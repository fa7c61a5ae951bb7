"""What each recipe makes both models do before the training, from what the recipes say they read -> the table in docs/howto/recipes.md.

python scripts/recipe_costs.py [--write docs/howto/recipes.md]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from semalign.config import DataConfig, ModelConfig, RecipeConfig, TransferConfig
from semalign.maths.pairing import LayerPair
from semalign.methods import methods, resolve, starts
from semalign.methods.maps import MAPS
from semalign.methods.recipe import Recipe
from semalign.signals.plan import Plan
from semalign.signals.request import request_of

BEGIN, END = "<!-- costs: begin -->", "<!-- costs: end -->"
PLAN = Plan((LayerPair(2, 2),), (2,), (LayerPair(2, 2),))
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
    reads_teacher = request.top_k or request.teacher_output or any(not m.is_own for m in maps)
    whole = request.top_k or request.teacher_output
    teacher = NOTHING
    if recipe.start in starts():
        teacher = "its weights, in the train step"
    elif reads_teacher:
        teacher = "all layers" if whole else "to the last paired layer"
    student = "all layers" if request.top_k else "below the first trained layer"
    return (
        "to the last paired layer" if request.interfaces and not request.top_k else student,
        "yes" if request.top_k else NOTHING,
        teacher,
        "yes" if request.top_k else NOTHING,
        ", ".join("from the heads" if m.from_heads else "fitted" for m in maps if not (m.is_own or m.is_raw))
        or ("scaled" if any(m.is_raw for m in maps) else NOTHING),
    )


def table() -> str:
    """Recipes that pay the same share a row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for name in methods():
        rows.setdefault(row(resolve(RecipeConfig(name))), []).append(f"`{name}`")
    lines = [HEAD, ("---",) * len(HEAD), *((", ".join(names), *cells) for cells, names in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replaced(text: str) -> str:
    """The page's text with the table made anew."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


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
