"""Which rows, how they are rendered, and whose answers they end with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from semalign.config.sampling import SamplingConfig, check_samples
from semalign.config.values import expect

Supervise = Literal["completion", "assistant", "all"]


UNTIL_CACHED = ("max_length", "max_dropped", "supervise", "thinking")
"""Fields that say how rows become tokens and nothing of what a model writes: they may change until signals are cached."""


@dataclass(frozen=True)
class DataConfig:
    """The rows that carry the knowledge, and the rows that measure it."""

    dataset_name: str | dict[str, float]
    """A jsonl file, the folder of a saved dataset, a hub id, or embedded:transfer; or several of these, each with a weight."""
    stopping_strategy: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    """For a mixture. first_exhausted takes as many rows as the shortest dataset allows; all_exhausted takes every row and repeats
    those of shorter datasets."""
    mixture_seed: int = 0
    """For a mixture: the seed that decides which rows are drawn and which are held out. It is separate from the run's seed, so that
    runs with different seeds use the same rows."""
    dataset_config: str | None = None
    """Name of the dataset's configuration on the hub."""
    dataset_train_split: str = "train"
    """Split of a hub dataset."""
    heldout_name: str | None = None
    """Rows on which closeness to the teacher is measured, named as in dataset_name. When this is null, the last heldout_rows rows
    of the dataset are used."""
    heldout_rows: int = 0
    """How many rows are held out: the last ones of the dataset, or of the rows drawn from a mixture. With heldout_name, its first
    so many rows (0: all)."""
    max_rows: int | None = None
    """Train on at most this many rows: the first ones of the dataset, or the total drawn from a mixture."""
    rows_seed: int | None = None
    """Draw the max_rows rows at random with this seed, in the dataset's order, instead of taking the first ones; of a mixture other rows
    beside the same held-out ones."""
    completions: Literal["given", "teacher", "student", "speculative"] = "given"
    """Whose answers are trained on. given keeps the answers in the rows; teacher or student lets that model answer the same prompts;
    with speculative the student answers, and the teacher replaces what it would not say. Rows may then be prompts without answers; the
    teacher answers held-out prompts that have none."""
    accepted: int = 25
    """With completions: speculative, a token that the student writes stays when it is among this many of the teacher's likeliest; else
    the teacher draws another one."""
    samples: int = 1
    """How many answers a prompt gets; more than one needs sampling.temperature. Answers to one prompt that are alike count once."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How the tokens of a model's answers are chosen."""
    keep: Literal["ended", "right", "best"] = "ended"
    """Which of the answers are trained on. ended keeps those that came to their end; right those that also pass the row's check; best
    of the right ones to a prompt the one that the teacher finds likeliest, by its mean log-probability a token."""
    variants: int = 0
    """How many new prompts are made of each row; the teacher answers them, or with completions of student or speculative who answers the
    given ones."""
    variants_by: Literal["words", "teacher"] = "words"
    """How new prompts are made. words exchanges words that occur in the same contexts, which suits rows that follow a few patterns.
    teacher shows the teacher three rows and lets it write the next question, which suits natural text."""
    max_new_tokens: int = 256
    """Tokens that a model's answer may have; an answer that has not ended by then is dropped."""
    max_length: int = 1024
    """Tokens that a row may have; a longer completion is cut, and the prompt is kept whole."""
    supervise: Supervise = "completion"
    """Which tokens are supervised: those of the last assistant turn (completion), of every assistant turn with the token that ends it
    (assistant), or all tokens."""
    thinking: Literal["keep", "drop"] | None = None
    """What becomes of the thinking in given answers: text before </think>, or reasoning_content. drop leaves it out; keep makes the
    chat template write that of the last answer, or stops where it cannot; null does what the template does and counts what it
    leaves out."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What to do with a row that cannot be parsed."""
    max_dropped: float = 0.1
    """Stop when more than this share of the rows has to be dropped."""

    def __post_init__(self) -> None:
        expect(bool(self.dataset_name), "data.dataset_name", "a dataset, or several with weights", "none")
        for name, weight in self.weights.items():
            expect(0 < weight < float("inf"), f"data.dataset_name.{name}", "a weight greater than 0", weight)
        expect(self.heldout_rows >= 0, "data.heldout_rows", "a count of rows", self.heldout_rows)
        expect(
            self.max_rows is None or self.max_rows > 0,
            "data.max_rows",
            "a positive count or null",
            self.max_rows,
        )
        expect(self.variants >= 0, "data.variants", "a count of prompts per row", self.variants)
        for name in ("samples", "accepted"):
            expect(getattr(self, name) > 0, f"data.{name}", "a positive count", getattr(self, name))
        check_samples("data", self.samples, self.sampling)
        expect(
            self.samples == 1 or self.is_generated,
            "data.samples",
            "1, unless a model answers prompts (data.completions, data.variants)",
            self.samples,
        )
        expect(
            self.keep == "ended" or (self.completions != "given" and not self.variants),
            "data.keep",
            "ended, unless a model answers the rows' own prompts (data.completions) and none is new (data.variants)",
            self.keep,
        )
        expect(self.max_new_tokens > 0, "data.max_new_tokens", "a positive count", self.max_new_tokens)
        expect(self.max_length >= 2, "data.max_length", "at least 2 tokens", self.max_length)
        expect(0 <= self.max_dropped <= 1, "data.max_dropped", "a share between 0 and 1", self.max_dropped)

    @property
    def weights(self) -> dict[str, float]:
        """Datasets with their weights; one alone has weight 1."""
        return {self.dataset_name: 1.0} if isinstance(self.dataset_name, str) else self.dataset_name

    @property
    def is_generated(self) -> bool:
        """Whether a model writes answers before anything else."""
        return self.completions != "given" or self.variants > 0
