"""Files of a run folder: written whole or not at all, read or named in one sentence."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from semalign.errors import CacheError
from semalign.reading import Object, UnreadableError, bytes_of, check_shape, json_of, text_of
from semalign.run.digests import seal_of, sealed, unsealed
from semalign.run.secrets import redacted

logger = logging.getLogger(__name__)
Record = dict[str, Tensor]


LOCK = ".lock"  # in every folder that a process owns, or has owned
_TEMPORARY = ".semalign-"
# Ours, and those of safetensors.
IS_TEMPORARY = re.compile(r"\.semalign-[a-z0-9_]{8}|\.tmp[A-Za-z0-9]{6}")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
FREE_SPACE = "free space or choose another output_dir"


@contextmanager
def saving(path: Path, advice: str = FREE_SPACE) -> Iterator[None]:
    """Around whatever writes: a full disk or a folder without permission becomes one sentence, whichever library says so.

    Raises:
        CacheError: in place of an error of the file system; others stay as they are.
    """
    try:
        yield
    except Exception as error:
        if reason := _reason(error):
            raise CacheError(f"{path}: cannot be written ({reason}); {advice}.") from error
        raise


def _reason(error: Exception) -> str | None:
    """What the file system said, if the error comes from there."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # Libraries in Rust (safetensors, tokenizers) and torch have errors of their own, or none of their own.
    if number := re.search(r"\(os error (\d+)\)", str(error)):
        return os.strerror(int(number[1]))
    if isinstance(error, SafetensorError):
        return str(error)
    if isinstance(error, RuntimeError) and re.search(
        r"inline_container|iostream error|Parent directory .* does not exist|PytorchStreamWriter", str(error)
    ):
        said = re.search(r"strerror: (.+)", str(error))
        return said[1] if said else "torch could not write all of it"
    return None


@contextmanager
def replacing(path: Path, advice: str = FREE_SPACE) -> Iterator[Path]:
    """A temporary file in the same folder that takes the path's place: a reader sees the old file or the whole new one."""
    temporary: Path | None = None
    try:
        with saving(path, advice):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY)
            os.close(handle)
            temporary = Path(name)
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder. Between the old and the new one a moment may pass without any."""
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_TEMPORARY))
    try:
        yield temporary
        with saving(path):
            temporary.chmod(0o755)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(root: Path) -> None:
    """Delete the temporary files and folders of killed processes below a folder that the caller has locked.

    Links are not followed, and folders inside that have a lock of their own are left to their owners.
    """
    for folder, folders, files in os.walk(root):
        for name in filter(IS_TEMPORARY.fullmatch, (*folders, *files)):
            path = Path(folder, name)
            # Looked for after the temporary file was found: who writes one has locked its folder before.
            if any((root / above / LOCK).exists() for above in path.relative_to(root).parents[:-1]):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


def write_atomic(path: Path, data: bytes | str, advice: str = FREE_SPACE) -> None:
    """A small file, whole or not at all; `advice` ends the sentence where it cannot be written."""
    with replacing(path, advice) as temporary:
        temporary.write_bytes(data.encode(errors="backslashreplace") if isinstance(data, str) else data)


def append(file: TextIO, text: str) -> None:
    """Write to the end of an open file, through to the system."""
    with saving(Path(file.name)):
        file.write(text)
        file.flush()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Atomic, readable JSON with a seal."""
    text = json.dumps({k: v for k, v in value.items() if k != "seal"}, indent=1, ensure_ascii=False)
    # Half of a surrogate pair has no form in UTF-8, but an escape in JSON, which is what this error handler writes.
    write_atomic(path, sealed(text.encode(errors="backslashreplace"), ".json"))


def read_json(path: Path, step: str, kind: Any = Object, *, may_be_edited: bool = False) -> Any:
    """A result file of a declared shape (see `semalign.run.results`) as it was written, or one sentence naming the step that
    writes it."""
    if not path.is_file():
        raise CacheError(f"{path}: not there yet; run `semalign {step}` first.")
    return find_json(path, kind, step, may_be_edited=may_be_edited)


def find_json(
    path: Path,
    kind: Any = Object,
    step: str = "transfer",
    *,
    may_be_edited: bool = False,
    is_sealed: bool = True,
) -> dict[str, Any]:
    """The object in a result file; empty where there is no file. A change of one that may be edited is said.

    Args:
        kind: its declared shape.
        step: what writes it.
        is_sealed: whether SemAlign wrote it; other libraries' files have no seal.

    Raises:
        CacheError: the file does not hold one of that shape, or is not as it was written.
    """
    if not path.is_file():
        return {}
    try:
        data = bytes_of(path)
        value = json_of(data)
        check_shape(kind, value)
    except (OSError, UnreadableError) as error:
        advice = "mend it, or delete it and run" if may_be_edited else "run"
        raise CacheError(
            f"{path}: not valid JSON of its kind ({_told(error)}); {advice} `semalign {step}` again."
        ) from None
    is_whole = not is_sealed or seal_of(data, ".json") == "whole"
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
    try:
        data = bytes_of(path)
        text = text_of(unsealed(data, path.suffix))
    except (OSError, UnreadableError) as error:
        raise CacheError(f"{path}: cannot be read ({_told(error)}); run `semalign {step}` again.") from None
    if seal_of(data, path.suffix) != "whole":
        raise CacheError(f"{path}: {NOT_AS_WRITTEN}; run `semalign {step}` again.")
    return text


def read_lines(path: Path, step: str, kind: Any = Any) -> list[Any]:
    """The values in a file of JSON lines, none where there is no file; a last line that was cut off is left out.

    Raises:
        CacheError: another line cannot be read, or is not of the kind.
    """
    if not path.is_file():
        return []
    values = []
    try:
        # Only at line feeds: a text may hold any other character that ends a line.
        lines = [line for line in bytes_of(path).split(b"\n") if line.strip()]
    except (OSError, UnreadableError) as error:
        raise CacheError(f"{path}: cannot be read ({_told(error)}); run `semalign {step}` again.") from None
    for number, line in enumerate(lines, start=1):
        try:
            value = json_of(line)
        except UnreadableError as error:
            if number == len(lines):
                break
            raise _bad_line(path, number, step, error) from None
        try:
            check_shape(kind, value)
        except UnreadableError as error:
            raise _bad_line(path, number, step, error) from None
        values.append(value)
    return values


def _bad_line(path: Path, number: int, step: str, error: UnreadableError) -> CacheError:
    return CacheError(
        f"{path}:{number}: expected one JSON value of its kind, but {error}; run `semalign {step}` again."
    )


def _told(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Atomic YAML with a seal, fields in their own order, without credentials: reports show such files, and `push` uploads them."""
    text = yaml.safe_dump(redacted(dict(values)), sort_keys=False, allow_unicode=True)
    write_atomic(path, sealed(text.encode(), ".yaml"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Atomic safetensors file, written from the tensors' own memory."""
    with replacing(path) as temporary:
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


def parquet_files(place: str) -> list[Path]:
    """The Parquet files of a folder in order, or the one that is named, whether it is there or not."""
    path = Path(place).expanduser()
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path]
