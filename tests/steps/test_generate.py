"""The teacher's answers become rows: its own greedy text, resumed after a stop, never a held-out prompt."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from semalign.data.drawing import split_rows
from semalign.data.inputs import load_inputs
from semalign.errors import CacheError, ConfigError, DataError
from semalign.run.files import read_json
from semalign.run.folder import RunFolder, save_result
from semalign.steps import generate as module
from semalign.steps import prompts as new_prompts
from semalign.steps import writers
from semalign.steps.generate import check_prompts
from semalign.steps.pipeline import transfer

from .talking import LIMIT, config_of, stop_at, written


def test_answers_are_the_teachers_own_greedy_ones(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(talking_pair, rows_file, tmp_path / "run", completions="teacher")
    run = transfer(config, ("generate",))
    model = AutoModelForCausalLM.from_pretrained(talking_pair[0])
    tokenizer = AutoTokenizer.from_pretrained(talking_pair[0])
    expected = []
    for line in rows_file.read_text().splitlines()[:-4]:
        prompt = json.loads(line)["messages"][:-1]
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt")[
            "input_ids"
        ]
        start = ids.shape[1]
        for _ in range(LIMIT):
            with torch.no_grad():
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
            if ids[0, -1] == tokenizer.eos_token_id:
                text = tokenizer.decode(ids[0, start:-1])
                # With a control token in it, which is no text, an answer is dropped.
                is_plain = not {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} & {
                    *ids[0, start:-1].tolist()
                }
                is_kept = is_plain and text.strip()
                expected += [[*prompt, {"role": "assistant", "content": text}]] if is_kept else []
                break
    assert expected and written(run) == expected
    counts = json.loads(run.generated.read_text())
    assert (counts["given"], counts["written"], counts["dropped"]) == (0, len(expected), 16 - len(expected))


@pytest.mark.parametrize("column", ["messages", "prompt"])
def test_prompts_alone_are_enough(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, column: str
) -> None:
    everything = config_of(
        talking_pair, rows_file, tmp_path / "all", completions="teacher", heldout_rows=0, max_dropped=1.0
    )
    expected = written(transfer(everything, ("generate",)))
    given = [json.loads(line)["messages"] for line in rows_file.read_text().splitlines()]
    heldout = [row[0] for row in given[-4:]]
    expected_heldout = [row for row in expected if row[0] in heldout]
    assert expected_heldout, "the teacher ends at least one of the held-out answers"
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": n, column: row[:-1]}) + "\n" for n, row in enumerate(given)))
    config = replace(everything, data=replace(everything.data, dataset_name=str(path), heldout_rows=4))
    config = replace(config, output_dir=str(tmp_path / "run"))
    estimated = load_inputs(config)
    assert (len(estimated.train), len(estimated.heldout)) == (16, 4)
    assert max(s.supervised for s in estimated.heldout) >= LIMIT, (
        "answers to come count as long as they may be"
    )
    run = transfer(config, ("generate", "attribute", "pair", "cache", "train", "evaluate"))
    rows = [json.loads(line) for line in run.heldout.read_text().splitlines()]
    assert written(run) == [row for row in expected if row[0] not in heldout]
    assert [row["messages"] for row in rows] == expected_heldout and rows[0]["id"] >= 16
    counts = json.loads(run.generated.read_text())
    assert (counts["heldout_written"], counts["heldout_dropped"]) == (len(rows), 4 - len(rows))
    assert json.loads(run.metrics.read_text())["closeness"]["rows"] == len(rows)


def test_held_out_rows_keep_their_answers(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(talking_pair, rows_file, tmp_path / "run", completions="teacher")
    run = transfer(config, ("generate",))
    assert run.heldout.read_text().splitlines() == rows_file.read_text().splitlines()[-4:]
    assert load_inputs(config, run).heldout == load_inputs(config).heldout
    run.heldout.unlink()
    with pytest.raises(CacheError, match=r"heldout\.jsonl: not there yet; run `semalign generate` first"):
        load_inputs(config, run)
    assert transfer(config, ("generate",)).heldout.exists()


def test_held_out_rows_of_a_mixture_may_be_of_several_kinds(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line)["messages"] for line in rows_file.read_text().splitlines()]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(
            json.dumps({"prompt": [{"role": "user", "content": f"more {n}"}], "completion": row[1:]}) + "\n"
            for n, row in enumerate(rows)
        )
    )
    config = config_of(talking_pair, rows_file, tmp_path / "run", completions="teacher")
    both = {str(rows_file): 1.0, str(pairs): 1.0}
    config = replace(config, data=replace(config.data, dataset_name=both))
    run = transfer(config, ("generate",))
    assert len(load_inputs(config, run).heldout) == 4
    kinds = {tuple(json.loads(line)) for line in run.heldout.read_text().splitlines()}
    assert kinds == {("id", "messages"), ("id", "prompt", "completion")}


def test_prompts_without_the_teachers_answers_are_refused(
    talking_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    rows = tmp_path / "prompts.jsonl"
    turn = {"role": "user", "content": "one"}
    rows.write_text(
        "".join(json.dumps({"prompt": [turn | {"content": f"one {n}"}]}) + "\n" for n in range(8))
    )
    with pytest.raises(DataError, match=r"prompts alone need data\.completions: student or teacher"):
        load_inputs(config_of(talking_pair, rows, tmp_path / "run"))


def test_variants_come_beside_the_given_rows_and_are_trained_on(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(talking_pair, rows_file, tmp_path / "run", variants=2)
    run = transfer(config, ("generate", "attribute", "pair", "cache", "train"))
    given = [json.loads(line)["messages"] for line in rows_file.read_text().splitlines()]
    rows = written(run)
    assert rows[:16] == given[:16] and len(rows) > 16
    prompts = [row[0]["content"] for row in rows]
    assert len(set(prompts)) == len(prompts)
    assert not set(prompts) & {row[0]["content"] for row in given[16:]}, "held-out prompts are left out"
    assert len(load_inputs(config, run).train) == len(rows)
    assert json.loads((run.root / "train.json").read_text())["steps"] == -(-len(rows) // 8)


def test_a_stopped_step_keeps_its_answers(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = transfer(config_of(talking_pair, rows_file, tmp_path / "a", variants=2), ("generate",))
    config, calls = config_of(talking_pair, rows_file, tmp_path / "b", variants=2), []
    stop_at(monkeypatch, calls, "answers", writers, 3)
    with pytest.raises(KeyboardInterrupt):
        transfer(config, ("generate",))
    part = tmp_path / "b" / "rows.part"
    part.write_text(part.read_text() + '"cut o')
    taken = tmp_path / "b" / "seconds.part"
    kept = read_json(taken, "generate")
    save_result(taken, kept["fingerprint"], {"seconds": kept["seconds"] + 1000})
    run = transfer(config, ("generate",))
    assert written(run) == written(straight) and not part.exists() and not taken.exists()
    assert read_json(run.generated, "generate")["seconds"] > 1000, "both tries count"
    asked = len(calls) - 1
    transfer(config, ("generate",))
    assert len(calls) - 1 == asked == -(-32 // 4), "every batch is asked once, a finished step not at all"


@pytest.mark.parametrize("completions", ["given", "teacher"])
def test_the_teacher_goes_on_with_prompts_of_its_own(
    completions: str, talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    options = {"variants": 2, "variants_by": "teacher", "completions": completions}
    config = config_of(talking_pair, rows_file, tmp_path / "run", **options)
    run = transfer(config, ("generate",))
    given = [json.loads(line)["messages"] for line in rows_file.read_text().splitlines()]
    counts = json.loads(run.generated.read_text())
    rows, known = written(run), {row[0]["content"] for row in given}
    new = [row for row in rows if row[0]["content"] not in known]
    assert counts["given"] == (16 if completions == "given" else 0)
    assert counts["given"] + counts["written"] == len(rows)
    assert 10 < len(new) <= 32 and len({row[0]["content"] for row in new}) == len(new)
    assert [turn["role"] for row in new for turn in row] == ["user", "assistant"] * len(new)
    assert not list(run.root.glob("*.part"))
    assert len(load_inputs(config, run).train) == len(rows)


def test_prompts_and_answers_outlive_a_stop(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"variants": 2, "variants_by": "teacher", "completions": "teacher"}
    straight = transfer(config_of(talking_pair, rows_file, tmp_path / "a", **options), ("generate",))
    config, calls = config_of(talking_pair, rows_file, tmp_path / "b", **options), []

    stop_at(monkeypatch, calls, "continuations", new_prompts, 2)
    stop_at(monkeypatch, calls, "answers", writers, 6)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            transfer(config, ("generate",))
    run = transfer(config, ("generate",))
    assert written(run) == written(straight)
    asked = json.loads(run.generated.read_text())
    assert calls.count("answers") == 1 + 4 + -(-(asked["written"] + asked["dropped"] - 16) // 4)


def test_bad_input_gets_a_sentence(talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path) -> None:
    config = config_of(talking_pair, rows_file, tmp_path / "run", variants=1)
    with pytest.raises(CacheError, match="run `semalign generate` first"):
        transfer(config, ("attribute",))
    with pytest.raises(DataError, match=r"no answer to any of the prompts says anything"):
        transfer(
            config_of(talking_pair, rows_file, tmp_path / "b", completions="teacher", max_new_tokens=1),
            ("generate",),
        )
    unanswered = tmp_path / "unanswered.jsonl"
    unanswered.write_text(
        "".join(json.dumps({"messages": [{"role": "user", "content": f"one {n}"}]}) + "\n" for n in range(9))
    )
    with pytest.raises(DataError, match=r"goes on from rows with answers.*data\.completions: teacher"):
        transfer(
            config_of(talking_pair, unanswered, tmp_path / "d", variants=1, variants_by="teacher"),
            ("generate",),
        )
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"the answer is {n}"}) + "\n" for n in range(9)))
    with pytest.raises(DataError, match="need rows with messages"):
        transfer(config_of(talking_pair, rows, tmp_path / "c", variants=1), ("generate",))


@pytest.mark.parametrize(
    "options", [{"completions": "teacher"}, {"variants": 1}, {"variants": 1, "variants_by": "teacher"}]
)
def test_tools_stay_with_the_rows_that_the_teacher_answers(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    tools = [{"type": "function", "function": {"name": "sky"}}]
    given = [{**json.loads(line), "tools": tools} for line in rows_file.read_text().splitlines()]
    path = tmp_path / "tools.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    run = transfer(config_of(talking_pair, path, tmp_path / "run", **options), ("generate",))
    found = [json.loads(line) for line in run.rows.read_text().splitlines()]
    assert len(found) > (16 if "variants" in options else 0)
    assert all(row["tools"] == tools and row.keys() == {"messages", "tools"} for row in found)


def test_answers_outlive_a_change_of_what_is_measured_and_of_how_rows_become_tokens(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(talking_pair, rows_file, tmp_path / "run", completions="teacher")
    run = transfer(config, ("generate",))
    before = run.generated.read_bytes()
    items = tmp_path / "items.jsonl"
    item = {
        "task": "t",
        "messages": [{"role": "user", "content": "?"}],
        "check": {"kind": "number", "answer": 1},
    }
    items.write_text(json.dumps(item) + "\n")
    longer = replace(config.data, max_length=config.data.max_length + 9, max_dropped=0.7)
    changed = replace(config, evaluation=replace(config.evaluation, tasks=str(items)), data=longer)
    transfer(changed, ("generate", "attribute", "pair", "cache"))
    assert run.generated.read_bytes() == before
    with pytest.raises(ConfigError, match=r"holds a run with another config \(data\.max_dropped"):
        transfer(config, ("generate",))


def test_rows_without_a_question_are_dropped_before_anybody_is_asked(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    rows[3]["messages"], rows[7]["messages"] = None, []
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(talking_pair, path, tmp_path / "run", completions="teacher", max_dropped=0.2)
    run = transfer(config, ("generate",))
    counts = json.loads(run.generated.read_text())
    assert counts["written"] + counts["dropped"] == 14
    assert "dropped 2 of 16 rows, which have no turn to answer" in caplog.text
    strict = replace(config, data=replace(config.data, max_dropped=0.1), output_dir=str(tmp_path / "b"))
    with pytest.raises(DataError, match="2 of 16 rows have no turn to answer"):
        transfer(strict, ("generate",))


def test_a_prompt_or_a_check_that_does_not_do_stops_the_run_before_anybody_is_asked(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "answers", lambda *_, **__: pytest.fail("somebody was asked"))
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    checked = [row | {"id": f"r{n}", "check": {"kind": "number", "answer": n}} for n, row in enumerate(rows)]
    checked[5]["check"] = {"kind": "number", "answer": "1,000"}
    path = tmp_path / "checked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in checked))
    options = {"completions": "teacher", "keep": "right"}
    with pytest.raises(DataError, match=r"row r5: expected a check of its answers, but .*expected a number"):
        transfer(config_of(talking_pair, path, tmp_path / "a", **options), ("generate",))
    rows[9]["messages"][0]["role"] = "developer"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    strict = shutil.copytree(talking_pair[0], tmp_path / "strict")
    tokenizer = AutoTokenizer.from_pretrained(strict)
    refusal = "{% if m.role == 'developer' %}{{ raise_exception('nobody knows it') }}{% endif %}<|"
    tokenizer.chat_template = tokenizer.chat_template.replace("<|", refusal, 1)
    tokenizer.save_pretrained(strict)
    with pytest.raises(DataError, match=r"row 10: the chat template refuses the 'developer' turn"):
        transfer(config_of((strict, strict), path, tmp_path / "b", completions="teacher"), ("generate",))


def test_what_nobody_could_be_asked_is_refused_by_itself(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(talking_pair, rows_file, tmp_path / "run", completions="teacher")
    rows = split_rows(config.data)[0]
    check_prompts(config, rows)
    with pytest.raises(DataError, match="expected a check of its answers"):
        check_prompts(replace(config, data=replace(config.data, keep="right")), rows)


@pytest.mark.parametrize(
    ("text", "said"),
    [("<|call|>", "is plain text"), (" ", "says anything"), (None, "ended within 24 tokens")],
)
def test_held_out_answers_that_do_not_do_are_told_by_what_is_wrong_with_them(
    talking_pair: tuple[Path, Path],
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str | None,
    said: str,
) -> None:
    # The control token is the teacher's alone; the student writes the other answers.
    teacher = shutil.copytree(talking_pair[0], tmp_path / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|call|>"]})
    tokenizer.save_pretrained(teacher)
    path = tmp_path / "prompts.jsonl"
    rows = [json.loads(line)["messages"][:-1] for line in rows_file.read_text().splitlines()]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    config = config_of((teacher, talking_pair[1]), path, tmp_path / "run", completions="student")
    config = replace(config, teacher=replace(config.teacher, tokenizer="own"))
    texts = {True: text, False: "An answer."}

    def answer(self: Any, open_writer: Any, asked: Any, *_: Any) -> list[list[str | None]]:
        return [[texts[len(asked) == 4]] for _ in asked]

    monkeypatch.setattr(module.Asking, "__call__", answer)
    with pytest.raises(DataError, match=f"no answer to any of the held-out prompts {said}"):
        module.generate(config, RunFolder(tmp_path / "run"))
