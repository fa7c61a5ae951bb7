"""The table of a comparison as Markdown, its plots as a picture, and its right answers as JSON.

    semalign compare examples/compare-embedded.yaml
    python scripts/comparison_table.py runs/compare-embedded/figures.json --plot docs/pictures/compare-embedded.png
    python scripts/comparison_table.py runs/compare-real/figures.json --answers docs/results/real-answers.json

The plots need matplotlib (extra `bench`).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semalign.comparison.page import at_budgets
from semalign.comparison.table import method_table, ranked
from semalign.comparison.words import Figures
from semalign.report.words import GAPS


def markdown(found: Figures) -> str:
    """One line per method, the best first; columns that nothing was measured for are left out."""
    titles, lines = method_table(found)
    table = [["Method", *titles], ["---"] * (len(titles) + 1)]
    for m, texts in lines:
        table.append([f"**{m['method']}** (default)" if m["default"] else f"`{m['method']}`", *texts])
    return "\n".join("| " + " | ".join(line) + " |" for line in table)


def answers(found: Figures) -> dict[str, Any]:
    """Right answers of every method's students on the task that they were trained on, in percent.

    `change` against the untouched student, with its 95% interval from `low` to `high`, and `elsewhere`, the mean change on the other tasks,
    are points.
    """
    rows = []
    for m in found["methods"]:
        for task, entry in m["tasks"].items():
            low, high = entry["accuracy_change_interval"][task] or (None, None)
            others = [v for t, v in entry["accuracy_change"].items() if t != task and v is not None]
            rows.append(
                {
                    "method": m["method"],
                    "task": task,
                    "default": m["default"],
                    "items": entry["items"],
                    "seeds": entry["seeds"],
                    "accuracy": _rounded(None if entry["accuracy"] is None else 100 * entry["accuracy"]),
                    "change": _rounded(entry["accuracy_change"][task]),
                    "low": _rounded(low),
                    "high": _rounded(high),
                    "elsewhere": _rounded(sum(others) / len(others) if others else None),
                }
            )
    return {"rows": rows}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def plot(found: Figures, path: Path) -> None:
    """Shares of the gaps with intervals; KL gap closed against seconds; points lost or won elsewhere against gain."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    methods = ranked(found)[::-1]
    height = max(4.0, 0.26 * len(methods) + 1)
    canvas, axes = pyplot.subplots(1, 3, figsize=(15, height), layout="constrained", width_ratios=(1.4, 1, 1))
    for key, colour, shift in zip(
        (k for k, _ in GAPS), ("tab:blue", "tab:orange"), (0.15, -0.15), strict=True
    ):
        _bars(axes[0], methods, key, colour, shift)
    axes[0].set_yticks(
        range(len(methods)), [f"{m['method']}  {len(methods) - n}" for n, m in enumerate(methods)]
    )
    axes[0].set_xlim(-1.02, 1.1)
    axes[0].axvline(0, color="grey", lw=0.8)
    axes[0].axvline(1, color="grey", lw=0.8, ls=":")
    axes[0].set_xlabel("share of the gap to the teacher closed, 95% intervals (held at -1)")
    axes[0].legend(loc="upper left", fontsize=8)
    _scatter(axes[1], methods, "wall_seconds", "kl_gap_closed")
    axes[1].set(
        xlabel="seconds per student, preparation included", ylabel="KL gap closed (hollow: equal time)"
    )
    axes[1].set_xlim(left=0)
    _scatter(axes[2], methods, "accuracy_gap_closed", "retention")
    axes[2].set(xlabel="accuracy gap closed", ylabel="points on tasks not trained on")
    canvas.savefig(path, dpi=110)


def _bars(axis: Any, methods: Sequence[Figures], key: str, colour: str, shift: float) -> None:
    known = [(n, m) for n, m in enumerate(methods) if m[key] is not None]
    label = key.replace("_gap_closed", "").replace("kl", "KL")
    for n, m in known:
        low, high = m[f"{key}_interval"] or (m[key], m[key])
        axis.plot([max(-1, low), max(-1, high)], [n + shift] * 2, color=colour, lw=2)
        marker = "D" if m["default"] else "o"
        axis.plot(
            max(-1, m[key]), n + shift, marker, color=colour, ms=5, label=label if n == known[0][0] else None
        )


def _scatter(axis: Any, methods: Sequence[Figures], x: str, y: str) -> None:
    """Methods by their place in the list, at equal rows and, hollow, at equal time; held at -1 as the bars are."""
    for n, m in enumerate(methods):
        for entry in at_budgets(m) if x == "wall_seconds" else [m]:
            if entry[x] is None or entry[y] is None:
                continue
            at = [
                v if k in ("wall_seconds", "retention") else max(-1, v)
                for k, v in ((x, entry[x]), (y, entry[y]))
            ]
            colour = "tab:red" if m["default"] else "tab:grey"
            face = colour if entry is m else "none"
            axis.plot(*at, "D" if m["default"] else "o", color=colour, markerfacecolor=face, ms=5)
            axis.annotate(len(methods) - n, at, fontsize=8, xytext=(4, 3), textcoords="offset points")
    axis.grid(alpha=0.3)


def main() -> None:
    """Read, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", type=Path, help="figures.json of a comparison")
    parser.add_argument("--plot", type=Path, help="picture to write")
    parser.add_argument("--answers", type=Path, help="JSON file of right answers to write")
    options = parser.parse_args()
    found = json.loads(options.figures.read_text(encoding="utf-8"))
    print(markdown(found))
    if options.plot:
        plot(found, options.plot)
    if options.answers:
        options.answers.write_text(json.dumps(answers(found), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
