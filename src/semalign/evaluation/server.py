"""Answers from a server of the OpenAI protocol that takes and gives token ids, such as vLLM or SGLang.

The model is written to a folder, a command of the user's serves it on this machine, and the command is stopped afterwards: the server may
have an environment of its own, and another torch than this one.
"""

from __future__ import annotations

import gc
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from semalign.config import SERVER
from semalign.errors import ConfigError, ModelError
from semalign.run.files import saving
from semalign.run.pages import environment_of_others
from semalign.run.web import Server

PATIENCE = 900.0  # seconds until a server has read its model


def program_of(command: str) -> list[str]:
    """The words of a command, its places not filled in yet.

    Raises:
        ConfigError: it names no folder or port, or no program that can be found.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"evaluation.server: expected a command line, got {command!r} ({error}).") from None
    if missing := [place for place in ("{folder}", "{port}") if place not in command]:
        raise ConfigError(
            f"evaluation.server: expected a command with {{folder}} and {{port}}, got {command!r}, which lacks {' and '.join(missing)}; "
            f"such as {SERVER!r}."
        )
    if shutil.which(words[0]) is None:
        raise ConfigError(
            f"evaluation.server: expected a program that can be run, found no {words[0]!r}; install it, vLLM in an environment of its own, "
            "and write its whole path."
        )
    return words


def served_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    settings: GenerationConfig,
    command: str,
    at_once: int,
) -> list[tuple[list[int], bool]]:
    """As `ask`, of a server that is started for this model; the server wants the device for itself, so the model waits in memory."""
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise ModelError(
            "evaluation.engine: expected padded for a model whose layers lie on several devices or on disk, got server; a server can load "
            "the model's own folder, see teacher.server."
        )
    device = model.device
    with tempfile.TemporaryDirectory() as folder:
        with saving(Path(folder), "free space or set TMPDIR to a larger disk"):
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        model.to("cpu")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            with serving(command, Path(folder)) as address:
                return ask(Server(address), rows, settings, at_once=at_once, seed=torch.initial_seed())
        finally:
            model.to(device)


@contextmanager
def serving(command: str, folder: Path) -> Iterator[str]:
    """The address of a server of the model in a folder; it is gone when the block ends.

    Raises:
        ConfigError: the command cannot be run.
        ModelError: it ended, or did not answer in time; the last line that it wrote is in the sentence.
    """
    words = program_of(command)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    filled = [word.replace("{folder}", str(folder)).replace("{port}", str(port)) for word in words]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        # A group of its own, since servers start helpers.
        process = subprocess.Popen(
            filled,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment_of_others(),
            start_new_session=True,
        )
        try:
            _wait(process, address, log)
            yield address
        finally:
            _stop(process)


def ask(
    server: Server, rows: Sequence[Sequence[int]], settings: GenerationConfig, *, at_once: int, seed: int
) -> list[tuple[list[int], bool]]:
    """For each row of token ids those of its answer, and whether the server says that it came to its end.

    Args:
        settings: what is drawn, how many tokens, and which end an answer.
        at_once: requests that are under way together; the server makes batches of them.
        seed: of the first answer; two answers to one prompt would be the same with one seed.

    Raises:
        ModelError: the server refuses, or gives no token ids.
    """
    options: dict[str, Any] = {
        "model": server.name,
        "max_tokens": settings.max_new_tokens,
        "stop_token_ids": list(settings.eos_token_id or []),
        "temperature": settings.temperature if settings.do_sample else 0.0,
        "top_p": settings.top_p if settings.do_sample else 1.0,
        "top_k": (settings.top_k if settings.do_sample else 0) or -1,
        # A server takes what is missing from the model's own settings.
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "return_token_ids": True,
    }

    def one(number: int) -> tuple[list[int], bool]:
        own = {"seed": seed + number} if settings.do_sample else {}
        found = server.json("/v1/completions", options | own | {"prompt": list(rows[number])})["choices"][0]
        if not isinstance(ids := found.get("token_ids"), list):
            raise ModelError(
                f"{server.root}: expected token_ids in an answer, since return_token_ids was asked for, got {sorted(found)}; take a server that "
                "knows it (vLLM from 0.10.2, SGLang from July 2026), or set evaluation.engine: padded."
            )
        return ids, found.get("finish_reason") == "stop"

    with ThreadPoolExecutor(max(1, at_once)) as pool:
        return list(pool.map(one, range(len(rows))))


def _wait(process: subprocess.Popen[bytes], address: str, log: Any) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ModelError(
                f"evaluation.server: expected a server, but its command ended with {process.returncode} ({_last_line(log)}); "
                "run it by hand to see why."
            )
        try:
            Server(address).json("/v1/models")
            return
        except ModelError:
            time.sleep(0.2)
    raise ModelError(
        f"evaluation.server: expected an answer within {PATIENCE:.0f} seconds, got none ({_last_line(log)})."
    )


def _last_line(log: Any) -> str:
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1]:.300}" if lines else "it wrote nothing"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its helpers, at first politely."""
    for sign, patience in ((signal.SIGTERM, 20.0), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, sign)
            process.wait(patience)
        except ProcessLookupError:
            process.wait()
            return
        except subprocess.TimeoutExpired:
            continue
