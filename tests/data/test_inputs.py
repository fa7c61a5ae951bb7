"""What every step starts from: rows as tokens, the ids both models share, and what identifies them."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import save_model, tiny_config, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from semalign.config import DataConfig, TransferConfig
from semalign.data import prepare
from semalign.data.drawing import split_rows
from semalign.data.inputs import Inputs, inputs_of, is_to_answer, load_inputs
from semalign.data.mixture import Drawn
from semalign.errors import CacheError, DataError, ModelError
from semalign.models.loading import named
from semalign.run.folder import RunFolder, save_result
from semalign.steps.pipeline import transfer


@pytest.fixture
def config(tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path) -> TransferConfig:
    """16 rows to train on and 4 to measure on."""
    return tiny_config(tiny_pair, rows_file, tmp_path / "run")


def of(config: TransferConfig, **changes: object) -> TransferConfig:
    """The same with other fields of its data."""
    return replace(config, data=replace(config.data, **changes))


def written(path: Path, lines: list[dict]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def padded(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny teacher with 64 rows of its head that stand for no token."""
    model = AutoModelForCausalLM.from_pretrained(tiny_pair[0])
    model.resize_token_embeddings(384, mean_resizing=False)
    return save_model(model, tmp_path_factory.mktemp("padded"))


def test_padded_heads_are_sliced_to_the_shared_ids(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    padded = AutoModelForCausalLM.from_pretrained(tiny_pair[0])
    padded.resize_token_embeddings(384, mean_resizing=False)
    teacher = save_model(padded, tmp_path / "padded")
    run = transfer(
        tiny_config((teacher, tiny_pair[1]), rows_file, tmp_path / "run", heldout_rows=0),
        ("attribute", "pair", "cache"),
    )
    plain = transfer(
        tiny_config(tiny_pair, rows_file, tmp_path / "plain", heldout_rows=0), ("attribute", "pair", "cache")
    )
    ours, theirs = (json.loads(r.manifest.read_text())["alignment"] for r in (run, plain))
    assert [a["cosine"] for a in ours] == pytest.approx([a["cosine"] for a in theirs], abs=1e-3)


def test_other_tokens_on_the_same_ids_are_refused(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    folder = save_model(tiny_model("llama", layers=5, wide=True), tmp_path / "teacher")
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    assert "<unused1>" in text
    swapped = text.replace("<unused1>", "<other1>")
    (folder / "tokenizer.json").write_text(swapped, encoding="utf-8")
    with pytest.raises(ModelError, match="<other1>"):
        transfer(tiny_config((folder, tiny_pair[1]), rows_file, tmp_path / "run", heldout_rows=0))


def test_items_that_are_trained_on_stop_the_run(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_pair, rows_file, tmp_path / "run")
    row = split_rows(config.data)[0][0]
    (tmp_path / "items.jsonl").write_text(
        json.dumps({**row, "task": "t", "check": {"kind": "number", "answer": 2}}) + "\n"
    )
    config = replace(config, evaluation=replace(config.evaluation, tasks=str(tmp_path / "items.jsonl")))
    with pytest.raises(DataError, match="the prompts of 1 items are among the training rows"):
        load_inputs(config)


def test_samples_are_those_of_the_drawn_rows(config: TransferConfig) -> None:
    found, (train, heldout) = load_inputs(config), split_rows(config.data)
    options = {"max_length": 128, "source": str(config.data.dataset_name)}
    assert found.train == prepare(train, tiny_tokenizer(), **options)  # type: ignore[arg-type]
    assert [s.sha for s in found.heldout] == [
        s.sha for s in prepare(heldout, tiny_tokenizer(), max_length=128)
    ]
    assert found.heldout[0].id == "held-out rows:1"
    assert (found.teacher.layers, found.student.layers, found.vocabulary) == (5, 3, 320)
    counts = found.counts()
    assert (counts["training_rows"], counts["heldout_rows"]) == (16, 4)
    assert counts["supervised_tokens"] == sum(sum(s.mask) for s in found.train)
    assert counts["sources"][str(config.data.dataset_name)]["train"] == 16


def test_without_held_out_rows_there_are_none(config: TransferConfig) -> None:
    found = load_inputs(of(config, heldout_rows=0))
    assert found.heldout == [] and len(found.train) == 20


def test_rows_are_cut_at_the_smallest_of_all_limits(
    config: TransferConfig, rows_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for asked, length in ((20, 20), (4096, 128)):
        text = "five " * 300
        path = written(
            rows_file.with_name("long.jsonl"), [{"prompt": f"{n} ", "completion": text} for n in range(4)]
        )
        with caplog.at_level(logging.WARNING):
            found = load_inputs(of(config, dataset_name=path, heldout_rows=1, max_length=asked))
        assert {len(s.input_ids) for s in [*found.train, *found.heldout]} == {length}
    assert "data.max_length 4096 exceeds the model's limit; using 128" in caplog.text


def test_what_is_supervised_is_what_the_config_says(config: TransferConfig) -> None:
    answers, everything = load_inputs(config), load_inputs(of(config, supervise="all"))
    assert [s.input_ids for s in answers.train] == [s.input_ids for s in everything.train]
    assert all(s.supervised == len(s.input_ids) - 1 for s in everything.train)
    assert answers.counts()["supervised_tokens"] < everything.counts()["supervised_tokens"]


def test_too_many_dropped_rows_stop_the_run(config: TransferConfig, tmp_path: Path) -> None:
    lines = [{"prompt": f"add {n}", "completion": "five" * (n > 1)} for n in range(8)]
    own = of(config, dataset_name=written(tmp_path / "few.jsonl", lines), heldout_rows=0)
    with pytest.raises(DataError, match=r"few\.jsonl: 2 of 8 rows had to be dropped"):
        load_inputs(own)
    assert len(load_inputs(of(own, max_dropped=0.25)).train) == 6


def test_a_teacher_that_is_smaller_is_refused_before_rows_become_tokens(
    config: TransferConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    swapped = replace(config, teacher=config.student, student=config.teacher)
    assert load_inputs(replace(swapped, allow_smaller_teacher=True)).student.layers == 5
    monkeypatch.setattr(
        "semalign.data.inputs.prepare", lambda *_, **__: pytest.fail("rows were prepared first")
    )
    with pytest.raises(ModelError, match="3 teacher layers and 5 student layers"):
        load_inputs(swapped)


def test_both_heads_are_sliced_to_the_ids_they_share(
    config: TransferConfig, padded: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = replace(config, teacher=replace(config.teacher, model_name_or_path=str(padded)))
    with caplog.at_level(logging.INFO, logger="semalign"):
        found = load_inputs(own)
    assert (found.teacher.vocabulary, found.student.vocabulary, found.vocabulary) == (384, 320, 320)
    assert "heads sliced to the 320 shared ids" in caplog.text
    for decoder in (found.load_teacher(), found.load_student()):
        head = decoder.model.get_output_embeddings().weight
        assert torch.equal(decoder.head().weight_VD, head[:320])


def test_candidates_are_the_tokens_of_the_training_rows_alone(config: TransferConfig) -> None:
    found = load_inputs(config)
    assert found.candidates.tolist() == sorted({i for s in found.train for i in s.input_ids})
    assert found.candidates is found.candidates, "they are read once"


def fingerprints(found: Inputs) -> dict[str, object]:
    return json.loads(json.dumps(found.fingerprint))


def test_the_fingerprint_follows_what_is_trained_on_and_not_where_it_lies(
    config: TransferConfig, rows_file: Path, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in rows_file.read_text().splitlines()]
    base = fingerprints(load_inputs(config))
    copied = fingerprints(load_inputs(of(config, dataset_name=written(tmp_path / "elsewhere.jsonl", lines))))
    assert copied == base

    def changed(**changes: object) -> set[str]:
        other = fingerprints(load_inputs(of(config, **changes)))
        return {key for key in base if base[key] != other[key]}

    turned = written(tmp_path / "turned.jsonl", [*lines[1:16], lines[0], *lines[16:]])
    assert changed(dataset_name=turned) == {"train"}, "the order counts"
    answer = {"role": "assistant", "content": "new"}
    last = lines[19] | {"messages": [*lines[19]["messages"][:1], answer]}
    assert changed(dataset_name=written(tmp_path / "last.jsonl", [*lines[:19], last])) == {"heldout"}
    assert changed(heldout_rows=3) == {"data", "train", "heldout"}
    assert changed(supervise="all") == {"data", "train", "heldout"}


def test_rows_that_are_drawn_already_give_the_same_as_their_file(config: TransferConfig) -> None:
    train, heldout = split_rows(config.data)
    found = inputs_of(config, named(config.teacher), named(config.student), Drawn(train, heldout))
    assert fingerprints(found) == fingerprints(load_inputs(config)) and found.sources == {}


def test_a_mixture_is_named_as_one_in_messages(config: TransferConfig, tmp_path: Path) -> None:
    files = [
        written(tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {n}", "completion": ""} for n in range(3)])
        for name in "ab"
    ]
    with pytest.raises(DataError, match=r"^mixture: 0 usable samples of 6 rows"):
        load_inputs(of(config, dataset_name=dict.fromkeys(files, 1.0), heldout_rows=0))


def test_a_row_is_to_be_answered_where_it_has_no_answer_and_the_teacher_gives_them() -> None:
    asked = {"messages": [{"role": "user", "content": "Q"}]}
    both = {"messages": [*asked["messages"], {"role": "assistant", "content": "A"}]}
    teacher, given = DataConfig("x", completions="teacher"), DataConfig("x", variants=2)
    assert is_to_answer(teacher, asked)
    assert not is_to_answer(teacher, both) and not is_to_answer(given, asked)


def test_an_estimate_stands_in_for_answers_and_variants_to_come(
    config: TransferConfig, tmp_path: Path
) -> None:
    asked = [{"messages": [{"role": "user", "content": f"what is {n}"}]} for n in range(8)]
    path = written(tmp_path / "asked.jsonl", asked)
    own = of(config, dataset_name=path, heldout_rows=2, completions="teacher", variants=2, max_new_tokens=9)
    found = load_inputs(own)
    assert (len(found.train), len(found.heldout)) == (6 * 3, 2)
    assert all(s.supervised >= 9 for s in [*found.train, *found.heldout]), "an answer may be that long"
    given = load_inputs(of(config, variants=1))
    assert len(given.train) == 32 and [s.sha for s in given.train[:16]] == [s.sha for s in given.train[16:]]


def test_the_generate_step_s_rows_take_the_place_of_the_drawn_ones(
    config: TransferConfig, tmp_path: Path
) -> None:
    own, run = of(config, variants=1), RunFolder(tmp_path)
    for path in (run.rows, run.heldout):
        with pytest.raises(CacheError, match=rf"{path.name}: not there yet; run `semalign generate` first"):
            load_inputs(own, run)
        written(path, [{"prompt": f"{path.stem} {n}", "completion": " five"} for n in range(3)])
        save_result(run.generated, {}, {}, [p for p in (run.rows, run.heldout) if p.exists()])
    found = load_inputs(own, run)
    assert [s.row["prompt"] for s in found.train] == ["rows 0", "rows 1", "rows 2"]
    assert [s.row["prompt"] for s in found.heldout] == ["heldout 0", "heldout 1", "heldout 2"]
    assert len(load_inputs(config, run).train) == 16, "where nothing is generated the drawn rows stay"
    run.rows.write_text(run.rows.read_text().replace("rows 1", "rows 9"))
    with pytest.raises(
        DataError, match=r"rows\.jsonl: edited or damaged since .* delete it and run `semalign generate`"
    ):
        load_inputs(own, run)


def test_a_template_that_reads_the_clock_is_warned_of(
    config: TransferConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_inputs(config)
    assert "strftime_now" not in caplog.text
    shutil.copytree(config.student.model_name_or_path, tmp_path / "student")
    template = tmp_path / "student" / "chat_template.jinja"
    template.write_text("{{ strftime_now('%Y') }}" + template.read_text())
    student = replace(config.student, model_name_or_path=str(tmp_path / "student"))
    load_inputs(replace(config, student=student))
    assert "rows change with the clock" in caplog.text


@pytest.mark.parametrize("identified", [True, False], ids=["hashed", "estimated"])
def test_a_teacher_that_is_the_student_is_warned_of_and_no_other(
    config: TransferConfig, caplog: pytest.LogCaptureFixture, identified: bool
) -> None:
    load_inputs(config, identified=identified)
    assert "the teacher is the student" not in caplog.text
    load_inputs(replace(config, teacher=config.student), identified=identified)
    assert "the teacher is the student" in caplog.text
