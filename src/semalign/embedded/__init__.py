"""The embedded pair: two small trained models of one family, and the generated tasks they were trained on."""

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from semalign.embedded.items import split_rows


def rows(split: Literal["transfer", "validation", "test"], seed: int = 0) -> list[dict[str, Any]]:
    """Rows of one split: ``id``, ``task``, ``messages`` (question, gold answer) and ``check``.

    The splits share no prompt, and no parameters of a problem, whatever the seeds; the same seed gives the same rows.
    """
    return split_rows(split, seed)


def teacher_path() -> Path:
    """Folder of the larger embedded model."""
    return Path(str(files("semalign.embedded") / "teacher"))


def student_path() -> Path:
    """Folder of the smaller embedded model."""
    return Path(str(files("semalign.embedded") / "student"))
