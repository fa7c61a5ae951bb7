"""Per-sample tensors in safetensors shards: sharded, checksummed, resumable, fingerprinted.

A folder holds index.json (what the shards were made from) and, for every shard, shard-00000.safetensors and
shard-00000.json (size and digest, written last), so that several processes can fill one folder. In a shard each key
holds the rows of its samples one after another; keys start with `tokens.` (one row a token) or `positions.` (one row a
supervised position), and `offsets.tokens`, `offsets.positions` say where each sample's rows begin.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from semalign.config import differences
from semalign.errors import CacheError
from semalign.reading import UnreadableError, check_shape, json_of
from semalign.run import ranks
from semalign.run.digests import damage, digest, record, seal_of
from semalign.run.files import NOT_AS_WRITTEN, Record, say_once, write_json, write_tensors
from semalign.run.results import Index, Shard
from semalign.signals.remote import Remote

KINDS = ("tokens", "positions")


class ShardStore:
    """Records of samples 0..n-1 in a folder; `plan` gives the sample numbers of each shard.

    With `remote` the shards lie there, and the folder keeps copies: of those written here and of those read.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Mapping[str, Any],
        plan: Sequence[Sequence[int]],
        remote: Remote | None = None,
    ) -> None:
        self.folder, self.plan, self.remote = folder, [list(p) for p in plan], remote
        self.fingerprint = json.loads(json.dumps(fingerprint))
        self._made_from = hashlib.sha256(json.dumps(self.fingerprint, sort_keys=True).encode()).hexdigest()
        self.refresh()
        self._where = {
            sample: (n, i) for n, samples in enumerate(self.plan) for i, sample in enumerate(samples)
        }
        self._open: dict[int, tuple[Any, dict[str, None], dict[str, list[int]]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """All but the open files, which no other process can have; they are opened again when they are read."""
        return self.__dict__ | {"_open": {}}

    def refresh(self) -> None:
        """Read again which shards lie there, for those that other processes wrote."""
        self._sizes, texts = self._listing()
        # A changed input makes every shard stale; they are rebuilt one by one under the same names.
        self._written_for = self._sealed(texts, "index.json", Index).get("fingerprint")
        self._entries: dict[int, dict[str, Any]] = {}
        for number in range(len(self.plan)):
            entry = self._sealed(texts, self._path(number).with_suffix(".json").name, Shard)
            files = entry.get("files", {})
            if entry.get("made_from") == self._made_from and self._path(number).name in files:
                self._entries[number] = files[self._path(number).name]

    def _sealed(self, texts: Mapping[str, bytes], name: str, kind: Any) -> dict[str, Any]:
        """The object in a small file; empty where it is not there, or not as it was written: its shard is then made again."""
        if name not in texts:
            return {}
        try:
            value = json_of(texts[name])
            check_shape(kind, value)
        except UnreadableError:
            value = None
        if value is None or seal_of(texts[name], ".json") != "whole":
            say_once(f"{self.folder / name}: {NOT_AS_WRITTEN}; made again")
            return {}
        return dict(value)

    def _listing(self) -> tuple[dict[str, int], dict[str, bytes]]:
        """Sizes of all files by name, and the contents of those in JSON."""
        if self.remote is not None:
            sizes = self.remote.sizes()
            return sizes, self.remote.texts([name for name in sizes if name.endswith(".json")])
        files = list(self.folder.glob("[!.]*.*")) if self.folder.exists() else []
        texts = {p.name: p.read_bytes() for p in files if p.suffix == ".json"}
        return {}, texts

    def stale_fields(self) -> list[str]:
        """What changed since the folder was written, as dotted paths; empty when nothing did."""
        return differences(self._written_for, self.fingerprint) if self._written_for else []

    def missing(self, *, verify: bool = False) -> list[int]:
        """Shards that are absent, of the wrong size, or (with verify) of the wrong checksum.

        Of a remote store's shards only the copies are verified; the others are when they are fetched.
        """
        return [n for n in range(len(self.plan)) if not self._is_good(n, verify)]

    def _is_good(self, number: int, verify: bool) -> bool:
        entry, path = self._entries.get(number), self._path(number)
        if entry is None:
            return False
        if self.remote is not None:
            if self._sizes.get(path.name) != entry["bytes"]:
                return False
            return not verify or not path.exists() or digest(path) == entry["sha256"] or self._fetch(number)
        if not verify:
            return path.exists() and path.stat().st_size == entry["bytes"]
        if wrong := damage(self.folder, {path.name: entry}):
            say_once(f"{self.folder}: {wrong}; made again")
        return wrong is None

    def _fetch(self, number: int) -> bool:
        """Copy a shard from the remote folder; whether it came as it was written."""
        assert self.remote is not None
        self.remote.get(self._path(number))
        return digest(self._path(number)) == self._entries[number]["sha256"]

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.safetensors"

    def _why(self) -> str:
        if changed := self.stale_fields():
            return f"stale ({'; '.join(changed)[:200]}), so the cache is of other inputs"
        return "missing or damaged (its size or SHA-256 is not the one that was recorded)"

    def write(self, number: int, records: Sequence[Record]) -> int:
        """Write one shard, records in the order of `plan[number]`; returns its bytes."""
        assert len(records) == len(self.plan[number])
        tensors = {key: torch.cat([r[key] for r in records]) for key in records[0]}
        for kind in KINDS:
            key = next((k for k in records[0] if k.startswith(kind)), None)
            if key is not None:
                tensors[f"offsets.{kind}"] = torch.tensor([0, *(len(r[key]) for r in records)]).cumsum(0)
        self._open.pop(number, None)
        write_tensors(self._path(number), tensors)
        if not self._entries:
            self._write_index()
        files = record(self.folder, [self._path(number)])
        entry = {"files": files, "made_from": self._made_from, "process": ranks.rank()}
        write_json(self._path(number).with_suffix(".json"), entry)
        if self.remote is not None:
            self.remote.put(self._path(number))
            self.remote.put(self._path(number).with_suffix(".json"))
            self._sizes[self._path(number).name] = files[self._path(number).name]["bytes"]
        self._entries[number] = files[self._path(number).name]
        return int(self._entries[number]["bytes"])

    def mend_index(self) -> None:
        """Write the index again where it is damaged or of other inputs, though all shards are there."""
        if self._entries and self._written_for != self.fingerprint:
            self._write_index()

    def _write_index(self) -> None:
        """Every process that finds no valid shard writes the same."""
        write_json(self.folder / "index.json", {"fingerprint": self.fingerprint})
        if self.remote is not None:
            self.remote.put(self.folder / "index.json")

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(entry["bytes"] for entry in self._entries.values())

    def read(self, sample: int, keys: Sequence[str] | None = None) -> Record:
        """The tensors of one sample; only its own rows are read from disk."""
        number, position = self._where[sample]
        file, held, offsets = self._handle(number)
        record = {}
        for key in keys if keys is not None else [k for k in held if not k.startswith("offsets.")]:
            if key not in held:
                raise CacheError(
                    f"{self._path(number)}: holds no {key}, which the recipe reads; make the cache with this recipe and its options."
                )
            bounds = offsets[key.split(".", 1)[0]]
            record[key] = file.get_slice(key)[bounds[position] : bounds[position + 1]]
        return record

    def _handle(self, number: int) -> tuple[Any, dict[str, None], dict[str, list[int]]]:
        if number not in self._open:
            is_absent = (
                self.remote is not None and number in self._entries and not self._path(number).exists()
            )
            if not (self._fetch(number) if is_absent else self._is_good(number, verify=True)):
                raise CacheError(f"{self._path(number)}: {self._why()}; run `semalign cache` again.")
            file = safe_open(self._path(number), "pt")
            keys = dict.fromkeys(file.keys())
            offsets = {k: file.get_tensor(f"offsets.{k}").tolist() for k in KINDS if f"offsets.{k}" in keys}
            self._open[number] = (file, keys, offsets)
        return self._open[number]
