"""Answers from a server: the same as from the model, nothing left behind, one sentence where it fails."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import psutil
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from semalign import embedded
from semalign.config import SamplingConfig
from semalign.errors import ConfigError, ModelError
from semalign.evaluation import server
from semalign.evaluation.decoding import answers
from semalign.evaluation.server import program_of

STAND_IN = Path(__file__).with_name("stand_in_server.py")
COMMAND = f"{shlex.quote(sys.executable)} {shlex.quote(str(STAND_IN))} {{folder}} {{port}}"
PROMPTS = [row["messages"][:1] for row in embedded.rows("validation")[::40]]
VLLM = os.environ.get("SEMALIGN_VLLM")


@pytest.fixture(scope="module")
def pair() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    folder = embedded.model_path("student")
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, PreTrainedTokenizerFast.from_pretrained(folder)


def servers() -> list[list[str]]:
    """Command lines of the servers that this process has started and that still run."""
    found = [child.cmdline() for child in psutil.Process().children(recursive=True)]
    return [line for line in found if str(STAND_IN) in line or "import time; time.sleep(60)" in line]


def test_a_server_gives_the_models_own_answers(
    pair: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
) -> None:
    weights = [p.data_ptr() for p in pair[0].parameters()]
    wanted = answers(*pair, PROMPTS, 12, 8)
    assert answers(*pair, PROMPTS, 12, 8, engine="server", server=COMMAND) == wanted
    assert {has_ended for _, has_ended in wanted} == {True, False}
    assert servers() == []
    assert [p.data_ptr() for p in pair[0].parameters()] == weights


def test_every_answer_has_a_seed_of_its_own(pair: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]) -> None:
    drawn = SamplingConfig(temperature=1.5, top_k=20)

    def asked(seed: int) -> list[tuple[str, bool]]:
        return answers(
            *pair, PROMPTS[:2], 12, 8, engine="server", server=COMMAND, samples=3, sampling=drawn, seed=seed
        )

    found = asked(7)
    assert len(found) == 6 and len({text for text, _ in found[:3]}) > 1
    assert found != asked(8)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("dies", r"its command ended with 7 \(RuntimeError: no such device\); run it by hand"),
        ("refuses", r"the server refused a request \(400: .*no such option"),
        ("no-ids", r"expected token_ids in an answer"),
    ],
)
def test_a_server_that_fails_is_one_sentence_and_gone(
    pair: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], fault: str, sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence):
        answers(*pair, PROMPTS[:2], 4, 8, engine="server", server=f"{COMMAND} {fault}")
    assert servers() == []


def test_a_server_that_never_answers_is_given_up(
    pair: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PATIENCE", 0.5)
    silent = f"{shlex.quote(sys.executable)} -c 'import time; time.sleep(60)' {{folder}} {{port}}"
    with pytest.raises(ModelError, match=r"expected an answer within 0 seconds, got none .it wrote nothing"):
        answers(*pair, PROMPTS[:1], 4, 8, engine="server", server=silent)
    assert servers() == []


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("nosuch {folder} {port}", "found no 'nosuch'; install it"),
        ("python {folder}", "which lacks {port}"),
        ("python", "which lacks {folder} and {port}"),
        ("python 'open {folder} {port}", "expected a command line"),
    ],
)
def test_a_command_that_cannot_serve_is_refused(command: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        program_of(command)


@pytest.mark.skipif(VLLM is None, reason="SEMALIGN_VLLM names no vllm program")
def test_a_real_vllm_gives_the_models_own_answers(
    pair: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
) -> None:
    wanted = answers(*pair, PROMPTS, 12, 8)
    command = f"{VLLM} serve {{folder}} --host 127.0.0.1 --port {{port}} --dtype float32"
    found = answers(*pair, PROMPTS, 12, 8, engine="server", server=command)
    # Where two tokens are all but equally likely, one sum differs from another.
    assert sum(a == b for a, b in zip(found, wanted, strict=True)) >= len(wanted) - 1
