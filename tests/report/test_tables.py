"""Tables for a terminal: every figure beside its model, and every finding with its place."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from semalign.data.check import check_rows
from semalign.report.tables import SHOWN, final_table, show

Row = dict[str, Any]


def metrics(**changes: Any) -> dict[str, Any]:
    """metrics.json of a run with one baseline."""
    tasks = {
        "sums": {"n": 40}
        | {
            m: {"accuracy": a}
            for m, a in (("before", 0.2), ("cosine", 0.25), ("after", 0.5), ("teacher", 0.9))
        }
    }
    closeness = {
        "rows": 8,
        "before": {"kl": 0.5, "top1_agreement": 0.75, "nll": 1.5},
        "cosine": {"kl": 0.625, "top1_agreement": 0.5, "nll": 1.75},
        "after": {"kl": 0.125, "top1_agreement": 0.875, "nll": 1.25},
        "teacher": {"nll": 1.0},
    }
    harness = {"task": "gsm8k", "metric": "exact_match", "filter": "strict-match", "n": 200}
    return {
        "recipe": "aligned",
        "accuracy_gap_closed": 0.43,
        "kl_gap_closed": 0.75,
        "baselines": {"cosine": {"accuracy_gap_closed": None, "kl_gap_closed": -0.25}},
        "accuracy": {"before": 0.2, "cosine": 0.25, "after": 0.5, "teacher": 0.9},
        "tasks": tasks,
        "closeness": closeness,
        "harness": [harness | {"before": {"value": 0.21}, "after": {"value": 0.34}, "teacher": {"value": 0.52}}],
        "wall_seconds": 214.6,
        "train_seconds": 18.3,
        "peak_rss_bytes": 3 * 2**30,
    } | changes  # fmt: skip


def printed(write: Any, found: dict[str, Any]) -> str:
    """What a wide terminal without colours shows."""
    file = io.StringIO()
    write(found, Console(file=file, width=200))
    return file.getvalue()


def cells(text: str) -> dict[str, list[str]]:
    """Rows of a printed table by their name."""
    rows = [
        [cell.strip() for cell in line.strip("│┃|").split("│")] for line in text.splitlines() if "│" in line
    ]
    return {row[0]: row[1:] for row in rows}


def test_every_figure_stands_beside_its_model() -> None:
    text = printed(final_table, metrics())
    header = next(line for line in text.splitlines() if "before" in line)
    assert [cell.strip() for cell in header.strip("┃").split("┃")][1:] == [
        "before",
        "cosine",
        "after",
        "teacher",
    ]
    assert cells(text) == {
        "sums (n=40)": ["20.0%", "25.0%", "50.0%", "90.0%"],
        "gsm8k exact_match, strict-match (n=200)": ["0.210", "-", "0.340", "0.520"],
        "average accuracy": ["20.0%", "25.0%", "50.0%", "90.0%"],
        "KL to the teacher": ["0.500", "0.625", "0.125", "-"],
        "Top-1 agreement": ["0.750", "0.500", "0.875", "-"],
        "NLL": ["1.500", "1.750", "1.250", "1.000"],
        "Accuracy gap closed": ["-", "-", "43%", "-"],
        "KL gap closed": ["-", "-25%", "75%", "-"],
    }  # fmt: skip
    assert "215 s in all, training 18 s, peak memory 3.00 GiB\n" in text and "recipe aligned" in text


def test_a_run_without_tasks_has_no_average() -> None:
    text = printed(final_table, metrics(tasks={}, harness=[], accuracy={}))
    assert list(cells(text)) == [
        "KL to the teacher", "Top-1 agreement", "NLL", "Accuracy gap closed", "KL gap closed",
    ]  # fmt: skip


def test_a_run_without_held_out_rows_has_no_closeness() -> None:
    without = metrics()
    del without["closeness"]
    assert not {"KL to the teacher", "Top-1 agreement", "NLL"} & set(cells(printed(final_table, without)))


def test_memory_of_a_gpu_is_told_where_there_was_one() -> None:
    text = printed(final_table, metrics(peak_gpu_bytes=2**31))
    assert "peak memory 3.00 GiB, 2.00 GiB on the GPU" in text


def row(prompt: str, answer: str = "5") -> Row:
    return {"prompt": prompt, "completion": answer}


def findings(*rows: Row, evaluation: tuple[Row, ...] = (), **changes: Any) -> dict[str, Any]:
    placed = [(f"rows:{n}", r) for n, r in enumerate(rows, 1)]
    items = [(f"items:{n}", r) for n, r in enumerate(evaluation, 1)]
    return {"file": "rows.jsonl", **check_rows(placed, evaluation=items), **changes}


def test_every_kind_of_finding_is_listed_with_its_places() -> None:
    rows = (
        row("add 2"),
        row("add 2"),
        row("add 2", "7"),
        row("Add, 2!"),
        row("add 3", ""),
        row("what is it?"),
    )
    text = printed(show, findings(*rows, evaluation=(row("what is it?"), row("ADD 3"))))
    assert text.startswith("rows.jsonl: 6 rows of good form (6 x prompt + completion (strings))\n")
    for lines in (
        "equal rows: 1\n  rows:2 as rows:1\n",
        "equal prompts, other answers: 1\n  rows:3 as rows:1\n",
        "prompts that differ in case, punctuation or space only: 1\n  rows:4 as rows:1\n",
        "evaluation: 1 rows have a prompt of its 2 items\n",
        "nearly an evaluation item: 1\n  rows:5 as items:2\n",
        "dropped: 1\n  rows:5: ",
        "rows:6: is an evaluation item too: items:1\n",
    ):
        assert lines in text, lines
    assert "give --model to see them" in text


@pytest.mark.parametrize(("count", "more"), [(SHOWN, None), (SHOWN + 7, "  and 7 more; --json lists all\n")])
def test_long_lists_are_cut_with_the_count_of_what_is_left_out(count: int, more: str | None) -> None:
    errors = [{"place": f"rows:{n}", "reason": "bad"} for n in range(count)]
    text = printed(show, findings(row("add 2"), errors=errors))
    assert f"errors: {count}\n" in text and text.count("rows:") == min(count, SHOWN)
    assert ("--json lists all" in text) is (more is not None) and (more or "") in text


def test_nothing_to_say_is_not_said() -> None:
    text = printed(show, findings(row("add 2"), row("add 3")))
    assert len(text.splitlines()) == 2


def test_brackets_in_rows_are_text() -> None:
    errors = [{"place": "rows:1", "reason": "[red]no[/] [/nothing]"}]
    sample = {
        "sample": "[bold]⟦yes⟧[/bold]",
        "tokens": {"total_supervised": 3, "max_length": 9, "cut": ["rows:1"], "unseen": []},
    }
    text = printed(show, findings(row("add 2"), errors=errors, **sample))
    assert "  rows:1: [red]no[/] [/nothing]\n" in text and "[bold]⟦yes⟧[/bold]\n" in text
    assert "3 supervised tokens in all\n" in text and "cut at 9 tokens: 1\n  rows:1\n" in text


def test_lengths_are_told_by_quantile() -> None:
    quantiles = {"min": 1, "10%": 2, "median": 3, "90%": 4, "99%": 5, "max": 6}
    tokens = {"row": quantiles, "supervised": {k: 10 * v for k, v in quantiles.items()}}
    found = findings(
        row("add 2"), tokens=tokens | {"total_supervised": 60, "max_length": 9, "cut": [], "unseen": []}
    )
    lines = cells(printed(show, found))
    assert lines == {
        "row": ["1", "2", "3", "4", "5", "6"],
        "supervised": ["10", "20", "30", "40", "50", "60"],
    }


def test_what_the_chat_template_leaves_out_is_told_last() -> None:
    left = {"unseen": ["rows:2"], "unseen_turns": 3, "rows_with_unseen_turns": 1, "unseen_thinking": 0}
    tokens = {"total_supervised": 60, "max_length": 9, "cut": []} | left
    text = printed(show, findings(row("add 2"), tokens=tokens))
    assert "rows of which the chat template leaves something out: 1\n  rows:2\n" in text
    assert text.endswith("the chat template leaves out the text of 3 turns in 1 rows\n")
