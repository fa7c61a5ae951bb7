"""The wheel, installed where only its declared dependencies are, works by itself."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
EXTRAS = ("pytest", "hypothesis", "captum", "ruff", "mypy", "gguf", "shtab")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the source tree."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*build, "--wheel-dir", str(out), str(copy)], check=True)
    (path,) = out.glob("*.whl")
    return path


def closure(requirements: list[str]) -> Iterator[metadata.Distribution]:
    """The installed distributions that the requirements ask for here, directly or not."""
    waiting, seen = [Requirement(line) for line in requirements], set()
    while waiting:
        requirement = waiting.pop()
        key = requirement.name.lower().replace("_", "-"), frozenset(requirement.extras)
        if key in seen:
            continue
        seen.add(key)
        found = metadata.distribution(requirement.name)
        yield found
        for line in found.requires or []:
            needed = Requirement(line)
            extras = [{"extra": extra} for extra in ("", *requirement.extras)]
            if needed.marker is None or any(needed.marker.evaluate(extra) for extra in extras):
                waiting.append(needed)


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and, as links, exactly what its metadata asks for without extras."""
    home = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    interpreter = home / "bin" / "python"
    (site,) = home.glob("lib/python*/site-packages")
    install = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet"]
    subprocess.run(
        [*install, "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)],
        check=True,
        env=own_environment(),
    )
    (installed,) = metadata.distributions(path=[str(site)], name="semalign")
    for distribution in closure([r for r in installed.requires or [] if "extra ==" not in r]):
        for part in {
            file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")
        }:
            source, link = Path(str(distribution.locate_file(part))), site / part
            if source.exists() and not link.exists():
                link.symlink_to(source)
    return interpreter


def own_environment() -> dict[str, str]:
    """What this test's own process can import must neither help nor pass for installed."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}


def run(python: Path, *arguments: str) -> str:
    done = subprocess.run(
        [python, *arguments], env=own_environment(), capture_output=True, text=True, cwd=python.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_models_templates_styles_types_and_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    source = ROOT / "src" / "semalign"
    data = [p for p in source.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    assert {f"semalign/{p.relative_to(source)}" for p in data} <= set(names)
    for needed in ("teacher/model.safetensors", "student/tokenizer.json", "demo.yaml"):
        assert f"semalign/embedded/{needed}" in names
    assert "semalign/report/page.jinja" in names and "semalign/report/style.css" in names
    assert "semalign/py.typed" in names and any(n.endswith("licenses/LICENSE") for n in names)
    assert not [n for n in names if n.startswith("tests")]


def test_it_is_the_wheel_that_is_imported_and_extras_are_not_there(python: Path) -> None:
    code = "import importlib.util as u, semalign; print(semalign.__file__); print([n for n in %r if u.find_spec(n)])"
    where, extras = run(python, "-c", code % (EXTRAS,)).splitlines()
    assert Path(where).is_relative_to(python.parents[1]) and not Path(where).is_symlink()
    assert extras == "[]"


def test_every_module_imports_without_extras(python: Path) -> None:
    code = (
        "import importlib, pkgutil, semalign\n"
        "names = [m.name for m in pkgutil.walk_packages(semalign.__path__, 'semalign.') if '__main__' not in m.name]\n"
        "[importlib.import_module(n) for n in names]\n"
        "print(len(names))"
    )
    assert int(run(python, "-c", code)) > 50


def test_the_command_and_the_embedded_pair_work(python: Path) -> None:
    assert "--output_dir" in run(python, "-m", "semalign", "demo", "--help")
    script = python.with_name("semalign")
    assert "transfer" in subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    code = (
        "from semalign import load\nfrom semalign.config import ModelConfig\n"
        "print(load(ModelConfig('embedded:teacher')).num_layers, load(ModelConfig('embedded:student')).num_layers)"
    )
    assert run(python, "-c", code).split() == ["6", "4"]
    code = "from semalign.config.options import DEMO; import semalign; print(semalign.load_config(DEMO).data.dataset_name)"
    assert run(python, "-c", code).strip() == "embedded:transfer"


def test_an_extra_that_is_missing_is_one_sentence(python: Path) -> None:
    done = subprocess.run(
        [python, "-m", "semalign", "completion", "bash"], capture_output=True, text=True, cwd=python.parent,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 1 and "pip install 'semalign[completion]'" in " ".join(done.stderr.split())


def test_this_interpreter_is_not_the_fresh_one(python: Path) -> None:
    assert sysconfig.get_paths()["purelib"] not in run(python, "-c", "import sys; print(sys.path)")
