"""Rows in, tokens and masks out: reading, rendering, supervision masks, batches and vocabulary checks."""

from semalign.data.batches import collate, length_batches
from semalign.data.chat import encode_prompt, templates_agree
from semalign.data.overlap import disjoint, prompt_of
from semalign.data.rows import load_rows
from semalign.data.samples import Sample, effective_max_length, prepare, render_example
from semalign.data.variants import variants
from semalign.data.vocabulary import SharedVocabulary, check_shared, shared_vocabulary

__all__ = [
    "Sample",
    "SharedVocabulary",
    "check_shared",
    "collate",
    "disjoint",
    "effective_max_length",
    "encode_prompt",
    "length_batches",
    "load_rows",
    "prepare",
    "prompt_of",
    "render_example",
    "shared_vocabulary",
    "templates_agree",
    "variants",
]
