"""Words change places only where the rows show that they can."""

import random

from semalign.data.variants import exchangeable, variants, vary

TEXTS = [
    "Tom has 3 cups and 4 pens.",
    "Ana has 5 cups and 6 pens.",
    "Tom has 7 hats and 4 pens.",
    "Name the river of Zor.",
]


def test_words_are_exchangeable_where_they_share_a_surrounding() -> None:
    table = exchangeable(TEXTS)
    assert table["Tom"] == {"Ana": 1}  # both stand between the start and "has"
    assert table["3"] == {"5": 1}
    assert table["4"] == {"6": 1}
    assert "river" not in table and "7" not in table


def test_a_replaced_word_changes_everywhere_and_the_rest_stays() -> None:
    table = {"Tom": {"Ana": 1}}
    text = "Tom has 3. Tom's sum?\n- Tomas"
    assert vary(text, table, random.Random(0), 1) == "Ana has 3. Ana's sum?\n- Tomas"
    assert vary("Ana and Tom", table, random.Random(0), 3) == "Ana and Tom", "no word is put in twice"


def test_variants_are_new_different_and_reproducible() -> None:
    found = variants(TEXTS, 9, seed=1)
    texts = [text for _, text in found]
    assert found == variants(TEXTS, 9, seed=1) != variants(TEXTS, 9, seed=2)
    assert len(set(texts)) == len(texts) == 9 and not set(texts) & set(TEXTS)
    table = exchangeable(TEXTS)
    for number, text in found:
        pairs = zip(TEXTS[number].split(), text.split(), strict=True)
        changed = [(a.strip("."), b.strip(".")) for a, b in pairs if a != b]
        assert 1 <= len(changed) <= 3 and all(b in table[a] for a, b in changed)


def test_rows_with_nothing_in_common_have_no_variants() -> None:
    assert variants(["one two", "three four five"], 4) == []
    assert variants([], 4) == []
