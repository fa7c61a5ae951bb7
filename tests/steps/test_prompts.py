"""New prompts: variants of the given ones, or the teacher's own; none known, none told twice, none that is measured on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from in_memory import config_of as in_memory_config
from in_memory import teacher
from in_memory import tokenizer as tiny
from transformers import AutoTokenizer

from semalign.config import DataConfig, EvaluationConfig, ModelConfig, TransferConfig
from semalign.data.drawing import split_rows
from semalign.embedded.keys import splits_of
from semalign.errors import DataError
from semalign.models.decoder import Decoder
from semalign.run.folder import RunFolder
from semalign.steps import generate as step
from semalign.steps import prompts as new_prompts
from semalign.steps.pipeline import transfer
from semalign.steps.prompts import PATIENCE, PROMPTS_A_CONTEXT, by_teacher, by_words

from .talking import config_of, written


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


def test_new_prompts_of_the_embedded_world_are_no_problems_of_its_test_or_validation_split() -> None:
    data = DataConfig(
        "embedded:transfer/code_complete", heldout_name="embedded:test/code_complete", variants=3
    )
    config = TransferConfig(ModelConfig("x"), ModelConfig("y"), data, "unused")
    rows, heldout = split_rows(data)
    made = list(by_words([{"messages": row["messages"][:1]} for row in rows], config, heldout))
    assert len(made) == 3 * len(rows)
    found = {split for chat in made for split in splits_of(chat["messages"][-1]["content"])}
    assert "transfer" in found and not found & {"test", "validation"}


def test_no_new_prompt_is_that_of_an_item(
    talking_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    def prompts(config: TransferConfig) -> set[str]:
        step.generate(config, run := RunFolder(Path(config.output_dir)))
        return {chat[0]["content"] for chat in written(run)}

    config = config_of(talking_pair, rows_file, tmp_path / "first", variants=2)
    new = prompts(config) - {row["messages"][0]["content"] for row in split_rows(config.data)[0]}
    item = {
        "task": "t",
        "messages": [{"role": "user", "content": min(new)}],
        "check": {"kind": "number", "answer": 2},
    }
    (tmp_path / "items.jsonl").write_text(json.dumps(item) + "\n")
    evaluation = replace(config.evaluation, tasks=str(tmp_path / "items.jsonl"))
    config = replace(config, evaluation=evaluation, output_dir=str(tmp_path / "second"))
    assert min(new) not in prompts(config)


Chat = list[dict[str, Any]]


def rowed(chats: Sequence[Chat]) -> list[dict[str, Any]]:
    return [{"messages": chat} for chat in chats]


def turns(rows: Iterable[dict[str, Any]]) -> list[Chat]:
    found = list(rows)
    assert all(row.keys() == {"messages"} for row in found)
    return [row["messages"] for row in found]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


SYSTEM = {"role": "system", "content": "be short"}
NAMES = ("Tom", "Ana", "Ida", "Bo", "Una", "Max")
PROMPTS: list[Chat] = [[SYSTEM, user("hello"), user(f"{name} has {n} cups.")] for n, name in enumerate(NAMES)]


def worded(
    prompts: list[Chat] = PROMPTS, measured_on: list[Any] | None = None, seed: int = 0, **data: Any
) -> list[Chat]:
    config = in_memory_config(Path("unused"), data=DataConfig("rows", **{"variants": 3} | data), seed=seed)
    return turns(by_words(rowed(prompts), config, measured_on or []))


def last(chats: list[Chat]) -> list[str]:
    return [chat[-1]["content"] for chat in chats]


def test_the_last_turn_alone_is_varied() -> None:
    found = worded()
    assert 6 < len(found) <= 18 and all(chat[:-1] == [SYSTEM, user("hello")] for chat in found)
    texts = last(found)
    assert len(set(texts)) == len(texts) and not set(texts) & set(last(PROMPTS))
    assert all(text.split()[0] in NAMES and text.endswith(" cups.") for text in texts)
    assert PROMPTS[0] == [SYSTEM, user("hello"), user("Tom has 0 cups.")], "the given prompts stay"


def test_the_seed_of_the_run_draws_the_variants() -> None:
    assert worded(seed=1) == worded(seed=1) != worded(seed=2)


def test_no_variant_is_a_prompt_that_is_measured_on_whatever_its_white_space() -> None:
    free = worded(variants=9)
    refused = last(free)[:5]
    rows = [{"messages": [SYSTEM, user("hello"), user(text.replace(" ", "\n "))]} for text in refused]
    found = last(worded(measured_on=rows, variants=9))
    assert found and not set(found) & set(refused)


def test_prompts_without_exchangeable_words_or_without_text_have_no_variants() -> None:
    assert worded([[user("one two")], [user("three four five")]]) == []
    assert worded([[{"role": "user", "content": None}]]) == [] == worded([])


ROWS: list[Chat] = [
    [user(f"question {n}"), {"role": "assistant", "content": f"answer {n}"}] for n in range(5)
]


class Teacher:
    """Stands in for a teacher that writes the given texts after every context, and keeps what it was asked."""

    def __init__(self, texts: Callable[[int], list[tuple[str, bool]]]) -> None:
        self.texts, self.opened, self.contexts, self.seeds = texts, 0, [], []
        self.decoder = teacher()

    def open(self) -> Decoder:
        self.opened += 1
        return self.decoder

    def continuations(
        self, model: Any, tokenizer: Any, rows: list[list[int]], count: int, **more: Any
    ) -> Any:
        assert count == PROMPTS_A_CONTEXT and model is self.decoder.model
        found = []
        for ids in rows:
            found.append(self.texts(len(self.contexts)))
            self.contexts.append(tokenizer.decode(ids))
        self.seeds.append(more["seed"])
        return found


def numbered(context: int) -> list[tuple[str, bool]]:
    return [(f"prompt {context} {n}", True) for n in range(PROMPTS_A_CONTEXT)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[Teacher, list[Chat]]]:
    """A teacher of the given texts, and the prompts that come of it for 20 given ones."""

    def ask(
        texts: Callable[[int], list[tuple[str, bool]]] = numbered,
        *,
        rows: list[Chat] = ROWS,
        known: list[Any] | None = None,
        wanted: dict[str, Any] | None = None,
        batch_size: int = 4,
        given: int = 20,
        **data: Any,
    ) -> tuple[Teacher, list[Chat]]:
        made = Teacher(texts)
        monkeypatch.setattr(new_prompts, "continuations", made.continuations)
        options = {"variants": 2, "variants_by": "teacher", "max_new_tokens": 8} | data
        config = in_memory_config(
            tmp_path,
            data=DataConfig(**{"dataset_name": "rows"} | options),
            evaluation=EvaluationConfig(batch_size=batch_size),
        )
        part = tmp_path / "prompts.part"
        found = by_teacher(rowed(rows), given, config, known or [], made.open, part, wanted or {"a": 1})
        return made, turns(found)

    return ask


Ask = Callable[..., tuple[Teacher, list[Chat]]]


def test_as_many_prompts_are_made_as_are_wanted_and_no_more_is_asked_for(asked: Ask) -> None:
    made, found = asked()
    assert last(found) == [f"prompt {c} {n}" for c in range(3) for n in range(16)][:40]
    assert all(chat == [user(chat[0]["content"])] for chat in found)
    assert len(made.contexts) == 3 and len(set(made.seeds)) == 3, "each batch is drawn by a seed of its own"


def test_prompts_that_are_known_told_before_blank_or_cut_off_are_left_out(asked: Ask) -> None:
    def texts(context: int) -> list[tuple[str, bool]]:
        return [
            ("  padded ", True),
            ("padded", True),
            ("known", True),
            (" ", True),
            ("cut o", False),
            *numbered(context),
        ]

    _, found = asked(
        texts, known=[{"messages": [user("known")]}, {"prompt": "prompt 0  0", "completion": "x"}]
    )
    assert last(found)[:3] == ["padded", "prompt 0 1", "prompt 0 2"]
    assert len(set(last(found))) == len(found) == 40 and "prompt 0 0" not in last(found)


def test_a_teacher_that_repeats_itself_is_left_after_twice_the_prompts_that_are_wanted(asked: Ask) -> None:
    made, found = asked(lambda context: [("always this", True)] * PROMPTS_A_CONTEXT)
    assert last(found) == ["always this"]
    assert len(made.contexts) == -(-PATIENCE * 40 // PROMPTS_A_CONTEXT) == 5


def test_several_contexts_are_one_batch_where_the_batch_has_room(asked: Ask) -> None:
    made, found = asked(batch_size=33)
    assert len(found) == 40 and len(made.contexts) == 3 and len(made.seeds) == 2
    made, _ = asked(batch_size=400, wanted={"a": 2})
    assert len(made.contexts) == 3 and len(made.seeds) == 1, "no more contexts than are still needed"


def test_a_context_is_three_rows_and_ends_where_the_user_goes_on(asked: Ask) -> None:
    made, _ = asked()
    for text in made.contexts:
        turns = text.split("<|end|>")
        assert len(turns) == 7 and turns[-1] == "<|user|>"
        numbers = [turn.removeprefix("<|user|>question ") for turn in turns[:-1:2]]
        assert len(set(numbers)) == 3 and [t.split()[-1] for t in turns[1::2]] == numbers
    assert len(set(made.contexts)) > 1, "rows are drawn anew"
    made, _ = asked(rows=ROWS[:1], wanted={"a": 2})
    assert set(made.contexts) == {"<|user|>question 0<|end|><|assistant|>answer 0<|end|><|user|>"}


def test_new_prompts_have_the_system_turn_that_their_context_began_with(asked: Ask) -> None:
    made, found = asked(rows=[[SYSTEM, *chat] for chat in ROWS])
    assert all(chat[0] == SYSTEM and len(chat) == 2 for chat in found)
    assert all(text.startswith("<|system|>be short<|end|>") for text in made.contexts)
    assert all(text.count("<|system|>") == 1 for text in made.contexts)


def test_a_context_has_as_many_rows_as_the_teacher_has_positions_for(asked: Ask) -> None:
    def shown(words: int, new: int) -> tuple[set[int], int]:
        """Rows of a context, and its tokens; three rows have 3 tokens a word and 25 more."""
        long = [[user("sky " * words + str(n)), {"role": "assistant", "content": "yes"}] for n in range(5)]
        made, _ = asked(rows=long, max_new_tokens=new, wanted={"words": words, "new": new})
        assert made.decoder.shape.positions == 128
        lengths = [len(tiny()(text, add_special_tokens=False)["input_ids"]) for text in made.contexts]
        return {text.count("<|assistant|>") for text in made.contexts}, max(lengths)

    assert shown(31, 10) == ({3}, 118), "118 and 10 fit"
    rows, length = shown(31, 11)
    assert rows == {2} and length < 100
    assert shown(200, 24)[0] == {1}, "one row is shown whatever its length"


def stopping(at: int) -> Callable[[int], list[tuple[str, bool]]]:
    def texts(context: int) -> list[tuple[str, bool]]:
        if context == at:
            raise KeyboardInterrupt
        return numbered(context)

    return texts


def test_what_was_written_before_a_stop_is_kept(asked: Ask, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        asked(stopping(2))
    part = tmp_path / "prompts.part"
    part.write_text(part.read_text() + '["cut o')
    made, found = asked(lambda context: [(f"later {n}", True) for n in range(PROMPTS_A_CONTEXT)])
    assert last(found) == [f"prompt {c} {n}" for c in range(2) for n in range(16)] + [
        f"later {n}" for n in range(8)
    ]
    assert len(made.contexts) == 1
    again, same = asked(lambda context: pytest.fail("the teacher was asked again"))
    assert same == found and again.opened == 0, "what is there needs no teacher"


def test_what_was_written_for_other_rows_is_not_kept(asked: Ask) -> None:
    asked()
    made, found = asked(lambda context: [(f"other {context} {n}", True) for n in range(16)], wanted={"a": 2})
    assert all(text.startswith("other") for text in last(found)) and len(made.contexts) == 3


def test_rows_without_answers_name_the_option(asked: Ask) -> None:
    with pytest.raises(DataError, match=r"data\.variants_by: .*none has one; set data\.completions: teacher"):
        asked(rows=[])


def of_split(name: str, count: int = 16) -> list[str]:
    rows, _ = split_rows(DataConfig(f"embedded:{name}/arithmetic", max_rows=count))
    return [row["messages"][0]["content"] for row in rows]


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (("embedded:transfer/arithmetic",), {"test", "validation"}),
        (("embedded:transfer/arithmetic", "embedded:validation/arithmetic"), {"test"}),
        (("rows.jsonl",), set()),
    ],
    ids=["world", "validation is trained on", "other rows"],
)
def test_problems_kept_for_measuring_are_refused_in_whatever_words(
    asked: Ask, names: tuple[str, ...], refused: set[str]
) -> None:
    texts = {name: of_split(name) for name in ("transfer", "validation", "test")}
    assert all(splits_of(text) >= {name} for name, some in texts.items() for text in some)
    ways = [(text, True) for some in texts.values() for text in some]
    _, found = asked(lambda context: ways, given=99, dataset_name=dict.fromkeys(names, 1.0))
    met = {split for text in last(found) for split in splits_of(text)}
    assert "transfer" in met and not met & refused
    assert {"validation", "test"} - refused <= met
