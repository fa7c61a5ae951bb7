"""How answers are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from semalign.config.values import expect


@dataclass(frozen=True)
class SamplingConfig:
    """How an answer's next token is chosen."""

    temperature: float = 0.0
    """0 takes the likeliest token; above 0 tokens are drawn at this temperature."""
    top_p: float = 1.0
    """Draw only among the fewest tokens that together hold this share of the probability."""
    top_k: int | None = None
    """Draw only among this many of the likeliest tokens; null sets no limit."""

    def __post_init__(self) -> None:
        expect(
            0 <= self.temperature < float("inf"),
            "sampling.temperature",
            "0 or a temperature above it",
            self.temperature,
        )
        expect(0 < self.top_p <= 1, "sampling.top_p", "a share above 0 and up to 1", self.top_p)
        expect(
            self.top_k is None or self.top_k > 0,
            "sampling.top_k",
            "a positive count or null",
            self.top_k,
        )

    @property
    def is_greedy(self) -> bool:
        """Whether there is one answer a prompt, whatever the seed."""
        return self.temperature == 0


def check_samples(group: str, samples: int, sampling: SamplingConfig) -> None:
    expect(
        samples == 1 or not sampling.is_greedy,
        f"{group}.samples",
        f"1 as long as {group}.sampling.temperature is 0, where all answers to a prompt are the same",
        samples,
    )
