"""KL to the teacher on a comparison's held-out rows, by kind of token and by place in the answer.

    python scripts/kl_by_token.py compare.yaml math untouched=FOLDER aligned=FOLDER

The comparison's sources must be prepared; students are folders of checkpoints. For each group its number of tokens, their mean KL
and their share of the summed KL.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path

from semalign.comparison.plan import Source, read_comparison
from semalign.comparison.sources import inputs_of, prepared_of
from semalign.config import ModelConfig
from semalign.data.inputs import Inputs
from semalign.evaluation.heldout import heldout_batches
from semalign.models.decoder import share_vocabulary
from semalign.models.loading import load

PLACES = (4, 16, 64)
"""Last place, counted from 1, of each group but the last."""


def kind_of(token: int, inputs: Inputs) -> str:
    """Digits, signs and spaces, words, or a special token."""
    if token in inputs.tokenizer.all_special_ids:
        return "special"
    text = str(inputs.tokenizer.decode([token]))
    if re.fullmatch(r"\s*\d+", text):
        return "digits"
    return "words" if re.search(r"\w", text) else "signs"


def place_of(number: int) -> str:
    """The group of a supervised token's place, counted from 1."""
    last = next((limit for limit in PLACES if number <= limit), None)
    return f"to {last}" if last else f"after {PLACES[-1]}"


def figures(student: str, source: Source) -> dict[str, dict[str, float]]:
    """Group -> tokens, mean KL, share of the summed KL."""
    inputs = inputs_of(source)
    decoder = load(ModelConfig(student, dtype=source.config.student.dtype))
    share_vocabulary(inputs.vocabulary, decoder)
    found: dict[str, list[float]] = defaultdict(list)
    for batch, _, values, _ in heldout_batches(decoder, prepared_of(source), student):
        parts = values["kl"].split([inputs.heldout[n].supervised for n in batch])
        for sample, kl in zip((inputs.heldout[n] for n in batch), parts, strict=True):
            ids = [i for i, supervised in zip(sample.input_ids, sample.mask, strict=True) if supervised]
            for number, (token, value) in enumerate(zip(ids, kl.tolist(), strict=True), start=1):
                for group in ("all", kind_of(token, inputs), place_of(number)):
                    found[group].append(value)
    whole = sum(found["all"])
    return {
        group: {"tokens": len(v), "kl": round(sum(v) / len(v), 4), "share": round(sum(v) / whole, 3)}
        for group, v in sorted(found.items())
    }


def main() -> None:
    """Print one JSON object a student."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparison", type=Path)
    parser.add_argument("task")
    parser.add_argument("students", nargs="+", metavar="NAME=FOLDER")
    options = parser.parse_args()
    source = read_comparison(options.comparison).reference(options.task)
    for student in options.students:
        name, _, folder = student.partition("=")
        print(json.dumps({"student": name, **figures(folder, source)}), flush=True)


if __name__ == "__main__":
    main()
