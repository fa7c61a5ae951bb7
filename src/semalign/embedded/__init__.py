"""Small trained models of one family, and the generated tasks they were trained on.

A teacher, a student of half its size, and one of a ninth (`small`).
"""

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from semalign.embedded.items import split_rows

MODELS = ("teacher", "student", "small")


def rows(split: Literal["transfer", "validation", "test"], seed: int = 0) -> list[dict[str, Any]]:
    """Rows of one split: ``id``, ``task``, ``messages`` (question, gold answer) and ``check``.

    The splits share no prompt, and no parameters of a problem, whatever the seeds; the same seed gives the same rows.
    """
    return split_rows(split, seed)


def model_path(name: str) -> Path:
    """Folder of one of MODELS."""
    return Path(str(files("semalign.embedded") / name))
