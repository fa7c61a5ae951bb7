"""What only the teacher reads: which turns stand before a row, and that the supervised tokens stay the same."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from in_memory import samples, student, teacher
from tiny import config_of

from semalign.config import DataConfig, ModelConfig
from semalign.data import Sample, prepare
from semalign.data.batches import candidates_of
from semalign.data.inputs import load_inputs
from semalign.data.shown import Shown
from semalign.errors import ConfigError, DataError
from semalign.maths.pairing import LayerPair
from semalign.run.files import Record
from semalign.run.folder import RunFolder
from semalign.signals.passes import student_signals, teacher_signals
from semalign.signals.request import Request
from semalign.steps.pipeline import transfer

from .marked import chat, supervised_text

DATA = DataConfig("rows.jsonl")
SYSTEM = {"role": "system", "content": "Be brief."}
ROWS = [chat("one?", "1"), chat("two?", "2"), chat("three?", "3"), chat("four?", "4")]


def shown(sees: str, *, rows: list[dict[str, Any]] = ROWS, seed: int = 0, shots: int = 2) -> Shown:
    return Shown(ModelConfig("teacher", sees=sees, shots=shots), rows, seed)  # type: ignore[arg-type]


def said(row: dict[str, Any]) -> list[str]:
    return [turn["content"] for turn in row["messages"]]


def test_shots_are_other_rows_between_the_system_turn_and_the_rows_own() -> None:
    row = {"messages": [SYSTEM, *ROWS[0]["messages"]], "id": 7}
    found = shown("shots", rows=[row, *ROWS[1:]]).before(row, "row 1")
    assert found["id"] == 7 and found["messages"][0] == SYSTEM
    assert said(found)[-2:] == ["one?", "1"] and len(said(found)) == 1 + 2 * 3
    pairs = {tuple(said(other)) for other in ROWS[1:]}
    assert {tuple(said(found)[1:3]), tuple(said(found)[3:5])} < pairs
    # A prompt without its answer is shown the same, and so it is the second time.
    asked = {"messages": row["messages"][:-1]}
    assert said(shown("shots", rows=[row, *ROWS[1:]]).before(asked, "prompt 1")) == said(found)[:-1]
    orders = {tuple(said(shown("shots", seed=n).before(ROWS[0], "row 1"))) for n in range(8)}
    assert len(orders) > 1


def test_all_other_rows_are_shown_where_there_are_too_few() -> None:
    assert len(said(shown("shots", shots=9).before(ROWS[0], "row 1"))) == 2 * 4


def test_the_answer_is_the_rows_own() -> None:
    written = chat("two?", "it is two")
    assert said(shown("answer").before(written, "row 2")) == ["two?", "2", "two?", "it is two"]
    with pytest.raises(DataError, match=r"row 9: teacher.sees is answer, but no given row answers"):
        shown("answer").before(chat("nine?", "9"), "row 9")


def test_rows_that_show_nothing_are_refused() -> None:
    with pytest.raises(DataError, match=r"teacher.sees: expected given rows of messages with answers"):
        shown("shots", rows=[{"messages": ROWS[0]["messages"][:-1]}])
    with pytest.raises(DataError, match=r"row 3: teacher.sees needs rows with messages"):
        shown("shots").before({"prompt": "a", "completion": "b"}, "row 3")
    assert shown("nothing", rows=[]).before({"text": "a"}, "row 1") == {"text": "a"}


@pytest.mark.parametrize("name", ["chatml", "llama2", "gemma", "reasoning"])
def test_the_teacher_reads_the_same_supervised_tokens_after_more(tokenizer: Any, name: str) -> None:
    tok = tokenizer(name)
    own = prepare(ROWS, tok, max_length=512)
    views = shown("shots").views(own, tok, DATA, 4096)
    for sample, plain in zip(views, own, strict=True):
        view = sample.for_teacher
        assert replace(sample, view=None) == plain and sample.sha != plain.sha
        assert supervised_text(view, tok) == supervised_text(plain, tok)
        assert len(view.input_ids) - view.supervised > len(plain.input_ids)


def test_a_row_that_was_cut_is_cut_for_the_teacher_too(tokenizer: Any) -> None:
    tok = tokenizer("chatml")
    whole = prepare([chat("one?", "a long answer that goes on")], tok, max_length=512)
    (cut,) = prepare(
        [chat("one?", "a long answer that goes on")], tok, max_length=len(whole[0].input_ids) - 6
    )
    (view,) = shown("shots").views([cut], tok, DATA, 4096)
    assert view.for_teacher.supervised == cut.supervised < whole[0].supervised
    limit = len(view.for_teacher.input_ids)
    assert shown("shots").views([cut], tok, DATA, limit)
    with pytest.raises(DataError, match=rf"expected at most the teacher's {limit - 1} tokens, got {limit}"):
        shown("shots").views([cut], tok, DATA, limit - 1)


def test_a_template_that_writes_an_answer_otherwise_after_other_turns_is_refused(tokenizer: Any) -> None:
    tok = copy.deepcopy(tokenizer("chatml"))  # the fixture's own is everybody's
    own = prepare(ROWS, tok, max_length=512)
    tok.chat_template = tok.chat_template.replace("m['content']", "m['content'] ~ (loop.length // 3) ")
    with pytest.raises(DataError, match=r"row rows:1: the chat template renders its answer otherwise"):
        shown("shots").views(own, tok, DATA, None)


REQUEST = Request(
    pairs=(LayerPair(2, 2, 0.25),),
    interfaces=("block",),
    top_k=6,
    teacher_output=True,
    dtype=torch.float32,
)


def signals(rows: list[Sample]) -> list[Record]:
    own, theirs = student(), teacher()
    records = student_signals(own, rows, REQUEST)
    return teacher_signals(theirs, rows, REQUEST, records, own.head(), candidates_of(rows))


def test_nothing_shown_changes_nothing_bit_for_bit() -> None:
    plain = samples(4)
    alike = [replace(sample, view=replace(sample, row={})) for sample in plain]
    for one, other in zip(signals(plain), signals(alike), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@torch.no_grad()
def test_signals_are_those_after_what_is_shown() -> None:
    (sample,) = samples(1)
    longer = [5, 9, 4, *sample.input_ids]
    view = replace(sample, input_ids=longer, mask=[False] * 3 + sample.mask)
    (record,) = signals([replace(sample, view=view)])
    found = teacher().model(torch.tensor([longer]), output_hidden_states=True)
    states = torch.tensor([*view.mask[1:], False])
    logp = found.logits[0][states].log_softmax(1)
    torch.testing.assert_close(
        record["positions.teacher_output"], found.hidden_states[-1][0][states], rtol=1e-4, atol=1e-5
    )
    ids = record["positions.ids"].long()
    torch.testing.assert_close(record["positions.teacher_logp"], logp.gather(1, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sees", ["shots", "answer"])
def test_a_run_caches_and_answers_with_what_the_teacher_sees(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, sees: str
) -> None:
    def run(name: str, completions: str, **teacher_fields: Any) -> RunFolder:
        config = config_of(talking_pair, rows_file, tmp_path / name)
        config = replace(
            config,
            teacher=replace(config.teacher, **teacher_fields),
            data=replace(config.data, completions=completions, max_new_tokens=24),
        )
        return transfer(config, ("generate", "attribute", "pair", "cache", "train"))

    plain, seeing = run("plain", "given"), run("seeing", "given", sees=sees, shots=1)
    config = config_of(talking_pair, rows_file, tmp_path / "seeing")
    inputs = load_inputs(replace(config, teacher=replace(config.teacher, sees=sees, shots=1)))  # type: ignore[arg-type]
    assert all(len(s.for_teacher.input_ids) > len(s.input_ids) for s in inputs.train)
    assert all(s.view is None for s in inputs.heldout)
    counts = [json.loads(r.manifest.read_text())["supervised_tokens"] for r in (plain, seeing)]
    assert counts[0] == counts[1]
    first, second = ((r.targets / "teacher").glob("*.safetensors") for r in (plain, seeing))
    assert [p.read_bytes() for p in sorted(first)] != [p.read_bytes() for p in sorted(second)]
    written = [
        run(f"w-{name}", "teacher", **fields)
        for name, fields in (("a", {}), ("b", {"sees": sees, "shots": 1}))
    ]
    rows = [[json.loads(line)["messages"] for line in r.rows.read_text().splitlines()] for r in written]
    assert rows[0] != rows[1] and all(len(messages) == 2 for messages in rows[1])


def test_what_does_not_go_together_is_refused(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_pair, rows_file, tmp_path)
    seeing = replace(config.teacher, sees="shots")
    for fields, sentence in (
        ({"student": seeing}, "student.sees: expected nothing"),
        (
            {"teacher": seeing, "data": replace(config.data, supervise="all")},
            "teacher.sees: expected nothing with",
        ),
        (
            {"teacher": replace(seeing, sees="answer"), "data": replace(config.data, variants=1)},
            "teacher.sees: expected nothing or shots with data.variants",
        ),
    ):
        with pytest.raises(ConfigError, match=sentence):
            replace(config, **fields)
    with pytest.raises(ConfigError, match=r"teacher.shots: expected a positive count"):
        replace(seeing, shots=0)
