"""Which models, how they are loaded, and where a teacher runs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from semalign.config.values import LATER, expect

TEMPLATE_NAMES = ("messages", "tools", "documents", "add_generation_prompt")
"""What every rendering gives to a chat template."""


@dataclass(frozen=True)
class ServerConfig:
    """A server that holds a teacher's weights and tells log-probabilities of token ids."""

    url: str | None = None
    """Its address, such as http://host:8000; null loads the teacher here."""
    engine: Literal["vllm", "sglang"] = "vllm"
    """What it is: vllm is asked for prompt_logprobs at /v1/completions, sglang for top_logprobs_num at /generate."""
    model: str | None = None
    """The model's name there; null takes the first that it lists."""
    key_variable: str | None = None
    """Name of an environment variable that holds its key; the key itself is written nowhere."""
    requests: int = 16
    """Requests under way at once; the server makes batches of them."""
    retries: int = 6
    """How often a request that got no answer is sent again, after 0.5 seconds and then twice as long each time."""

    def __post_init__(self) -> None:
        expect(
            self.url is None or self.url.startswith(("http://", "https://")),
            "teacher.server.url",
            "an address with http:// or https://",
            self.url,
        )
        expect(self.requests > 0, "teacher.server.requests", "a positive count", self.requests)
        expect(self.retries >= 0, "teacher.server.retries", "0 or a count", self.retries)


@dataclass(frozen=True)
class ModelConfig:
    """A causal language model: where it is and how to load it."""

    model_name_or_path: str
    """A local folder, a hub id, a .gguf file, or embedded:teacher, embedded:student or embedded:small."""
    model_revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the loaded weights; auto keeps the checkpoint's type."""
    attn_implementation: str | None = None
    """Attention implementation, by a name that transformers knows: eager, sdpa, flash_attention_2."""
    load_in_8bit: bool = False
    """Quantise to 8 bits on loading (needs bitsandbytes); a quantised student can only train LoRA."""
    load_in_4bit: bool = False
    """Quantise to 4 bits on loading (needs bitsandbytes); a quantised student can only train LoRA."""
    device_map: Literal["auto"] | None = field(default=None, metadata=LATER)
    """For a teacher only. auto spreads its layers over all GPUs of the machine, in order and by the room on each, for one process; null
    keeps it on one device."""
    max_memory: str | None = field(default=None, metadata=LATER)
    """With device_map: auto, what the weights may take on each device, such as 60GiB; null takes up to nine tenths of what is free."""
    offload: Literal["cpu", "disk"] | None = None
    """For a teacher only. cpu keeps its layers in CPU memory; disk reads them from the checkpoint's safetensors. Either way, every
    pass brings one layer at a time onto the device. With device_map: auto this is for the layers that fit on no device."""
    keep_dequantised: bool = True
    """Keep the weights of a GGUF file in the user's cache (~/.cache/semalign) once they are dequantised, for the next command."""
    trust_remote_code: bool = False
    """Allow transformers to run Python code that comes with the checkpoint."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    """Values for variables of the model's chat template, such as enable_thinking: false, wherever its tokenizer renders a conversation:
    the student's in training rows and its own answers, the teacher's in the teacher's."""
    sees: Literal["nothing", "shots", "answer"] = "nothing"
    """For a teacher only: what stands before each training row in its prompt and not in the student's. shots are other given rows with
    their answers, answer is the row's own given answer, each as earlier turns of the conversation."""
    shots: int = 4
    """How many rows a teacher with sees: shots is shown, drawn anew for every prompt."""
    tokenizer: Literal["shared", "own"] = "shared"
    """For a teacher only. shared wants the student's tokenizer; with own the teacher reads the same rows through its tokenizer and chat
    template, and what it says is carried to the student's tokens."""
    signals: str | None = None
    """For a teacher only: a Parquet file, or a folder of them, with its likeliest tokens at the rows' tokens, as `semalign export`, axolotl
    or DistillKit write them. model_name_or_path is then read for tokenizer and configuration, and for weights only where it answers."""
    server: ServerConfig = field(default_factory=ServerConfig)
    """For a teacher only: a server that holds its weights. model_name_or_path is then read for tokenizer and configuration alone."""

    def __post_init__(self) -> None:
        for name in ("device_map", "offload"):
            is_asked = getattr(self, name) is not None
            expect(
                not is_asked or not (self.load_in_8bit or self.load_in_4bit),
                name,
                f"either {name} or quantisation to 8 or 4 bits, since both together have not been tested",
                "both",
            )
            expect(
                not is_asked or not self.model_name_or_path.endswith(".gguf"),
                name,
                "a checkpoint in safetensors, since a GGUF file can only be dequantised as a whole",
                self.model_name_or_path,
            )
        expect(
            self.max_memory is None or self.device_map is not None,
            "max_memory",
            "null without device_map: auto",
            self.max_memory,
        )
        expect(
            self.max_memory is None or re.fullmatch(r"\d+ ?[KMG]i?B", self.max_memory) is not None,
            "max_memory",
            "a size such as 60GiB or 800MB",
            self.max_memory,
        )
        expect(bool(self.model_name_or_path), "model_name_or_path", "a folder, hub id or .gguf file", "")
        for name in self.chat_template_kwargs:
            expect(
                name.isidentifier() and name not in TEMPLATE_NAMES,
                "chat_template_kwargs",
                f"names of the template's own variables (not {', '.join(TEMPLATE_NAMES)})",
                name,
            )
        expect(self.shots > 0, "teacher.shots", "a positive count", self.shots)
        expect(
            self.signals is None or self.server.url is None,
            "teacher.signals",
            "null with teacher.server, which tells the same",
            self.signals,
        )
        expect(
            self.tokenizer == "shared" or self.sees == "nothing",
            "teacher.sees",
            "nothing with teacher.tokenizer: own",
            self.sees,
        )
        expect(not (self.load_in_8bit and self.load_in_4bit), "load_in_8bit", "either 8 or 4 bits", "both")

    @property
    def is_placed(self) -> bool:
        """Whether a teacher's layers lie on several devices or are offloaded."""
        return self.device_map is not None or self.offload is not None

    @property
    def only_tells(self) -> bool:
        """Whether nothing of a teacher is known but its likeliest tokens: no layers, no head."""
        return self.server.url is not None or self.signals is not None or self.tokenizer == "own"
