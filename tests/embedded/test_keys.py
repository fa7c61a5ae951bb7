"""A prompt leads back to the problem it states, whatever its words."""

import pytest

from semalign import embedded
from semalign.data import variants
from semalign.embedded.items import items
from semalign.embedded.keys import keys_of, splits_of
from semalign.embedded.splits import TASKS, Split


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
