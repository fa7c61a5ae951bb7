"""A folder of an fsspec store (s3://bucket/run, gs://..., file:///..., memory://...) that files are copied to and from.

Large stores replace a file at once or not at all; others may leave a part of it, which its size and checksum betray.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from semalign.errors import CacheError, ConfigError
from semalign.run.files import FULL, replacing
from semalign.run.secrets import redacted


def is_remote(folder: str) -> bool:
    """Whether a folder's name is a URL."""
    return "://" in folder


class Remote:
    """A folder by its URL. Credentials and endpoints come from where the store's own package takes them.

    Raises:
        ConfigError: the protocol is unknown, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self._store, self._root = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"cache.folder: {redacted(url)}: {redacted(str(error))}; install the package of that store (s3fs, gcsfs, adlfs, ...) with pip, "
                "or give a local folder."
            ) from error

    def child(self, name: str) -> Remote:
        """A folder inside."""
        return Remote(f"{self.url}/{name}")

    def put(self, local: Path) -> None:
        """Copy a file here under its own name."""
        with self._named("written"):
            self._store.makedirs(self._root, exist_ok=True)
            self._store.put_file(str(local), f"{self._root}/{local.name}")

    def get(self, local: Path) -> None:
        """Fetch the file of that name; a reader of `local` sees nothing or the whole."""
        with replacing(local) as part, self._named("read"):
            self._store.get_file(f"{self._root}/{local.name}", str(part))

    def sizes(self) -> dict[str, int]:
        """Bytes of every file in the folder, by name; empty when there is no folder."""
        with self._named("listed"):
            self._store.invalidate_cache()
            if not self._store.isdir(self._root):
                return {}
            entries = self._store.ls(self._root, detail=True)
        return {e["name"].rsplit("/", 1)[-1]: int(e["size"] or 0) for e in entries if e["type"] == "file"}

    def texts(self, names: list[str]) -> dict[str, bytes]:
        """Contents of small files by name, fetched together."""
        with self._named("read"):
            paths = {name: f"{self._root}/{name}" for name in names}
            found = self._store.cat(list(paths.values())) if names else {}
        # One path alone comes back without its name.
        found = {next(iter(paths.values())): found} if isinstance(found, bytes) else found
        contents: dict[str, bytes] = {path.rsplit("/", 1)[-1]: data for path, data in found.items()}
        return {name: contents[name] for name in names}

    def remove(self) -> None:
        """Delete the folder and all in it."""
        with self._named("deleted"):
            if self._store.isdir(self._root):
                self._store.rm(self._root, recursive=True)

    @contextmanager
    def _named(self, what: str) -> Iterator[Any]:
        # Stores raise errors of their own packages, with no common class below Exception.
        try:
            yield
        except Exception as error:
            if what == "read" and getattr(error, "errno", None) in FULL:
                raise  # of the disk here, not of the store
            raise CacheError(
                f"cache.folder: {redacted(self.url)} cannot be {what} ({type(error).__name__}: {redacted(str(error))}); check address, credentials "
                "and network, and run the same command again."
            ) from error
