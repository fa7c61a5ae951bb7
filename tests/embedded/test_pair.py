"""The shipped files: plain loading, one tokenizer, small, and a real gap between the teacher and the others."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from semalign import embedded
from semalign.embedded import world
from semalign.evaluation.decoding import generate
from semalign.evaluation.tasks import check_answers

FOLDERS = [embedded.model_path(name) for name in embedded.MODELS]
NEEDED = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"}


def test_small_and_complete() -> None:
    assert sum(file.stat().st_size for folder in FOLDERS for file in folder.iterdir()) < 12e6
    for folder in FOLDERS:
        assert {file.name for file in folder.iterdir()} >= NEEDED
        card = (folder / "README.md").read_text()
        assert card.startswith("---\nlicense: apache-2.0\n") and "does not know" in card


def test_one_family_of_three_shapes() -> None:
    teacher, student, small = (json.loads((folder / "config.json").read_text()) for folder in FOLDERS)
    assert teacher["model_type"] == student["model_type"] == small["model_type"] == "llama"
    assert teacher["num_hidden_layers"] % student["num_hidden_layers"] != 0
    assert teacher["hidden_size"] > student["hidden_size"] > small["hidden_size"]
    assert teacher["vocab_size"] == student["vocab_size"] == small["vocab_size"] > teacher["hidden_size"]
    assert len({(folder / "tokenizer.json").read_bytes() for folder in FOLDERS}) == 1


@pytest.mark.parametrize(
    "text", ["plain words", "naïve 日本 😀\t\n  x", "12345", "def f(x):\n    return 'q' * 7\n"]
)
def test_tokenizer_keeps_any_text_and_takes_digits_at_most_in_pairs(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDERS[0])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert all(sum(c.isdigit() for c in token) <= 2 for token in map(tokenizer.decode, ids))


def test_names_and_small_numbers_are_one_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDERS[0])
    for text in [*world.all_names(), *map(str, range(100))]:
        assert len(tokenizer(f" {text}", add_special_tokens=False)["input_ids"]) == 1


def test_chat_template() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDERS[1])
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|user|>a<|end|><|assistant|>b c<|end|>"
    asked = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "<|user|>a<|end|><|assistant|>"
    encoded = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    answered = [n for n, own in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if own]
    assert tokenizer.decode(answered) == "b c<|end|>"
    assert tokenizer.eos_token == "<|end|>" and tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


def test_teacher_knows_what_the_others_do_not() -> None:
    rows = embedded.rows("validation")
    shares = []
    for folder in FOLDERS:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        completions = generate(model, tokenizer, [row["messages"][:1] for row in rows], max_new_tokens=80)
        verdicts = check_answers(rows, completions, allow_code_execution=True)
        shares.append(sum(verdict.correct for verdict in verdicts) / len(rows))
    assert shares[0] >= 0.78
    assert max(shares[1:]) <= 0.47


def test_build_script_explains_itself() -> None:
    script = Path(__file__).parents[2] / "scripts" / "build_pair.py"
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True)
    assert "--output" in done.stdout
