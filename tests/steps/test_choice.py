"""Which answers are kept: those that end, that are right, and of these the one that the teacher finds likeliest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from semalign.config import SamplingConfig
from semalign.errors import ConfigError, DataError
from semalign.models.decoder import Decoder
from semalign.steps.choice import choose

from .talking import config_of

SAMPLED = {"completions": "student", "samples": 4, "sampling": SamplingConfig(temperature=1.0)}
ROWS = [
    {
        "id": n,
        "messages": [{"role": "user", "content": f"{n} + 1?"}],
        "check": {"kind": "number", "answer": n + 1},
    }
    for n in (1, 2, 3)
]
PROMPTS = [{"messages": row["messages"]} for row in ROWS]
TEXTS = [
    ["It is 2.", "It is 2.", None, "It is 9."],
    ["So 3", "3", "The answer is 3.", "4"],
    ["7", None, None, None],
]


def chosen(folder: Path, keep: str, teacher: Any = None) -> tuple[list[list[str]], dict[str, int]]:
    config = config_of((folder, folder), folder / "rows.jsonl", folder, keep=keep, **SAMPLED)
    chats, dropped = choose(config, ROWS, PROMPTS, TEXTS, lambda: teacher)
    assert all(chat["messages"][-1]["role"] == "assistant" for chat in chats)
    texts = [
        [c["messages"][-1]["content"] for c in chats if c["messages"][:-1] == p["messages"]] for p in PROMPTS
    ]
    assert sum(map(len, TEXTS)) == len(chats) + sum(dropped.values()), "every answer is accounted for"
    return texts, dropped


def test_what_ends_is_kept_once(tmp_path: Path) -> None:
    texts, dropped = chosen(tmp_path, "ended")
    assert texts == [["It is 2.", "It is 9."], ["So 3", "3", "The answer is 3.", "4"], ["7"]]
    assert dropped == {"blank": 0, "control": 0, "unended": 4, "repeated": 1, "wrong": 0, "less_likely": 0}


def test_what_nobody_can_be_trained_on_is_dropped_by_its_reason(tmp_path: Path) -> None:
    config = config_of((tmp_path, tmp_path), tmp_path / "rows.jsonl", tmp_path, **SAMPLED)
    texts = [["so 2", " \n", None, "call<|tool|>{}"]]
    chats, dropped = choose(config, ROWS[:1], PROMPTS[:1], texts, lambda: None, ["<|tool|>"])  # type: ignore[arg-type,return-value]
    assert [chat["messages"][-1]["content"] for chat in chats] == ["so 2"]
    assert {k: v for k, v in dropped.items() if v} == {"unended": 1, "blank": 1, "control": 1}


def test_what_is_wrong_is_dropped(tmp_path: Path) -> None:
    texts, dropped = chosen(tmp_path, "right")
    assert texts == [["It is 2."], ["So 3", "3", "The answer is 3."], []]
    assert dropped == {"blank": 0, "control": 0, "unended": 4, "repeated": 1, "wrong": 3, "less_likely": 0}


def test_the_best_is_the_one_of_least_loss_a_token(tmp_path: Path) -> None:
    teacher = Decoder(tiny_model("llama", layers=2, wide=False, seed=3), tiny_tokenizer(), "teacher")
    texts, dropped = chosen(tmp_path, "best", teacher)
    losses = {}
    tokenizer: Any = teacher.tokenizer
    for text in ("So 3", "3", "The answer is 3."):
        chat = [*PROMPTS[1]["messages"], {"role": "assistant", "content": text}]
        start = len(tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True)["input_ids"])
        ids = torch.tensor([tokenizer.apply_chat_template(chat)["input_ids"]])
        with torch.no_grad():
            logp = teacher.model(ids).logits[0, :-1].log_softmax(-1)
        losses[text] = -float(logp.gather(1, ids[0, 1:, None])[start - 1 :].mean())
    assert texts == [["It is 2."], [min(losses, key=lambda text: losses[text])], []]
    assert dropped["less_likely"] == 2


def test_a_prompt_that_fills_max_length_stops_nothing(tmp_path: Path) -> None:
    teacher = Decoder(tiny_model("llama", layers=2, wide=False, seed=3), tiny_tokenizer(), "teacher")
    rows = [ROWS[0] | {"messages": [{"role": "user", "content": "add two and three " * 20}]}, *ROWS[1:]]
    prompts = [{"messages": row["messages"]} for row in rows]
    config = config_of(
        (tmp_path, tmp_path), tmp_path / "rows.jsonl", tmp_path, keep="best", **SAMPLED | {"max_length": 24}
    )
    texts = [["It is 2.", "2", "9"], *TEXTS[1:]]
    chats, dropped = choose(config, rows, prompts, texts, lambda: teacher)
    kept = [(c["messages"][0]["content"][:3], c["messages"][-1]["content"]) for c in chats]
    assert kept[0] == ("add", "It is 2."), (
        "of answers that nobody can weigh the first, as of any that are equal"
    )
    assert len(kept) == 2 and kept[1][1] in ("So 3", "3", "The answer is 3.")
    assert dropped["less_likely"] == 3


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    config = config_of((tmp_path, tmp_path), tmp_path / "rows.jsonl", tmp_path)
    with pytest.raises(
        ConfigError, match=r"data\.samples: expected 1 as long as data\.sampling\.temperature is 0"
    ):
        replace(config.data, completions="student", samples=2)
    for field, value in (("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.5), ("top_k", 0)):
        with pytest.raises(ConfigError, match=rf"sampling\.{field}: expected"):
            SamplingConfig(**{field: value})
    with pytest.raises(ConfigError, match=r"data\.keep: expected ended, unless a model answers"):
        replace(config.data, keep="right")
    without = [{**row, "check": None} for row in ROWS]
    asked = replace(config, data=replace(config.data, keep="right", **SAMPLED))
    with pytest.raises(DataError, match="needs a check of kind letter, number or python"):
        choose(asked, without, PROMPTS, TEXTS, lambda: None)  # type: ignore[arg-type,return-value]
