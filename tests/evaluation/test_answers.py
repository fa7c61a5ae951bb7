"""Answers to items, kept batch by batch while they are given."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import config_of

from semalign.config import EvaluationConfig, SamplingConfig, ServerConfig, TransferConfig
from semalign.errors import DataError
from semalign.evaluation import answers as module
from semalign.evaluation import decoding
from semalign.evaluation.answers import answer_items, by_item, gold_of, graded_again
from semalign.models.loading import load

ITEMS = 5


@pytest.fixture
def config(tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path) -> TransferConfig:
    items = [
        {
            "id": f"i{n}",
            "task": "sums" if n < 4 else "words",
            "messages": [{"role": "user", "content": "and " * (ITEMS - n)}],
            "check": {"kind": "number", "answer": 10_000 + n},
        }
        for n in range(ITEMS)
    ]
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    evaluation = EvaluationConfig(tasks=str(path), max_new_tokens=3, batch_size=2)
    return replace(config_of(tiny_pair, rows_file, tmp_path / "run"), evaluation=evaluation)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each batch had that was really continued."""
    sizes: list[int] = []
    original = decoding._generate_batch

    def counted(model: Any, tokenizer: Any, rows: list[list[int]], count: int = 1) -> Any:
        sizes.append(len(rows))
        return original(model, tokenizer, rows, count)

    monkeypatch.setattr(decoding, "_generate_batch", counted)
    return sizes


def test_kept_answers_are_taken_where_they_were_made_from_the_same(
    config: TransferConfig, tmp_path: Path, asked: list[int]
) -> None:
    decoder, part = load(config.student), tmp_path / "answers.part"
    straight = answer_items(decoder, config)
    assert [a["id"] for a in straight] == [f"i{n}" for n in range(ITEMS)], "though long prompts come last"
    assert asked == [2, 2, 1]
    assert answer_items(decoder, config, part=part, wanted={"a": 1}) == straight and asked == [2, 2, 1] * 2
    assert answer_items(decoder, config, part=part, wanted={"a": 1}) == straight and len(asked) == 6
    # A damaged line and those after it are asked for again.
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join([*lines[:2], b"x" + lines[2], lines[3]]))
    assert answer_items(decoder, config, part=part, wanted={"a": 1}) == straight and asked[6:] == [2, 1]
    answer_items(decoder, config, part=part, wanted={"a": 2})
    assert len(asked) == 11
    assert [a["id"] for a in answer_items(decoder, config, "words")] == ["i4"]


def test_several_drawn_answers_an_item_go_on_after_a_stop_with_the_same_draws(
    config: TransferConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = replace(config.evaluation, samples=3, sampling=SamplingConfig(temperature=1.0), batch_size=6)
    config = replace(config, evaluation=drawn)
    decoder, part = load(config.student), tmp_path / "answers.part"
    straight = answer_items(decoder, config)
    assert [(a["id"], a["sample"]) for a in straight] == [
        (f"i{n}", k) for n in range(ITEMS) for k in (1, 2, 3)
    ]
    assert len({a["text"] for a in straight}) > ITEMS and {a["gold"] for a in straight[:3]} == {"10000"}
    assert [len(several) for several in by_item(straight)] == [3] * ITEMS
    calls: list[int] = []
    original = decoding._generate_batch

    def stopping(model: Any, tokenizer: Any, rows: list[list[int]], count: int = 1) -> Any:
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(model, tokenizer, rows, count)

    monkeypatch.setattr(decoding, "_generate_batch", stopping)
    with pytest.raises(KeyboardInterrupt):
        answer_items(decoder, config, part=part)
    assert answer_items(decoder, config, part=part) == straight and calls == [2, 2, 2, 1]
    assert graded_again(config, straight) == straight
    with pytest.raises(DataError, match="expected the items that the 6 stored answers were given to"):
        graded_again(config, straight[:6])
    other = answer_items(decoder, replace(config, seed=config.seed + 1))
    assert [a["text"] for a in other] != [a["text"] for a in straight]


def test_answers_to_items_with_other_turns_before_the_last_one_are_not_graded_as_theirs(
    config: TransferConfig, tmp_path: Path
) -> None:
    path = Path(str(config.evaluation.tasks))
    plain = path.read_text()
    given = answer_items(load(config.student), config)
    assert all("asked" not in answer for answer in given)
    system = '"messages": [{"role": "system", "content": "count"}, '
    path.write_text(plain.replace('"messages": [', system))
    with pytest.raises(DataError, match="expected the items that the 5 stored answers were given to"):
        graded_again(config, given)
    told = answer_items(load(config.student), config)
    assert graded_again(config, told) == told
    path.write_text(plain.replace('"messages": [', system.replace("count", "add")))
    with pytest.raises(DataError, match="expected the items"):
        graded_again(config, told)


def test_a_server_s_answers_are_kept_too(
    config: TransferConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "http://localhost:1"
    config = replace(config, teacher=replace(config.teacher, server=ServerConfig(url=url, model="x")))
    asked: list[int] = []

    def answered(
        model: Any, tokenizer: Any, prompts: Any, max_new_tokens: int, **drawn: Any
    ) -> list[tuple[str, bool]]:
        asked.append(len(prompts))
        assert drawn["samples"] == 1 and drawn["seed"] % 2 == 0
        if len(asked) == 2:
            raise KeyboardInterrupt
        return [(f"10000 {len(asked)}", True)] * len(prompts)

    monkeypatch.setattr(module, "asked_answers", answered)
    part = tmp_path / "answers.part"
    with pytest.raises(KeyboardInterrupt):
        answer_items(None, config, part=part)
    texts = [a["text"] for a in answer_items(None, config, part=part)]
    assert texts == ["10000 1"] * 2 + ["10000 3"] * 2 + ["10000 4"] and asked == [2, 2, 2, 1]


def test_kept_answers_of_one_engine_are_not_taken_for_another_s(
    config: TransferConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The padded engine answers short prompts first, others in the order of the items."""

    def in_order(model: Any, tokenizer: Any, rows: list[list[int]], settings: Any) -> list[tuple[str, bool]]:
        return [(f"{len(row)} tokens", True) for row in rows]

    monkeypatch.setattr(decoding, "_generate_continuously", in_order)
    decoder, part = load(config.student), tmp_path / "answers.part"
    answer_items(decoder, config, part=part, wanted={"a": 1})
    other = replace(config, evaluation=replace(config.evaluation, engine="continuous"))
    found = answer_items(decoder, other, part=part, wanted={"a": 1})
    lengths = [int(a["text"].split()[0]) for a in found]
    assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) == ITEMS


def test_what_the_template_has_a_model_think_is_not_its_answer(
    config: TransferConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [
        "10000 boxes, but wait",
        "10001? No.</think>It is 3.",
        "3?</think>It is 10002.",
        "10003",
        "10004",
    ]

    def written(*_: Any, **__: Any) -> list[tuple[str, bool]]:
        return [(text, n > 0) for n, text in enumerate(texts)]

    monkeypatch.setattr(module, "answers", written)
    decoder = load(config.student)
    plain = answer_items(decoder, config)
    assert [a["text"] for a in plain] == texts
    assert [a["correct"] for a in plain] == [True, False, True, True, True]
    assert decoder.tokenizer is not None
    decoder.tokenizer.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    found = answer_items(decoder, config)
    assert [a["correct"] for a in found] == [False, False, True, False, False]
    assert found == graded_again(config, found)


def test_the_right_answer_in_words() -> None:
    turns = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "It is 2."}]
    assert gold_of({"messages": turns}) == "It is 2."
    assert gold_of({"messages": turns[:1], "check": {"answer": 2}}) == "2"
    assert gold_of({"messages": turns[:1], "check": {}}) == ""
