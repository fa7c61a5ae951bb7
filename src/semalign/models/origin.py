"""Where a model comes from and under which licence, read once at the start and kept in the run folder."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from semalign.config import ModelConfig
from semalign.errors import ConfigError, sentence
from semalign.models.finding import locate
from semalign.reading import MOST_YAML_BYTES, UnreadableError, yaml_of

FRONT_MATTER = re.compile(r"\A\s*---\r?\n(.*?)\r?\n---", re.DOTALL)
FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
MOST_HEAD = 1 << 20  # bytes of a text, or values of an array, in the head of a GGUF file
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def origin(config: ModelConfig) -> dict[str, Any]:
    """What a card says about a model.

    Returns:
        name: hub id, embedded:..., or the last part of a local path, never the path itself. hub_id: or None.
        license, license_name: as the model's own card names them (`other` goes with a name), or its GGUF header, or
        None. license_text: its licence file, or None.
    """
    name = config.model_name_or_path
    where, extra = locate(config)
    if Path(where).is_dir():
        shown = name if name.startswith("embedded:") else Path(name).absolute().name
        texts = {file: _read(Path(where) / file) for file in ("README.md", *FILES)}
    else:
        shown = name
        files = ("README.md", "LICENSE") if HUB_ID.fullmatch(name) else ()
        texts = {file: _from_hub(name, file, config.model_revision) for file in files}
    license_text = next((texts[f] for f in FILES if texts.get(f)), None)
    license, license_name = _named(texts.get("README.md"))
    if license is None and "gguf_file" in extra:
        license = _gguf_license(Path(where, extra["gguf_file"]))
    is_hub = not Path(where).is_dir() and HUB_ID.fullmatch(name)
    return {
        "name": shown,
        "hub_id": name if is_hub else None,
        "license": license,
        "license_name": license_name,
        "license_text": license_text,
    }


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _from_hub(name: str, file: str, revision: str | None) -> str | None:
    """A file of a hub model; None where there is none, or neither network nor a cached copy."""
    try:
        return _read(Path(hf_hub_download(name, file, revision=revision)))
    except (OSError, ValueError, EntryNotFoundError):
        return None


def _named(card: str | None) -> tuple[str | None, str | None]:
    """`license` and `license_name` of a card's metadata."""
    found = FRONT_MATTER.search(card or "")
    try:
        metadata = yaml_of(found[1][:MOST_YAML_BYTES].encode(), is_plain=False) if found else None
    except UnreadableError:
        metadata = None
    if not isinstance(metadata, dict):
        return None, None
    license, name = (str(metadata[key]) if metadata.get(key) else None for key in ("license", "license_name"))
    return license, name


def _gguf_license(path: Path) -> str | None:
    """general.license of a GGUF file, from the head alone: the whole would take seconds, for the vocabulary's sake.

    The head is: magic, version (4 bytes), counts of tensors and of entries (8 bytes each), then entries of key, type
    and value; those of `general.` come first.
    """
    try:
        with path.open("rb") as file:
            magic, _, _, count = struct.unpack("<4sIQQ", file.read(24))
            for _ in range(count if magic == b"GGUF" else 0):
                key = _text(file)
                if not key.startswith("general."):
                    break
                value = _value(file)
                if key == "general.license":
                    return sentence(value)
    except (struct.error, ValueError, RecursionError):
        pass  # cut off or damaged: loading it says so
    return None


def _text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > MOST_HEAD:
        raise ValueError(f"a text of {length} bytes")
    return file.read(length).decode("utf-8", errors="replace")


def _value(file: BinaryIO, kind: int | None = None) -> Any:
    """A value, led by its type unless that is known; 8 is text, 9 an array led by its elements' type and their count."""
    if kind is None:
        (kind,) = struct.unpack("<I", file.read(4))
    if kind == 8:
        return _text(file)
    if kind == 9:
        inner, length = struct.unpack("<IQ", file.read(12))
        if length > MOST_HEAD:
            raise ValueError(f"an array of {length} values")
        return [_value(file, inner) for _ in range(length)]
    return file.read({0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1}.get(kind, 8))


def check_hub_id(name: str, field: str = "hub_model_id") -> str:
    """The name, if the hub would take it.

    Raises:
        ConfigError: it would not.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"{field}: expected a name such as ORG/NAME, got {name!r} ({error}).") from error
    return name
