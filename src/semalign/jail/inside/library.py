"""The standard library without files: what answers are likely to import is loaded at the start, the source of the rest is kept.

An answer's process can open nothing, so a module that it imports has to be in memory already.
"""

from __future__ import annotations

import contextlib
import importlib
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec
from types import ModuleType
from typing import Any

# Modules that are written in C, which cannot be loaded from memory, and those that answers import most.
LOADED = (
    "_bz2", "_codecs_cn", "_codecs_hk", "_codecs_jp", "_codecs_kr", "_contextvars", "_csv", "_elementtree", "_hashlib", "_lzma", "_opcode",
    "_pickle", "_posixsubprocess", "_queue", "_socket", "_uuid", "_zoneinfo", "array", "binascii", "cmath", "fcntl", "grp",
    "mmap", "pyexpat", "select", "termios", "unicodedata", "zlib", "abc", "base64", "bisect", "calendar", "collections",
    "contextlib", "copy", "ctypes", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "hashlib", "heapq",
    "inspect", "io", "itertools", "json", "math", "numbers", "operator", "os", "pathlib", "random", "re", "resource", "secrets",
    "statistics", "string", "struct", "sys", "textwrap", "threading", "time", "traceback", "types", "typing",
)  # fmt: skip
_LEFT_OUT = {
    "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tests", "tkinter", "turtledemo", "venv", "__pycache__",
}  # fmt: skip


class Library:
    """Finds and runs modules of the standard library from their source in memory."""

    def __init__(self, folder: str) -> None:
        text = bytearray()
        self.places: dict[str, tuple[bool, int, int]] = {}
        """By name whether it is a package, and where its source begins and ends."""
        with contextlib.suppress(OSError):
            for entry in os.scandir(folder):
                if (own := entry.name.removesuffix(".py")) in sys.stdlib_module_names - _LEFT_OUT:
                    for name, is_package, source in _sources(entry, own):
                        self.places[name] = is_package, len(text), len(text) + len(source)
                        text += source
        self.text = _out_of_the_way(text)

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if name not in self.places:
            return None
        return ModuleSpec(name, self, origin="standard library", is_package=self.places[name][0])  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        _, start, end = self.places[module.__name__]
        code = compile(bytes(self.text[start:end]), f"<{module.__name__}>", "exec", dont_inherit=True)
        exec(code, module.__dict__)


def _out_of_the_way(text: bytearray) -> Any:
    """The text where a fork need not copy it: a private mapping of a file that has no name and is closed."""
    if not text or not hasattr(os, "memfd_create"):
        return text
    file = os.memfd_create("library")
    try:
        os.truncate(file, len(text))
        with mmap.mmap(file, len(text)) as written:
            written[:] = bytes(text)
        return mmap.mmap(file, len(text), flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    finally:
        os.close(file)


def _sources(entry: os.DirEntry[str], name: str) -> Iterator[tuple[str, bool, bytes]]:
    """A module's name, whether it is a package, and its source; of a package also those inside it."""
    if entry.name.endswith(".py"):
        with open(entry.path, "rb") as file:
            yield name, False, file.read()
    elif entry.is_dir():
        inner = {e.name.removesuffix(".py"): e for e in os.scandir(entry.path)}
        if "__init__" in inner:
            for own, at in inner.items():
                if own == "__init__":
                    yield name, True, next(_sources(at, name))[2]
                elif own not in _LEFT_OUT:
                    yield from _sources(at, f"{name}.{own}")


def fresh_names() -> dict[str, Any]:
    """The names of a new module `program`, in which dataclasses, typing and pickle look up what a program defines."""
    module = sys.modules["program"] = ModuleType("program")
    return module.__dict__


def keep_library() -> None:
    """Load and keep the standard library; from now on imports open no file and find nothing else."""
    for name in LOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Library(os.path.dirname(contextlib.__file__))]
    sys.path[:] = []
    sys.path_hooks[:] = []
    sys.path_importer_cache.clear()
