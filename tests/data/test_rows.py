"""Every bad file is told by file and line; folders and hub names are read or refused in one sentence."""

from __future__ import annotations

import gzip
import json
import logging
import re

import datasets
import pytest

from semalign.data import disjoint, load_rows
from semalign.errors import DataError

GOOD = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A\r\nB"}]}


@pytest.fixture
def write(tmp_path):
    def write(content, name="my rows.jsonl"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return str(path)

    return write


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_reads_lines_with_mark_blank_lines_and_odd_separators(write):
    row = {"text": "a\u2028b\u0085c 世界"}
    path = write(b"\xef\xbb\xbf" + lines(row).encode() + b"\r\n\n" + lines(row).encode().rstrip(b"\n"))
    assert load_rows(path) == [row, row]
    assert load_rows(write(lines(GOOD), "x.json-lines")) == [GOOD]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"text": "x"', "the last line is cut off"),
        ('{"messages": [{"role": "user", "content": "x"}', "the last line is cut off"),
        ('{"text": "x}', "the last line is cut off"),
        ('{"text": x}\n', "not a JSON object on one line (Expecting value, column 10)"),
        ("{\n", "not a JSON object on one line"),
        ('"text"\n', "expected a JSON object, found str"),
        ("[1]\n", "expected a JSON object, found list"),
        ("[" * 100_000 + "\n", "JSON nested too deeply"),
        (b'{"text": "\xff"}\n', "not UTF-8 (byte 0xff at column 11)"),
        ('{"text": "\\ud800"}\n', "half of a surrogate pair"),
        (
            '{"question": 1, "answer": 2}\n',
            "found columns ['answer', 'question'], expected messages, prompt +",
        ),
        ('{"text": 5}\n', "text is a number, expected a string"),
        ('{"text": ["a"]}\n', "text is a list, expected a string"),
        (
            '{"prompt": "a", "completion": ["b"]}\n',
            "prompt is a string and completion is a list, expected two",
        ),
        ('{"prompt": null, "completion": "b"}\n', "prompt is null and completion is a string"),
        ('{"messages": "hello"}\n', "messages is a string, expected a list of messages"),
        (
            '{"messages": [{"content": "x"}]}\n',
            "messages, message 1: expected an object with role and content",
        ),
        ('{"messages": [{"role": "user", "content": 3}]}\n', "messages, message 1: content is a number"),
        ('{"input_ids": ["a"]}\n', "input_ids is not a list of token ids"),
        ('{"input_ids": [1, 2], "labels": [1]}\n', "labels is not a list of 2 integers"),
        ('{"input_ids": [1, 2], "labels": [2, 2]}\n', "labels[0] is 2, expected -100 or input_ids[0] = 1"),
        (
            '{"prompt": "a", "completion": "b"}\n',
            "a row of prompt + completion (strings) after rows of messages",
        ),
        ('{"text": "a"}\n', "a row of text after rows of messages; all rows of a dataset are of one kind"),
    ],
)
def test_bad_line_stops_or_is_skipped_and_counted(write, caplog, bad, reason):
    path = write(lines(GOOD, GOOD).encode() + (bad if isinstance(bad, bytes) else bad.encode()))
    with pytest.raises(DataError, match=re.escape(f"{path}:3: ") + ".*" + re.escape(reason)):
        load_rows(path)
    with caplog.at_level(logging.WARNING):
        assert load_rows(path, on_bad_row="skip") == [GOOD, GOOD]
    assert f"skipped 1 of 3 rows, the first: {path}:3: " in caplog.text


def test_null_and_blank_answers_are_left_to_prepare(write):
    rows = [{"prompt": "a", "completion": None}, {"prompt": "a", "completion": " "}]
    assert load_rows(write(lines(*rows))) == rows


def test_array_file_stops_even_when_bad_rows_are_skipped(write):
    for content in (json.dumps([GOOD]), json.dumps([GOOD], indent=1)):
        path = write(content, "rows.json")
        with pytest.raises(DataError, match=r"rows.json:1: expected JSON Lines .* found a JSON array"):
            load_rows(path, on_bad_row="skip")


def test_nothing_usable(write):
    with pytest.raises(DataError, match="0 usable rows, there are no rows in it"):
        load_rows(write(""))
    with pytest.raises(
        DataError, match=r"0 usable rows, 2 bad rows skipped, the first: .*x'\], expected messages"
    ):
        load_rows(write(lines({"x": 1}, {"x": 2})), on_bad_row="skip")


def test_wrong_places(write, tmp_path):
    with pytest.raises(DataError, match=r"expected a readable file of JSON Lines at .*No such file"):
        load_rows(str(tmp_path / "missing.jsonl"))
    with pytest.raises(DataError, match=r"expected a file of JSON Lines .* got \.csv"):
        load_rows(write("a,b\n", "rows.csv"))
    with pytest.raises(DataError, match="found nothing there; check the path"):
        load_rows(str(tmp_path / "missing"))
    with pytest.raises(DataError, match="expected a folder written by datasets' save_to_disk"):
        load_rows(str(tmp_path))
    with pytest.raises(DataError, match="expected stop or skip, got 'ignore'"):
        load_rows(write(lines(GOOD)), on_bad_row="ignore")


def test_saved_folder(tmp_path):
    saved = datasets.Dataset.from_list([GOOD, GOOD])
    saved.save_to_disk(str(tmp_path / "one"))
    assert load_rows(str(tmp_path / "one")) == [GOOD, GOOD]
    datasets.DatasetDict({"train": saved, "val": saved.select([0])}).save_to_disk(str(tmp_path / "two"))
    assert load_rows(str(tmp_path / "two"), split="val") == [GOOD]
    with pytest.raises(DataError, match="expected a split named test, found train, val"):
        load_rows(str(tmp_path / "two"), split="test")
    datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}]).add_column("n", [1, 2]).save_to_disk(
        str(tmp_path / "t")
    )
    assert [row["text"] for row in load_rows(str(tmp_path / "t"))] == ["a", "b"]


def test_columns_that_are_null_because_another_row_has_them(tmp_path):
    mixed = datasets.Dataset.from_list([{"text": "a", "prompt": None, "completion": None}])
    mixed.save_to_disk(str(tmp_path / "mixed"))
    assert load_rows(str(tmp_path / "mixed"))[0]["text"] == "a"


def test_hub_dataset_is_asked_for_by_name_config_and_split(monkeypatch):
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return datasets.Dataset.from_list([GOOD])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_rows("some/thing", dataset_config="main", split="test") == [GOOD]
    assert asked == [(("some/thing", "main"), {"split": "test"})]


def test_hub_dataset_without_network_names_the_prefetch_command(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as caught:
        load_rows("some/thing", dataset_config="main", split="train")
    assert "dataset 'some/thing' is neither a local file or folder nor to be had from the hub" in str(
        caught.value
    )
    assert "load_dataset('some/thing', 'main', split='train')" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_disjoint_counts_repeated_prompts():
    train = [
        GOOD,
        {
            "messages": [
                {"role": "user", "content": "Was\tist  das?\n"},
                {"role": "assistant", "content": "x"},
            ]
        },
    ]
    assert disjoint(train, [{"prompt": "Was ist das?", "completion": "y"}]) == 1
    assert disjoint(train, [{"prompt": "was ist das?", "completion": "y"}]) == 0, (
        "letter case may be the question"
    )
    assert disjoint([{"text": "Gro\u0308ße"}], [{"text": "Größe"}, {"text": "Große"}]) == 1
    empty = [{"prompt": "", "completion": word} for word in ("a", "b")]
    assert disjoint(empty[:1], empty) == 1, "without a prompt the whole row counts"
    ids = [
        {"input_ids": [1, 2, 3], "labels": [-100, -100, 3]},
        {"input_ids": [1, 2, 4], "labels": [-100, -100, 4]},
    ]
    assert disjoint(ids[:1], ids) == 2
    pair = {"prompt": GOOD["messages"][:1], "completion": [{"role": "assistant", "content": "other"}]}
    assert disjoint([GOOD], [pair]) == 1


ROWS = [{"prompt": f"Wo? {n} ü", "completion": f"Da {n}\u2028."} for n in range(30)]


def test_a_compressed_file_holds_the_same_rows(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    assert load_rows(str(path)) == ROWS
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="expected a whole gzip file"):
        load_rows(str(path))
    path.write_bytes(b"not compressed")
    with pytest.raises(DataError, match="expected a whole gzip file"):
        load_rows(str(path))
    with pytest.raises(DataError, match="expected a readable file of JSON Lines"):
        load_rows(str(tmp_path / "none.jsonl.gz"))


def test_a_parquet_file_holds_the_same_rows(tmp_path):
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list(ROWS).to_parquet(path)
    assert load_rows(str(path)) == ROWS
    chats = [
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": f"A{n}"}]}
        for n in range(3)
    ]
    datasets.Dataset.from_list(chats).to_parquet(path)
    assert load_rows(str(path)) == chats
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(DataError, match="expected a readable Parquet file"):
        load_rows(str(path))
    with pytest.raises(DataError, match="expected a readable Parquet file"):
        load_rows(str(tmp_path / "none.parquet"))
    with pytest.raises(DataError, match=r"rows\.parquet:2: .*mend the row"):
        datasets.Dataset.from_list([ROWS[0], {"prompt": None, "completion": None}]).to_parquet(path)
        load_rows(str(path))
