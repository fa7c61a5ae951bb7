"""Imports point down one list only, and importing the package does nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "semalign"
# A module may import from itself and from those above it here.
ORDER = (
    "embedded",
    "errors",
    "reading",
    "config",
    "jail",
    "run",
    "maths",
    "models",
    "data",
    "methods",
    "signals",
    "report",
    "evaluation",
    "training",
    "steps",
    "estimate",
    "api",
    "comparison",
    "cli",
    "__main__",
)


def imported(path: Path) -> set[str]:
    """First-level names below `semalign` that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "semalign":
            names = [f"semalign.{a.name}" for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found |= {name.split(".")[1] for name in names if name.startswith("semalign.")}
    return found


FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    above = ORDER[: ORDER.index(own) + 1]
    assert imported(path) <= set(above), f"{own} imports from below: {imported(path) - set(above)}"


def test_every_module_is_in_the_order() -> None:
    assert {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in FILES} == set(ORDER)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, semalign; print(sorted(m for m in ('torch', 'transformers') if m in sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
