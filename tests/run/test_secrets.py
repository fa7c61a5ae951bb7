"""Credentials reach no file that others read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from semalign.run.environment import environment
from semalign.run.files import read_sealed, write_yaml
from semalign.run.secrets import redacted

SECRET = "correct-horse-battery"
TOKEN = "hf_" + "aB3" * 10


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (f"s3://user:{SECRET}@host/bucket?token={SECRET}", "s3://***@host/bucket?***"),
        (f"memory://{SECRET}@host/b#x={SECRET}", "memory://***@host/b?***"),
        (f"see https://host/a?sig={SECRET}, or ask", "see https://host/a?*** or ask"),
        ("https://keepachangelog.com/en/1.1.0/", "https://keepachangelog.com/en/1.1.0/"),
        ("s3://bucket/run-1", "s3://bucket/run-1"),
        (f"--hub_token {TOKEN}", "--hub_token ***"),
        ("Qwen/Qwen2.5-Coder-0.5B", "Qwen/Qwen2.5-Coder-0.5B"),
        ("what is 5 @ 3?", "what is 5 @ 3?"),
        ({"a": [f"x://u:{SECRET}@h", 1, None], "b": True}, {"a": ["x://***@h", 1, None], "b": True}),
    ],
)
def test_urls_and_tokens_lose_their_secrets(given: object, shown: object) -> None:
    assert redacted(given) == shown and SECRET not in json.dumps(redacted(given))


def test_what_an_environment_variable_keeps_secret_is_hidden_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("MY_API_KEY", "short")
    monkeypatch.setattr(sys, "argv", ["semalign", "transfer", f"--cache.folder=s3://x/{SECRET}"])
    assert environment()["command"] == "semalign transfer --cache.folder=s3://x/***"
    write_yaml(tmp_path / "config.yaml", {"cache": {"folder": SECRET}, "name": "a short one"})
    assert read_sealed(tmp_path / "config.yaml", "transfer") == "cache:\n  folder: '***'\nname: a short one\n"
