"""The teacher's answers become rows: its own greedy text, resumed after a stop, never a held-out prompt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from semalign.config import (
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    PairingConfig,
    TrainConfig,
    TransferConfig,
)
from semalign.data.drawing import split_rows
from semalign.data.inputs import load_inputs
from semalign.embedded.keys import splits_of
from semalign.errors import CacheError, DataError
from semalign.run.folder import RunFolder
from semalign.steps import generate as step
from semalign.steps import prompts as new_prompts
from semalign.steps.pipeline import transfer
from semalign.steps.prompts import by_words

LIMIT = 24


def config_of(pair: tuple[Path, Path], rows: Path, out: Path, **data: object) -> TransferConfig:
    return TransferConfig(
        teacher=ModelConfig(str(pair[0])),
        student=ModelConfig(str(pair[1])),
        data=replace(DataConfig(str(rows), heldout_rows=4, max_length=128, max_new_tokens=LIMIT), **data),
        output_dir=str(out),
        pairing=PairingConfig(num_layers=1),
        train=TrainConfig(num_train_epochs=1, per_device_train_batch_size=8),
        evaluation=EvaluationConfig(batch_size=4),
    )


@pytest.fixture(scope="module")
def talking_pair(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny pair, with a teacher that soon ends its answers: the end token's row of the head is made long."""
    folder = tmp_path_factory.mktemp("talking")
    model = AutoModelForCausalLM.from_pretrained(tiny_pair[0])
    tokenizer = AutoTokenizer.from_pretrained(tiny_pair[0])
    with torch.no_grad():
        model.get_output_embeddings().weight[tokenizer.eos_token_id] *= 3
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, tiny_pair[1]


def written(run: RunFolder) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in run.rows.read_text().splitlines()]


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
                text = tokenizer.decode(ids[0, start:-1], skip_special_tokens=True)
                expected += [[*prompt, {"role": "assistant", "content": text}]] if text.strip() else []
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
    with pytest.raises(DataError, match=r"prompts alone need data\.completions: teacher"):
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
    config, calls, answers = config_of(talking_pair, rows_file, tmp_path / "b", variants=2), [], step.answers

    def stopping(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answers(*arguments, **options)

    monkeypatch.setattr(step, "answers", stopping)
    with pytest.raises(KeyboardInterrupt):
        transfer(config, ("generate",))
    part = tmp_path / "b" / "rows.part"
    part.write_text(part.read_text() + '"cut o')
    run = transfer(config, ("generate",))
    assert written(run) == written(straight) and not part.exists()
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


@pytest.mark.parametrize(("batch_size", "at_once"), [(4, [1] * 6), (64, [3, 3])])
def test_the_teachers_prompt_is_what_follows_three_rows(
    batch_size: int,
    at_once: list[int],
    talking_pair: tuple[Path, Path],
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    met: list[list[int]] = []
    sizes: list[int] = []

    def listening(
        model: object, tokenizer: object, rows: list[list[int]], *rest: object, **more: object
    ) -> list[list[tuple[str, bool]]]:
        met.extend(rows)
        sizes.append(len(rows))
        texts = [(f" new {len(met)} ", True), ("cut o", False), ("  ", True), (f"new {len(met)}", True)]
        return [texts] * len(rows)

    monkeypatch.setattr(new_prompts, "continuations", listening)
    config = config_of(
        talking_pair, rows_file, tmp_path / "run", variants=3, variants_by="teacher", max_length=512
    )
    config = replace(config, evaluation=EvaluationConfig(batch_size=batch_size))
    run = transfer(config, ("generate",))
    tokenizer = AutoTokenizer.from_pretrained(talking_pair[0])
    given = [json.loads(line)["messages"] for line in rows_file.read_text().splitlines()]
    places = {row[0]["content"]: n for n, row in enumerate(given)}
    for ids in met:
        text = tokenizer.decode(ids)
        shown = [n for content, n in places.items() if f"{content}<|end|>" in text]
        shown.sort(key=lambda n: text.index(f"{given[n][0]['content']}<|end|>"))
        assert len(shown) == 3 and max(shown) < 16, "held-out rows are not shown"
        whole = tokenizer.apply_chat_template(
            [*given[shown[0]], *given[shown[1]], *given[shown[2]], {"role": "user", "content": "next"}],
            tokenize=False,
        )
        assert whole.startswith(text) and whole[len(text) :].startswith("next")
    assert sizes == at_once, (
        "96 prompts may be drawn for 48, every context stands for 16, a batch holds as many as it can"
    )
    answered = [row[0]["content"] for row in written(run)[16:]]
    assert set(answered) <= {f"new {n}" for n in range(1, 7)} and len(answered) == len(set(answered))


def test_prompts_and_answers_outlive_a_stop(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"variants": 2, "variants_by": "teacher", "completions": "teacher"}
    straight = transfer(config_of(talking_pair, rows_file, tmp_path / "a", **options), ("generate",))
    config, calls = config_of(talking_pair, rows_file, tmp_path / "b", **options), []

    def stop_at(name: str, module: object, limit: int) -> None:
        original = getattr(module, name)

        def stopping(*arguments: object, **more: object) -> object:
            calls.append(name)
            if calls.count(name) == limit:
                raise KeyboardInterrupt
            return original(*arguments, **more)

        monkeypatch.setattr(module, name, stopping)

    stop_at("continuations", new_prompts, 2)
    stop_at("answers", step, 6)
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
    with pytest.raises(DataError, match=r"data\.max_new_tokens"):
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


def test_new_prompts_of_the_embedded_world_are_no_problems_of_its_test_or_validation_split() -> None:
    data = DataConfig(
        "embedded:transfer/code_complete", heldout_name="embedded:test/code_complete", variants=3
    )
    config = TransferConfig(ModelConfig("x"), ModelConfig("y"), data, "unused")
    rows, heldout = split_rows(data)
    made = list(by_words([row["messages"][:1] for row in rows], config, heldout))
    assert len(made) == 3 * len(rows)
    found = {split for chat in made for split in splits_of(chat[-1]["content"])}
    assert "transfer" in found and not found & {"test", "validation"}


def test_no_new_prompt_is_that_of_an_item(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    def prompts(config: TransferConfig) -> set[str]:
        step.generate(config, run := RunFolder(Path(config.output_dir)))
        return {chat[0]["content"] for chat in written(run)}

    config = config_of(talking_pair, rows_file, tmp_path / "first", variants=2)
    new = prompts(config) - {row["messages"][0]["content"] for row in split_rows(config.data)[0]}
    item = {"task": "t", "messages": [{"role": "user", "content": min(new)}], "check": {"kind": "exact"}}
    (tmp_path / "items.jsonl").write_text(json.dumps(item) + "\n")
    evaluation = replace(config.evaluation, tasks=str(tmp_path / "items.jsonl"))
    config = replace(config, evaluation=evaluation, output_dir=str(tmp_path / "second"))
    assert min(new) not in prompts(config)


def test_items_that_are_trained_on_stop_the_run(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_pair, rows_file, tmp_path / "run")
    row = split_rows(config.data)[0][0]
    (tmp_path / "items.jsonl").write_text(json.dumps({**row, "task": "t", "check": {"kind": "exact"}}) + "\n")
    config = replace(config, evaluation=replace(config.evaluation, tasks=str(tmp_path / "items.jsonl")))
    with pytest.raises(DataError, match="the prompts of 1 items are among the training rows"):
        load_inputs(config)
