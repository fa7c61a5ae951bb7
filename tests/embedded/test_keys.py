"""A prompt leads back to the problem it states, whatever its words."""

import pytest

from semalign import embedded
from semalign.config import DataConfig, ModelConfig, TransferConfig
from semalign.data import variants
from semalign.data.chat import prompt_row
from semalign.embedded.items import items
from semalign.embedded.keys import is_apart, keys_of, splits_of
from semalign.embedded.splits import TASKS, Split, Task
from semalign.steps.prompts import by_words


@pytest.mark.parametrize("split", ["pretraining", "transfer", "validation", "test"])
@pytest.mark.parametrize("task", TASKS)
def test_every_item_s_prompt_gives_its_key_and_its_split(task: str, split: Split) -> None:
    for item in items(task, split, 60, seed=5):  # type: ignore[arg-type]
        assert item.key in keys_of(item.prompt)
        assert split in splits_of(item.prompt)


def test_other_names_and_words_do_not_hide_a_problem() -> None:
    first = 'def work(xs):\n    """Sum the items and add 11."""'
    second = 'def calc(nums):\n    """Return the total of nums plus 11."""'
    assert keys_of(first) == keys_of(second) == {"sum_and|11"}
    asked = "What is the river of Land?\n- One A\n- Two B"
    assert keys_of(asked) == {"Land|river|One|Two"}


@pytest.mark.parametrize("text", ["", "hello", "Name the a of b.\nno options", "def f(x):\n    pass"])
def test_other_text_states_no_problem_of_the_families(text: str) -> None:
    assert keys_of(text) == set() == splits_of(text)


def test_variants_of_transfer_prompts_do_reach_test_problems_if_nobody_looks() -> None:
    texts = [r["messages"][0]["content"] for r in embedded.rows("transfer") if r["task"] == "code_complete"]
    test = {key for r in embedded.rows("test") for key in keys_of(r["messages"][0]["content"])}
    assert any(keys_of(text) & test for _, text in variants(texts, 3 * len(texts)))


@pytest.mark.parametrize("task", TASKS)
def test_no_new_prompt_is_a_test_item_in_other_words_or_cannot_be_told(task: Task) -> None:
    """Same numbers in other words, a word off a known form, options in another order: none gets into training."""
    rows = [prompt_row(r) for r in embedded.rows("transfer") if r["task"] == task]
    config = TransferConfig(
        ModelConfig("embedded:teacher"),
        ModelConfig("embedded:student"),
        DataConfig(f"embedded:transfer/{task}", variants=3),
        "unused",
    )
    found = [chat["messages"][-1]["content"] for chat in by_words(rows, config, [])]
    assert len(found) == 3 * len(rows)
    measured = [r["messages"][0]["content"] for split in ("validation", "test") for r in embedded.rows(split)]  # type: ignore[arg-type]
    known = {unordered(key) for text in measured for key in keys_of(text)}
    for text in found:
        assert keys_of(text), text
        assert known.isdisjoint(map(unordered, keys_of(text))), text


def unordered(key: str) -> str:
    return "|".join(sorted(key.split("|"))) if key.count("|") > 3 else key


def test_a_question_with_its_options_in_another_order_is_kept_apart() -> None:
    row = next(r for r in embedded.rows("test") if r["task"] == "knowledge")
    question, *options = row["messages"][0]["content"].split("\n")
    letters = [option.rpartition(" ")[2] for option in options]
    texts = [option.rpartition(" ")[0] for option in options][::-1]
    turned = "\n".join([question, *(f"{t} {n}" for t, n in zip(texts, letters, strict=True))])
    assert keys_of(turned) and keys_of(turned) != keys_of(row["messages"][0]["content"])
    assert is_apart(turned, frozenset({"validation", "test"}))
    assert is_apart("Ana found some shells.", frozenset({"test"})), "what it states cannot be told"
