"""What a cache holds: the union of what all recipes of a run read, and the stores that hold it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict

from semalign.config import TransferConfig
from semalign.data import Sample, length_batches
from semalign.data.inputs import Inputs
from semalign.run import ranks
from semalign.run.files import Record
from semalign.run.folder import RunFolder, fingerprint
from semalign.run.meter import free_memory
from semalign.run.progress import bar
from semalign.signals.plan import Plan
from semalign.signals.remote import Remote, is_remote
from semalign.signals.request import request_of
from semalign.signals.shards import ShardStore

SCHEMA = 5  # of the cache's files; a change makes older caches stale
Source = Callable[[list[int]], list[Record]]  # sample numbers -> records


def shard_plan(samples: Sequence[Sample], shard_rows: int) -> list[list[int]]:
    """Sample numbers of each shard, longest rows first, so that batches hold rows of like length."""
    return length_batches([len(s.input_ids) for s in samples], max_tokens=None, batch_size=shard_rows)


class Stores:
    """The three stores of a run's targets/ folder."""

    def __init__(self, config: TransferConfig, run: RunFolder, inputs: Inputs, plan: Plan) -> None:
        request, wanted = request_of(config, plan)
        self.request, self.wanted = request, wanted
        self.fingerprint = fingerprint(
            schema=SCHEMA,
            **inputs.fingerprint,
            plan=asdict(plan),
            targets=wanted,
            cut=request.cut,
            top_k=request.top_k,
            temperatures=request.temperatures,
            teacher_output=request.teacher_output,
            dtype=config.cache.dtype,
            ridge_penalty=config.cache.ridge_penalty,
            shard_rows=config.cache.shard_rows,
            # Named only where it is used, so that folders from before it stay valid.
            **({"prefix_dtype": request.prefix_dtype} if request.prefix_dtype and request.cut else {}),
        )
        train, heldout = (shard_plan(s, config.cache.shard_rows) for s in (inputs.train, inputs.heldout))
        own, theirs = train if request.needs_student else [], train if request.needs_teacher else []
        self.targets, folder = run.targets, config.cache.folder
        self.remote = Remote(folder) if folder is not None and is_remote(folder) else None
        self.student = self.store("student", own)
        self.teacher = self.store("teacher", theirs)
        self.heldout = self.store("heldout", heldout)
        self.fetch()

    def store(self, name: str, plan: list[list[int]]) -> ShardStore:
        """A store of its own below targets/, and in the remote folder where there is one."""
        remote = self.remote and self.remote.child(name)
        return ShardStore(self.targets / name, self.fingerprint, plan, remote)

    def fetch(self) -> None:
        """Copy what lies beside the shards in the remote folder and not here."""
        if self.remote is None:
            return
        for name in self.remote.sizes():
            # What a stopped try has left is of that machine.
            if not name.endswith(".part") and not (self.targets / name).exists():
                self.remote.get(self.targets / name)

    def publish(self) -> None:
        """Copy what lies beside the shards to the remote folder, the manifest last."""
        if self.remote is None:
            return
        paths = [path for path in self.targets.glob("[!.]*.*") if path.suffix != ".part"]
        for path in sorted(paths, key=lambda p: p.suffix == ".json"):
            self.remote.put(path)

    def forget_raw(self) -> None:
        """Drop the activations that waited for their map."""
        shutil.rmtree(self.targets / "raw", ignore_errors=True)
        if self.remote is not None:
            self.remote.child("raw").remove()

    @property
    def all(self) -> tuple[ShardStore, ...]:
        """The three."""
        return self.student, self.teacher, self.heldout

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(store.bytes for store in self.all)


def fill(
    store: ShardStore,
    source: Source,
    *,
    label: str,
    batch_size: int,
    limit: Callable[[int], None] = lambda more: None,
) -> None:
    """Write the shards a store lacks: of several processes each those of its own turn (shard number mod processes)."""
    missing = [n for n in store.missing(verify=True) if n % ranks.world() == ranks.rank()]
    with bar(sum(len(store.plan[n]) for n in missing), label) as progress:
        for number in missing:
            records: list[Record] = []
            for batch in _chunks(store.plan[number], batch_size):
                records += source(batch)
                progress.update(len(batch))
            limit(sum(tensor.nbytes for record in records for tensor in record.values()))
            store.write(number, records)
            # Pages that many small activations left half empty would add up from shard to shard. Nothing here is a cycle, and
            # a collection takes as long as a small shard.
            del records
            free_memory(collect=False)
    ranks.wait()
    store.refresh()
    if ranks.is_main():
        store.mend_index()


def _chunks(numbers: Sequence[int], size: int) -> list[list[int]]:
    return [list(numbers[i : i + size]) for i in range(0, len(numbers), size)]
