"""Every code block of the README and the documentation runs, and the site builds without a warning.

YAML blocks that begin with `# name.yaml` are written and read as a run's config, Python blocks of a page share one
namespace, command lines go through the command line's own entry point. A block that cannot run here says why in a comment
above it: `<!-- not run: reason -->`. A page that needs another one's files says so: `<!-- after: page.md -->`.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from semalign import cli
from semalign.comparison.plan import read_comparison
from semalign.config.parsing import load_config

ROOT = Path(__file__).parent.parent
# Figures and history: what stands there was run when it was written.
RECORDS = {"log.md", "results.md", "results", "benchmarks.md"}
PAGES = [
    ROOT / "README.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if not RECORDS & {p.name, p.parent.name}),
]
AFTER = re.compile(r"<!-- after: (\S+) -->")
FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n+)?^```(?P<kind>\w*)[^\n]*\n(?P<text>.*?)^```$", re.M | re.S
)


class Block(NamedTuple):
    """One fenced block."""

    kind: str
    text: str
    why_not: str | None


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(m["kind"], m["text"], m["why"]) for m in FENCE.finditer(page.read_text(encoding="utf-8"))]


def run_page(page: Path) -> int:
    """Run a page's blocks in the present folder; how many ran."""
    ran, names = 0, {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.why_not is not None:
            continue
        ran += 1
        if block.kind == "python":
            exec(compile(block.text, str(page), "exec"), names)
        elif block.kind == "yaml":
            run_yaml(block.text)
        elif block.kind == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                run_line(line)
        else:
            ran -= 1
    return ran


def run_yaml(text: str) -> None:
    """Write a config, or a comparison's file, under the name in its first line, and read it."""
    name = re.match(r"# (\S+\.yaml)", text)
    assert name, f"a YAML block begins with its file's name, this one with {text.splitlines()[0]!r}"
    Path(name[1]).write_text(text, encoding="utf-8")
    if re.search(r"^methods:", text, re.M):
        read_comparison(Path(name[1]))
    else:
        load_config(name[1])


def run_line(line: str) -> None:
    """One command line; only this package's own commands can stand in a block that is run."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    assert words[0] == "semalign", (
        f"{line!r} is not a semalign command; say above the block why it is not run"
    )
    if "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            cli.main(words[1:])
        return
    assert cli.main([*words[1:], "--quiet"]) == 0, line


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """One folder for all pages, as one reader would have."""
    return tmp_path_factory.mktemp("docs")


def befores(page: Path) -> list[Path]:
    """The pages whose files a page needs."""
    return [(page.parent / name).resolve() for name in AFTER.findall(page.read_text(encoding="utf-8"))]


# A page that others need is run with them, in one test: workers share no files.
CHAINS = [
    [first, *(page for page in PAGES if first in befores(page))] for first in PAGES if not befores(first)
]


@pytest.mark.parametrize("pages", CHAINS, ids=[str(pages[0].relative_to(ROOT)) for pages in CHAINS])
@pytest.mark.filterwarnings("ignore")
def test_every_block_of_a_page_runs(pages, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    for page in pages:
        written = [b for b in blocks_of(page) if b.kind in ("python", "yaml", "bash")]
        assert run_page(page) == sum(b.why_not is None for b in written)


@pytest.mark.filterwarnings("ignore")
def test_every_cell_of_the_notebook_runs(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    cells = json.loads((ROOT / "examples" / "transfer.ipynb").read_text(encoding="utf-8"))["cells"]
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cell for cell in cells if cell["cell_type"] == "code"):
        assert not cell["outputs"], "clear the outputs before committing"
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert names["end"]["eval_kl"] < names["start"]["eval_kl"]


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the site needs the extra docs: pip install 'semalign[docs]'")
    words = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "site" / "options" / "index.html").read_text(encoding="utf-8")
    assert "num_train_epochs" in text and "Passes over the rows" in text
