"""Files of a run folder: written whole or not at all, read or named in one sentence."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from semalign.errors import CacheError
from semalign.run.digests import seal_of, sealed, unsealed

logger = logging.getLogger(__name__)
Record = dict[str, Tensor]


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file in the same folder that takes the path's place: a reader sees the old file or the whole new one."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | SafetensorError):
            reason = getattr(error, "strerror", None) or error
            raise CacheError(
                f"{path}: cannot be written ({reason}); free space or choose another output_dir."
            ) from error
        raise


def write_atomic(path: Path, data: bytes | str) -> None:
    """A small file, whole or not at all."""
    with _replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Atomic, readable JSON with a seal."""
    text = json.dumps({k: v for k, v in value.items() if k != "seal"}, indent=1, ensure_ascii=False)
    write_atomic(path, sealed(text.encode(), ".json"))


def read_json(path: Path, step: str, *, may_be_edited: bool = False) -> Any:
    """A result file as it was written, or one sentence naming the step that writes it."""
    if not path.is_file():
        raise CacheError(f"{path}: not there yet; run `semalign {step}` first.")
    return find_json(path, step, may_be_edited=may_be_edited)


def find_json(
    path: Path, step: str = "transfer", *, may_be_edited: bool = False, is_sealed: bool = True
) -> dict[str, Any]:
    """The object in a result file; empty where there is no file. A change of one that may be edited is said.

    Args:
        is_sealed: whether SemAlign wrote it; other libraries' files have no seal.

    Raises:
        CacheError: the file does not hold one, or is not as it was written.
    """
    if not path.is_file():
        return {}
    data = path.read_bytes()
    is_whole = not is_sealed or seal_of(data, ".json") == "whole"
    try:
        value = json.loads(data)
    except ValueError as error:  # JSON's and UTF-8's errors are both of this kind
        advice = "mend it, or delete it and run" if may_be_edited else "run"
        raise CacheError(f"{path}: not valid JSON ({error}); {advice} `semalign {step}` again.") from None
    if not isinstance(value, dict):
        raise CacheError(
            f"{path}: expected a JSON object, got a {type(value).__name__}; delete it and run `semalign {step}` again."
        )
    if not is_whole and not may_be_edited:
        raise CacheError(f"{path}: {NOT_AS_WRITTEN}; run `semalign {step}` again.")
    if not is_whole:
        say_once(f"{path}: was edited since it was written; what it says now is followed")
    return {k: v for k, v in value.items() if k != "seal"}


NOT_AS_WRITTEN = "damaged, edited, or of an earlier version (it does not match the seal at its end)"
_said: set[str] = set()


def say_once(sentence: str) -> None:
    """Warn, once a process."""
    if sentence not in _said:
        _said.add(sentence)
        logger.warning("%s", sentence)


def keep_once(path: Path, make: Callable[[], Mapping[str, Any]]) -> None:
    """Write what a file is to say, unless an earlier command did and it is whole."""
    if path.is_file() and seal_of(path.read_bytes(), ".json") == "whole":
        return
    if path.is_file():
        say_once(f"{path}: {NOT_AS_WRITTEN}; written again")
    write_json(path, make())


def read_sealed(path: Path, step: str) -> str:
    """The text of a sealed YAML file, without its seal.

    Raises:
        CacheError: it is not as it was written.
    """
    data = path.read_bytes()
    if seal_of(data, path.suffix) != "whole":
        raise CacheError(f"{path}: {NOT_AS_WRITTEN}; run `semalign {step}` again.")
    return unsealed(data, path.suffix).decode("utf-8")


def read_lines(path: Path, step: str) -> list[Any]:
    """The values in a file of JSON lines, none where there is no file; a last line that was cut off is left out.

    Raises:
        CacheError: another line cannot be read.
    """
    if not path.is_file():
        return []
    # Only at line feeds: a text may hold any other character that ends a line.
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise CacheError(
                f"{path}:{number}: expected one JSON value, but {error}; run `semalign {step}` again."
            ) from error
    return values


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Atomic YAML, fields in their own order, with a seal."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    write_atomic(path, sealed(text.encode(), ".yaml"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Atomic safetensors file, written from the tensors' own memory."""
    with _replacing(path) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary)


def read_tensors(path: Path, step: str = "cache") -> Record:
    """All tensors of a safetensors file, or one sentence naming the step that writes it."""
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CacheError(f"{path}: cannot be read ({error}); run `semalign {step}` again.") from error


def hash_of(value: Any) -> str:
    """Short hash of any JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def json_line(value: Any) -> str:
    """JSON, then a line feed."""
    return json.dumps(value, ensure_ascii=False) + "\n"
