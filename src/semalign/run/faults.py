"""The last handler: an exception that nobody foresaw becomes one sentence, and its traceback a file."""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from semalign.errors import SemAlignError, sentence


@contextmanager
def faults(folder: Path | None = None, *, is_told: bool = False) -> Iterator[None]:
    """Inside, whatever is no error of SemAlign's own is told as its fault or a library's.

    Args:
        folder: where traceback.txt is written, if it is there; else a temporary file.
        is_told: print the traceback too.

    Raises:
        SemAlignError: with the exception's first words and the file that has the whole.
    """
    try:
        yield
    except Exception as error:
        if hasattr(error, "exit_code"):
            raise
        raise _told(error, folder, is_told) from error
    except BaseException as error:
        # A panic inside the tokenizers' native code is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise _told(error, folder, is_told) from error


def _told(error: BaseException, folder: Path | None, is_told: bool) -> SemAlignError:
    text = "".join(traceback.format_exception(error))
    if is_told:
        sys.stderr.write(text)
    what = sentence(f"{type(error).__name__}: {error}", 160)
    return SemAlignError(
        f"{what}; this is a fault of SemAlign or of a library; the full traceback is in {_written(text, folder)}; "
        "please report it with that file."
    )


def _written(text: str, folder: Path | None) -> str:
    data = text.encode("utf-8", errors="replace")
    try:
        if folder is not None and folder.is_dir():
            path = folder / "traceback.txt"
            path.write_bytes(data)
            return str(path)
    except OSError:
        pass  # full or read-only, which may be the fault itself
    try:
        with tempfile.NamedTemporaryFile(prefix="semalign-traceback-", suffix=".txt", delete=False) as file:
            file.write(data)
        return file.name
    except OSError:
        return "no file, since none can be written; --verbose prints it"
