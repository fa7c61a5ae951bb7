"""Where rows come from: a file of JSON Lines or Parquet, a folder saved by datasets, or the hub."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from semalign.data.jsonl import GZIP, SUFFIXES, read_jsonl
from semalign.data.kinds import ACCEPTED, HALF, READ, Row, checked_kind, is_text, plain_columns
from semalign.errors import DataError

log = logging.getLogger(__name__)
PARQUET = ".parquet"


def load_rows(
    dataset_name: str,
    *,
    dataset_config: str | None = None,
    split: str = "train",
    on_bad_row: Literal["stop", "skip"] = "stop",
) -> list[Row]:
    """All rows of a dataset, checked for form; every row is of the same kind (see `row_kind`).

    Args:
        dataset_name: a file of JSON Lines (.gz too) or Parquet, a folder written by `save_to_disk`, or a dataset id on the hub.
        dataset_config: name of the configuration on the hub.
        split: split of a hub dataset or of a saved folder with several; files have none.
        on_bad_row: stop at the first row that cannot be used, or skip such rows and log how many there were.

    Raises:
        DataError: nothing is found under the name, a row is bad and on_bad_row is stop, or no row is left.
    """
    if on_bad_row not in ("stop", "skip"):
        raise DataError(f"on_bad_row: expected stop or skip, got {on_bad_row!r}; change it in the config")
    return accept(entries(dataset_name, dataset_config, split), dataset_name, on_bad_row)


def entries(name: str, config: str | None = None, split: str = "train") -> Iterator[tuple[str, Row | str]]:
    """(place, row) for every row under the name, or (place, reason) for a line that is no row.

    Raises:
        DataError: nothing is found under the name.
    """
    # os.path, unlike pathlib, answers a name that no file can have with no.
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        return numbered(name, _saved(path, split))
    if (path.with_suffix("") if path.suffix == GZIP else path).suffix in SUFFIXES:
        return read_jsonl(path)
    if path.suffix == PARQUET:
        return numbered(name, _parquet(path))
    if os.path.exists(path):
        raise DataError(
            f"{name}: expected a file of JSON Lines ({', '.join(SUFFIXES)}, each with {GZIP} too) or {PARQUET}, got "
            f"{path.suffix or 'no suffix'}"
        )
    if path.is_absolute() or name.startswith((".", "~")):
        raise DataError(
            f"{name}: expected a file of JSON Lines or Parquet, or a saved folder, found nothing there; check the path"
        )
    return numbered(name, _from_hub(name, config, split))


def numbered(name: str, rows: Iterable[Any]) -> Iterator[tuple[str, Row | str]]:
    """(place, row) for every row of a dataset or of a list in memory, or (place, reason) for what is no row."""
    if (features := getattr(rows, "features", None)) and hasattr(rows, "remove_columns"):
        # Pictures and sounds are decoded when a row is read, which needs packages, and nobody looks at them.
        rows = rows.remove_columns(
            [c for c, feature in features.items() if getattr(feature, "decode", False)]
        )
    for number, given in enumerate(rows, start=1):
        yield f"{name}:{number}", _row(given)


def _row(given: Any) -> Row | str:
    if not isinstance(given, Mapping):
        return f"expected a dict, got {type(given).__name__}"
    row = plain_columns(given)
    # What tokens are made of is looked at when the row's kind is known.
    others = {column: value for column, value in row.items() if column not in READ}
    return row if is_text(others) else HALF


def accept(entries: Iterator[tuple[str, Row | str]], name: str, on_bad_row: str | None = "stop") -> list[Row]:
    """The rows of one kind; the first good row decides which.

    Args:
        on_bad_row: as in `load_rows`; None: as stop, for rows that no config names.

    Raises:
        DataError: as `load_rows`.
    """
    rows: list[Row] = []
    skipped: list[str] = []
    kind = None
    for place, entry in entries:
        try:
            if isinstance(entry, str):
                raise DataError(entry)
            found = checked_kind(entry)
            kind = kind or found
            if found is not kind:
                raise DataError(
                    f"a row of {found} after rows of {kind}; all rows of a dataset are of one kind"
                )
        except DataError as error:
            if on_bad_row != "skip":
                other = " or set on_bad_row to skip" if on_bad_row else ""
                raise DataError(f"{place}: {error}; mend the row{other}") from error
            skipped.append(f"{place}: {error}")
        else:
            rows.append(entry)
    for line in skipped:
        log.info("skipped %s", line)
    if skipped:
        log.warning(
            "%s: skipped %d of %d rows, the first: %s",
            name,
            len(skipped),
            len(skipped) + len(rows),
            skipped[0],
        )
    if not rows:
        why = (
            f"{len(skipped)} bad rows skipped, the first: {skipped[0]}"
            if skipped
            else "there are no rows in it"
        )
        raise DataError(f"{name}: 0 usable rows, {why}; expected rows with {ACCEPTED}")
    return rows


def _parquet(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file, read batch by batch and copied nowhere."""
    with parquet_file(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


@contextmanager
def parquet_file(path: Path) -> Iterator[Any]:
    """pyarrow's ParquetFile; what cannot be read of it within the block is one sentence.

    Raises:
        DataError: it is no Parquet file, or a damaged one.
    """
    from pyarrow import (  # here because importing it takes time that other files need not pay
        ArrowException,
        parquet,
    )

    try:
        yield parquet.ParquetFile(path)
    except (OSError, ArrowException) as error:
        raise DataError(
            f"{path}: expected a readable Parquet file ({_first_line(error)}); check the path, or write it again"
        ) from error


def _saved(path: Path, split: str) -> Any:
    """Rows of a folder written by `save_to_disk`."""
    import datasets  # here because importing it takes seconds that a JSON Lines file need not pay

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: expected a folder written by datasets' save_to_disk, which it is not "
            f"({_first_line(error)}); name a JSON Lines file or save the dataset again"
        ) from error
    if not isinstance(saved, datasets.DatasetDict):
        return saved
    if split not in saved:
        raise DataError(
            f"{path}: expected a split named {split}, found {', '.join(saved)}; choose one of them"
        )
    return saved[split]


def _from_hub(name: str, config: str | None, split: str) -> Any:
    """Rows of a hub dataset, or of its copy in the local cache."""
    import datasets  # here because importing it takes seconds that a JSON Lines file need not pay

    arguments = ", ".join(repr(value) for value in (name, config) if value is not None) + f", split={split!r}"
    try:
        return datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"dataset {name!r} is neither a local file or folder nor to be had from the hub "
            f"({_first_line(error)}); "
            'where there is network and access, fetch it first: python -c "from datasets import '
            f'load_dataset; load_dataset({arguments})"'
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
