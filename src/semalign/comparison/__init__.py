"""Methods x tasks x seeds on one pair: every student trained and measured in the same way, cell by cell."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from semalign.comparison.figures import figures
from semalign.comparison.page import write_page
from semalign.comparison.plan import read_comparison
from semalign.comparison.run import environment_of, made_from, run_comparison
from semalign.run.digests import record
from semalign.run.files import read_sealed, write_json

__all__ = ["compare"]


def compare(
    path: Path,
    labels: Sequence[str] | None,
    changes: Mapping[str, Any],
    console: Console,
    *,
    is_regraded: bool = False,
) -> dict[str, Any]:
    """Run the comparison in a YAML file; returns its figures, also in figures.json and page.html.

    Args:
        labels: methods to run; none: all. The default is always among them.
        changes: fields of `CompareConfig` in place of the file's.
        is_regraded: grade the stored answers of what is done again, by the present checkers.
    """
    comparison = read_comparison(path, **changes)
    chosen, start = comparison.chosen(labels), time.perf_counter()
    lines = run_comparison(
        comparison,
        chosen,
        lambda sentence: console.print(sentence, markup=False, soft_wrap=True),
        is_regraded=is_regraded,
    )
    found = figures(lines) | {"output_dir": str(comparison.root)}
    environment = environment_of(comparison)
    found["this_run_seconds"] = round(time.perf_counter() - start, 1)
    write_json(
        comparison.root / "figures.json", found | {"files": record(comparison.root, made_from(comparison))}
    )
    write_page(
        found,
        comparison.root / "page.html",
        read_sealed(comparison.root / "compare.yaml", "compare"),
        version=environment.get("semalign") or "",
        started=environment.get("started") or "",
    )
    return found
