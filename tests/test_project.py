"""What the files around the code promise: the guide's example runs, names exist, extras are declared."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_imports import ORDER

from semalign.config.options import parser

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_at_most_sixteen_direct_dependencies_and_no_heavy_one() -> None:
    names = {re.split(r"[\[<>=!~ ]", line)[0] for line in PROJECT["dependencies"]}
    assert len(names) == len(PROJECT["dependencies"]) <= 16
    assert not names & {
        "lm-eval",
        "lm_eval",
        "vllm",
        "trl",
        "bitsandbytes",
        "deepspeed",
        "mkdocs-material",
        "gguf",
    }


def test_every_package_that_is_required_on_demand_is_in_the_extra_that_is_named() -> None:
    calls = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
                calls.append([a.value for a in node.args if isinstance(a, ast.Constant)])
    assert len(calls) >= 3
    extras = PROJECT["optional-dependencies"]
    for package, extra in calls:
        assert any(line.replace("-", "_").startswith(package) for line in extras[extra]), (package, extra)


SUFFIXES = ("py", "md", "json", "jsonl", "yaml", "yml", "toml", "txt", "html", "css", "cff", "safetensors")


@cache
def names() -> set[str]:
    """Names of all files, and what the sources put behind a folder as `folder / "name"`: files and folders of a run."""
    folders = ("src", "tests", "docs", "scripts", "examples", "benchmarks")
    files = {path.name for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()}
    nodes = (n for path in (ROOT / "src").rglob("*.py") for n in ast.walk(ast.parse(path.read_text("utf-8"))))
    joined = (n.right for n in nodes if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Div))
    return files | {n.value for n in joined if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def is_there(path: str) -> bool:
    """Whether a path exists, counted from the repository or from the package; a name alone may lie in any folder."""
    if any((base / path).exists() for base in (ROOT, ROOT / "src" / "semalign")):
        return True
    return path.removesuffix("/") in names()


def is_importable(dotted: str) -> bool:
    """Whether a dotted name is a module of the package, or something in one."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            found = getattr(found, name, None)
        return found is not None
    return False


def not_there(guide: str) -> list[str]:
    """The paths and modules that a text names in code spans and that do not exist."""
    spans = [span for span in re.findall(r"```.*?```|`([^`\n]+)`", guide, re.DOTALL) if span]
    paths = [
        s for s in spans if re.fullmatch(r"[\w./-]+", s) and ("/" in s or Path(s).suffix[1:] in SUFFIXES)
    ]
    modules = [s for s in spans if re.fullmatch(r"semalign(\.\w+)+", s)]
    return [p for p in paths if not is_there(p)] + [m for m in modules if not is_importable(m)]


def test_the_guide_names_every_module_and_nothing_that_is_not_there() -> None:
    guide = text("CONTRIBUTING.md")
    table = guide.split("## Where things are")[1].split("## Add a method")[0]
    named = set(re.findall(r"`([\w]+)(?:\.py|/)`", table))
    assert set(ORDER) - named <= {"__main__"}
    assert not_there(guide) == []


def test_a_name_that_is_not_there_is_found_wherever_a_guide_has_it() -> None:
    right = "`src/semalign/maths/`, `maths/`, `models/layouts.py`, `layouts.py`, `tests/tiny.py`, `targets/`, `pairs.json`, `README.md`"
    right += " `semalign.models.layouts`, `semalign.methods.Recipe`, `ORG/NAME or so`, `run.yaml --seed 1`\n```python\nimport `no/such`\n```"
    assert not_there(right) == []
    wrong = "src/semalign/losses/ losses/ tests/test_models.py models/layout.py layout.py run/pairs.json scores.yaml CONTRIBUTE.md"
    wrong_modules = "semalign.losses semalign.models.layouts.Recipe semalign.methods.recipe.Recipes"
    both = [*wrong.split(), *wrong_modules.split()]
    assert not_there(f"{right} {' '.join(f'`{name}`' for name in both)}") == both


def test_the_changelog_speaks_of_commands_that_exist() -> None:
    named = set(re.findall(r"`semalign (\w+)", text("CHANGELOG.md") + text("CONTRIBUTING.md")))
    assert named and named <= set(parser().commands)
    assert f"## {PROJECT['version']}" in text("CHANGELOG.md")


def test_the_citation_file_has_what_its_format_requires() -> None:
    cff = yaml.safe_load(text("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= set(cff) and cff["type"] == "software"
    assert cff["version"] == PROJECT["version"] and cff["license"] == PROJECT["license"] == "Apache-2.0"
    for reference in cff["references"]:
        assert {"type", "title", "authors", "year", "url"} <= set(reference)
        assert all(set(a) == {"family-names", "given-names"} for a in reference["authors"])
    told = text("CITATION.cff")
    assert all(name in told for name in ("2510.24208", "LaTen", "Seeking"))
    assert "Apache License" in text("LICENSE") and "Version 2.0, January 2004" in text("LICENSE")


def test_hooks_run_what_make_check_runs() -> None:
    hooks: list[dict[str, Any]] = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    checks = text("Makefile").split("check: $(INSTALLED)\n")[1].split("\n\n")[0]
    for hook in hooks:
        command = hook["entry"].removeprefix(".venv/bin/").replace(" -q ", " ")
        assert f"$(BIN)/{command}" in checks, command
    assert len(hooks) == len(checks.splitlines())


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms_are_complete(name: str) -> None:
    form = yaml.safe_load(text(f".github/ISSUE_TEMPLATE/{name}.yml"))
    assert form["name"] and form["description"]
    assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in form["body"])
    assert any(part.get("validations", {}).get("required") for part in form["body"])
