"""What `semalign data check` finds: every bad row with its place, and what a run would do with the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_tokenizer

from semalign.cli import main
from semalign.data import load_rows, prepare
from semalign.data.check import Tokens, check_rows, duplicates, quantiles
from semalign.errors import DataError


def pair(prompt: str, completion: str | None) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion}


def placed(*rows: Any) -> list[tuple[str, Any]]:
    return [(f"rows:{n}", row) for n, row in enumerate(rows, start=1)]


def places(findings: list[dict[str, str]]) -> list[str]:
    return [f["place"] for f in findings]


def test_every_bad_row_is_listed_and_none_stops_the_check(
    tmp_path: Path, tiny_pair: tuple[Path, Path]
) -> None:
    path = tmp_path / "rows.jsonl"
    good = [json.dumps(pair(f"add {i}", " five")) for i in range(20)]
    bad = ['{"prompt": 1}', "no json", '{"text": "of another kind"}', '{"prompt": "a", "completion": 3}']
    path.write_text("\n".join([good[0], bad[0], *good[1:9], bad[1], bad[2], *good[9:], bad[3]]))
    found = check_file(path, "--model", str(tiny_pair[1]))
    assert places(found["errors"]) == [f"{path}:{n}" for n in (2, 11, 12, 24)]
    assert found["rows"] == 20 and found["exit_code"] == DataError.exit_code
    for error in found["errors"]:
        with pytest.raises(DataError):
            line = path.read_text().splitlines()[int(error["place"].rsplit(":", 1)[1]) - 1]
            (tmp_path / "one.jsonl").write_text(f"{good[0]}\n{line}")
            load_rows(str(tmp_path / "one.jsonl"))


def check_file(path: Path, *options: str) -> dict[str, Any]:
    """The findings and that the exit code is theirs."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = main(["data", "check", str(path), "--json", *options])
    found = json.loads(printed.getvalue())
    assert code == found["exit_code"]
    return found


def test_lengths_masks_and_drops_are_those_of_a_run(rows_file: Path) -> None:
    tokenizer = tiny_tokenizer()
    rows = [*load_rows(str(rows_file)), {"messages": [{"role": "user", "content": "unanswered"}]}]
    found = check_rows(placed(*rows), tokens=Tokens(tokenizer, 16))
    samples = prepare(rows, tokenizer, max_length=16, max_dropped=1.0)
    assert found["tokens"]["total_supervised"] == sum(s.supervised for s in samples)
    assert len(samples) + len(found["dropped"]) == len(rows)
    assert found["tokens"]["max_length"] == 16 and found["tokens"]["cut"]
    whole = {len(s.input_ids): s.id for s in prepare(rows, tokenizer, max_length=999, max_dropped=1.0)}
    assert found["tokens"]["row"]["max"] <= max(whole)
    assert found["sample"].count("⟦") == 1 and "<|assistant|>⟦the answer is" in found["sample"]
    assert "rows:21" in places(found["dropped"])


def test_without_a_tokenizer_empty_answers_are_still_found() -> None:
    rows = [pair(f"add {i}", " five") for i in range(30)]
    found = check_rows(placed(*rows, pair("nothing", None), pair("blank", "  ")))
    assert places(found["dropped"]) == ["rows:31", "rows:32"]
    assert found["tokens"] is None and found["errors"] == []


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "there are none"),
        ([pair("a", "")], "none is left"),
        ([pair(f"a{i}", "x" * (i > 0)) for i in range(5)], "more than the share of 0.1"),
    ],
)
def test_what_a_run_would_stop_at_is_an_error_of_the_whole(rows: list[Any], reason: str) -> None:
    (error,) = check_rows(placed(*rows))["errors"]
    assert error["place"] == "rows" and reason in error["reason"]


def test_duplicates_are_told_apart_and_named_with_the_first() -> None:
    rows = [
        pair("Add 2 and 3.", "5"),
        pair("Add  2 and 3.", "5"),
        pair("Add 2 and 3.", "5"),
        pair("add 2, and 3", "5"),
    ]
    found = duplicates(placed(*rows, pair("Add 2 and 4.", "6")))
    assert found == {
        "rows": [{"place": "rows:3", "first": "rows:1"}],
        "prompts": [{"place": "rows:2", "first": "rows:1"}],
        "near": [{"place": "rows:4", "first": "rows:1"}],
    }


def test_overlap_with_evaluation_items_is_an_error_and_nearness_is_told() -> None:
    items = placed(
        {"messages": [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "5"}]}
    )
    rows = placed(
        pair("What  is 2 + 3?", " five"), pair("what is 2+3", " five"), pair("what is 4 + 3?", " 7")
    )
    found = check_rows(rows, evaluation=[("items:1", items[0][1])])
    assert found["overlap"]["prompts"] == [{"place": "rows:1", "first": "items:1"}]
    assert found["overlap"]["near"] == [{"place": "rows:2", "first": "items:1"}]
    assert found["errors"] == [{"place": "rows:1", "reason": "is an evaluation item too: items:1"}]


def test_the_embedded_rows_are_clean_against_their_test_items() -> None:
    found = check_file(
        Path("embedded:transfer"),
        "--model",
        "embedded:student",
        "--against",
        "embedded:test",
        "--max_length",
        "256",
    )
    assert found["exit_code"] == 0 and not found["errors"] and not found["dropped"]
    assert found["rows"] == 1180 and found["overlap"]["items"] == 600


def test_people_see_places_lengths_and_the_mask(
    rows_file: Path, tiny_pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(rows_file), "--model", str(tiny_pair[1]), "--max_length", "20"]) == 0
    shown = capsys.readouterr().out
    assert "20 rows of good form (20 x messages)" in shown and "supervised" in shown
    assert "⟦the answer is" in shown and "cut at 20 tokens" in shown


def test_a_file_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "./nothing.jsonl"]) == DataError.exit_code
    assert "nothing.jsonl" in capsys.readouterr().err


def test_quantiles_are_values_by_nearest_rank() -> None:
    assert quantiles(range(1, 101)) == {"min": 1, "10%": 10, "median": 50, "90%": 90, "99%": 99, "max": 100}
    assert set(quantiles([7]).values()) == {7}
