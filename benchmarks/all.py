"""Run every benchmark and write docs/benchmarks.md: `make bench`, or `make bench-quick` on the embedded pair alone.

    python benchmarks/all.py --quick
    python benchmarks/all.py --teacher DIR --student DIR --rows mbpp_train.jsonl
    python benchmarks/all.py --only bases-llama2 --only arithmetic
    python benchmarks/all.py --stale

Results are kept in docs/benchmarks.json, one a claim and machine, and the page's figures are written from all of them, so
that a run on another machine adds to it. A script that fails is listed as failed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from claims import FULL, QUICK, TIMED, Claim, Result
from common import machine

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
IMPORTED = re.compile(r"^(?:from|import) (\w+)", re.MULTILINE)
KEPT_LINES = 3  # of a failed script's last words


def command(claim: Claim, options: argparse.Namespace) -> list[str]:
    """The script's command line."""
    words = [f"benchmarks/{claim.script}.py", *claim.options]
    if claim.pair == "real":
        words += ["--teacher", options.teacher, "--student", options.student, "--rows", options.rows]
    return [*words, *(["--quick"] if claim.name.startswith("quick-") else [])]


def run(claim: Claim, options: argparse.Namespace) -> Result:
    """The script's JSON object, or why there is none, with the command and the seconds."""
    words = command(claim, options)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words, "--json"], cwd=HERE.parent, capture_output=True, text=True, check=False
    )
    kept = {"command": shown_command(words), "seconds_of_benchmark": round(time.perf_counter() - start)}
    kept["code"] = code_of(claim.script)
    try:
        result = json.loads(done.stdout) if done.returncode == 0 else None
    except json.JSONDecodeError:
        result = None
    if result is None or not {"ratio", "low", "high"} <= set(result):
        words_left = (done.stderr or done.stdout).strip().splitlines()[-KEPT_LINES:]
        return {"failed": " / ".join(words_left) or f"exit status {done.returncode}", **kept}
    return {**result, **kept}


def code_of(script: str, root: Path = HERE.parent) -> str:
    """What tells one state of a script, of what it imports here and of the sources that it times from another."""
    hashed = hashlib.sha256()
    for path in files_of(script, root / "benchmarks"):
        hashed.update(path.read_bytes())
    for folder in TIMED[script]:
        for path in sorted((root / "src" / "semalign" / folder).glob("*.py")):
            hashed.update(path.name.encode() + path.read_bytes())
    return hashed.hexdigest()[:16]


def files_of(script: str, folder: Path) -> list[Path]:
    """A script and the files beside it that it imports, and those that they import."""
    found: set[Path] = set()
    left = [folder / f"{script}.py"]
    while left:
        path = left.pop()
        if path not in found and path.exists():
            found.add(path)
            left += [folder / f"{name}.py" for name in IMPORTED.findall(path.read_text(encoding="utf-8"))]
    return sorted(found)


def stale(results: dict[str, dict[str, Result]]) -> list[str]:
    """One line for each figure that is older than the code which it measures."""
    return [
        f"{claim.name}: measured on {result['date']}, and the code has changed since"
        for claim in (*FULL, *QUICK)
        for result in results.get(claim.name, {}).values()
        if result.get("code") != code_of(claim.script)
    ]


def shown_command(words: Sequence[str]) -> str:
    """The command with places of files replaced by what they are."""
    shown = list(words)
    for flag, name in (("--teacher", "TEACHER"), ("--student", "STUDENT"), ("--rows", "ROWS")):
        if flag in shown:
            shown[shown.index(flag) + 1] = name
    return " ".join(["python", *shown])


def place(result: Result) -> str:
    """The machine a result belongs to."""
    known = result["machine"]
    cores = f"{known['threads']} threads on {known['cores']} cores, {known['memory_bytes'] / 2**30:.0f} GiB"
    return f"{known['accelerator'] or known['cpu']}; {cores}; torch {known['torch']}"


def page(results: dict[str, dict[str, Result]]) -> str:
    """The figures of all claims, as Markdown."""
    parts = ["| claim | machine | ratio (low - high) | target | met |", "|---|---|---|---|---|"]
    places = sorted({name for by_place in results.values() for name in by_place})
    letters = {name: chr(ord("A") + n) for n, name in enumerate(places)}
    for claim in (*FULL, *QUICK):
        for where, result in results.get(claim.name, {}).items():
            parts.append(
                f"| [{claim.title}](#{claim.name}) | {letters[where]} | {_ratio(result)} | {claim.bar or '-'} | {_verdict(claim, result)} |"
            )
    parts += ["", "Machines:", "", *(f"- {letters[name]}: {name}" for name in places), ""]
    for claim in (*FULL, *QUICK):
        if claim.name in results:
            parts += _section(claim, results[claim.name], letters)
    return "\n".join(parts)


def _ratio(result: Result) -> str:
    if "failed" in result:
        return "FAILED"
    if result.get("reached") is False:
        return "not reached"
    return f"{result['ratio']:.3g} ({result['low']:.3g} - {result['high']:.3g})"


def _verdict(claim: Claim, result: Result) -> str:
    if "failed" in result:
        return "**failed**"
    return "-" if claim.holds is None else "yes" if claim.holds(result) else "**no**"


def _section(claim: Claim, by_place: dict[str, Result], letters: dict[str, str]) -> list[str]:
    lines = [f'<a id="{claim.name}"></a>', f"### {claim.title}", "", claim.meaning, ""]
    for where, result in by_place.items():
        lines += [f"    {result['command']}", "", f"Machine {letters[where]}, {result['date']}: "]
        if "failed" in result:
            lines[-1] += f"**failed**: `{result['failed']}`"
            lines.append("")
            continue
        figures = [f"{key.replace('_', ' ')} {_value(key, result[key])}" for key in claim.shown]
        several = result.get("repetitions")
        figures += [f"{several} repetition{'s' if several > 1 else ''}"] if several else []
        lines[-1] += "; ".join([f"ratio {_ratio(result)}", *figures]) + "."
        lines.append("")
        for key, columns in claim.rows.items():
            lines += [
                f"| {' | '.join(c.replace('_', ' ') for c in columns)} |",
                f"|{'---|' * len(columns)}",
            ]
            lines += [f"| {' | '.join(_value(c, line[c]) for c in columns)} |" for line in result[key]]
            lines.append("")
    return lines


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_value(key, v) for v in value)
    if key.startswith("memory_") and key != "memory_share" and not key.endswith("exponent"):
        return f"{value / 1e9:.2f} GB"
    if isinstance(value, int) or key == "gemm_flops":
        return f"{value:,.0f}"
    if key in ("ours", "theirs", "ours_slowest"):
        return f"{value:.3g} s"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write(text: str, path: Path) -> None:
    """Put the figures between the page's two marks; what stands around them stays."""
    old = path.read_text(encoding="utf-8") if path.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    before, rest = old.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main() -> int:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the embedded pair and small sizes")
    parser.add_argument("--only", action="append", help="name of a claim; may be given again")
    parser.add_argument("--teacher", help="folder of the real pair's teacher")
    parser.add_argument("--student", help="folder of the real pair's student")
    parser.add_argument("--rows", help="jsonl file of the real pair's rows")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of benchmarks.md and benchmarks.json")
    parser.add_argument("--stale", action="store_true", help="list the figures that are older than the code")
    options = parser.parse_args()
    kept = options.docs / "benchmarks.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    if options.stale:
        print("\n".join(stale(results)) or "every figure is of the present code")
        return 0
    here, failed, left_out = machine(), [], []
    for claim in QUICK if options.quick else FULL:
        if options.only and claim.name not in options.only:
            continue
        if claim.pair == "real" and not (options.teacher and options.student and options.rows):
            left_out.append(claim.name)
            continue
        print(f"{claim.name} ...", end=" ", flush=True)
        result = {"machine": here, **run(claim, options), "date": time.strftime("%Y-%m-%d")}
        results.setdefault(claim.name, {})[place(result)] = result
        failed += [claim.name] if "failed" in result else []
        print(f"{_ratio(result)} {_verdict(claim, result)} {result['seconds_of_benchmark']} s", flush=True)
        options.docs.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(results, indent=1) + "\n")
        write(page(results), options.docs / "benchmarks.md")
    if left_out:
        print(f"left out, they need --teacher, --student and --rows: {', '.join(left_out)}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
