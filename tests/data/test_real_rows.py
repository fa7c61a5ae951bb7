"""The published training rows, where this checkout has them beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from semalign.data import disjoint, load_rows, prepare

FOLDER = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not FOLDER.is_dir(), reason="no shared/data beside the repository")
@pytest.mark.parametrize(("name", "count"), [("gsm_train", 1000), ("mbpp_train", 300), ("mmlu_train", 1000)])
def test_every_real_row_is_read_and_supervises_its_answer(tokenizer, name, count):
    tok = tokenizer("chatml")
    rows = load_rows(str(FOLDER / f"{name}.jsonl"))
    samples = prepare(rows, tok, max_length=100_000, source=name)
    assert len(rows) == len(samples) == count
    for sample in samples:
        text = tok.decode([i for i, m in zip(sample.input_ids, sample.mask, strict=True) if m])
        assert text == sample.row["messages"][-1]["content"] + "<|im_end|>"
    assert disjoint(rows, rows) == count
