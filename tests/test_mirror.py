"""Tests lie where their sources do, and sources are short."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent / "src" / "semalign"
FILES = sorted(p.relative_to(ROOT) for p in ROOT.rglob("*.py"))


def place_of_tests(source: Path) -> Path:
    """Where the tests of a source are, both counted from their own roots; those of a package carry its folder's name."""
    name = source.parent.name or ROOT.name if source.stem == "__init__" else source.stem
    return source.with_name(f"test_{name}.py")


def test_the_place_of_tests_follows_from_the_source() -> None:
    for source, tests in (
        ("cli.py", "test_cli.py"),
        ("models/layouts.py", "models/test_layouts.py"),
        ("evaluation/harness_tasks/embedded_rows.py", "evaluation/harness_tasks/test_embedded_rows.py"),
        ("methods/__init__.py", "methods/test_methods.py"),
        ("__init__.py", "test_semalign.py"),
    ):
        assert place_of_tests(Path(source)) == Path(tests)


@pytest.mark.parametrize("source", FILES, ids=str)
def test_a_source_of_over_a_hundred_lines_has_tests_in_a_file_of_the_same_path(source: Path) -> None:
    lines = len((ROOT / source).read_text(encoding="utf-8").splitlines())
    assert lines <= 100 or (TESTS / place_of_tests(source)).is_file(), (
        f"{lines} lines and no tests/{place_of_tests(source)}"
    )


LONGER = {"methods/laten.py": "a method is one file"}


@pytest.mark.parametrize("source", FILES, ids=str)
def test_a_source_is_short_or_has_a_reason(source: Path) -> None:
    lines = len((ROOT / source).read_text(encoding="utf-8").splitlines())
    assert lines <= 350 or source.as_posix() in LONGER, (
        f"{lines} lines; part it, or give its reason in LONGER"
    )
