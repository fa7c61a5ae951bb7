"""Every option is declared once, frozen, with its help under it."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

from semalign import config
from semalign.config import (
    TransferConfig,
)


def groups(owner: type = TransferConfig) -> Iterator[type]:
    """A config dataclass and those in its fields."""
    yield owner
    for kind in get_type_hints(owner).values():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from groups(kind)


def test_no_config_can_be_changed_after_it_was_checked() -> None:
    for owner in groups():
        assert owner.__dataclass_params__.frozen, owner  # type: ignore[attr-defined]


def test_every_field_has_its_help_as_the_docstring_under_it() -> None:
    sources = [path.read_text(encoding="utf-8") for path in Path(config.__file__).parent.glob("*.py")]
    nodes = [node for source in sources for node in ast.parse(source).body]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    named = [*{owner.__name__ for owner in groups()}, "RecipeFields", "OptimiserConfig"]
    for name in named:
        body = classes[name].body
        for node, following in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign):
                assert isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant), (
                    ast.dump(node)
                )
