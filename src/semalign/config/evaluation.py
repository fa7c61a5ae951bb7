"""What is measured before and after."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from semalign.config.sampling import SamplingConfig, check_samples
from semalign.config.values import check_labels, expect

Engine = Literal["padded", "continuous", "server"]
SERVER = "vllm serve {folder} --host 127.0.0.1 --port {port}"


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured of the untouched student, the trained one, the baselines and the teacher."""

    tasks: str | None = None
    """Items that the models answer by generating text: embedded:test, or a jsonl file of rows with a check. With null, only closeness
    to the teacher is measured."""
    max_items: int | None = None
    """At most this many items of each task; null takes all."""
    batch_size: int = 128
    """Prompts in a batch of generation."""
    max_new_tokens: int = 96
    """Tokens that an answer may have."""
    samples: int = 1
    """How many answers an item gets; more than one needs sampling.temperature. An item counts with the share of them that is right."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How the tokens of the answers are chosen; by default each is the likeliest one."""
    engine: Engine = "padded"
    """What generates the answers: transformers on padded batches (padded), transformers' continuous batching, in which the next prompt
    takes the place of an answer that has ended (continuous), or a program of your own such as vLLM (server)."""
    server: str = SERVER
    """With engine: server, the command that serves a model's folder by the OpenAI protocol with token ids. SemAlign fills in {folder} and
    {port}, starts it for every model that answers, and stops it afterwards."""
    baselines: tuple[str, ...] | dict[str, dict[str, Any]] = ()
    """Further methods that are trained and measured on the same rows for comparison: a list of names, or names with recipe fields of
    their own."""
    allow_code_execution: bool | Literal["unsafe"] = False
    """Allow generated code to run in a jail that the kernel makes; tasks that check code need this. With unsafe it runs even where this
    machine offers no jail, and can then read and change what you can."""
    harness: tuple[str, ...] | dict[str, dict[str, Any]] = ()
    """Tasks of lm-evaluation-harness such as gsm8k and mmlu, zero-shot: a list of names, or names with fields that replace the
    task's own."""
    harness_path: str | None = None
    """A folder with further task files for the harness."""
    cka_rows: int = 64
    """How many held-out rows the CKA heat maps are computed on; 0 leaves them out."""

    def __post_init__(self) -> None:
        check_labels("evaluation.baselines", self.baselines, ("before", "after", "teacher"))
        for name in ("batch_size", "max_new_tokens", "samples"):
            expect(getattr(self, name) > 0, f"evaluation.{name}", "a positive count", getattr(self, name))
        check_samples("evaluation", self.samples, self.sampling)
        expect(
            self.max_items is None or self.max_items > 0,
            "evaluation.max_items",
            "a positive count or null",
            self.max_items,
        )
        expect(self.cka_rows >= 0, "evaluation.cka_rows", "a count of rows", self.cka_rows)
