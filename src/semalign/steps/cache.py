"""Step 3: both models once over the rows. Leaves everything training needs in the student's space; frees both models.

Three passes: the student (prefix streams, its own activations and top-k), the teacher (activations, union of top-k), and,
once the maps are known, the teacher's activations are replaced shard by shard by targets in the student's space.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from semalign.data.inputs import Inputs
from semalign.errors import CacheError
from semalign.maths.similarity import mean_cosine
from semalign.methods.maps import MAPS
from semalign.models.decoder import Decoder
from semalign.models.head import Head
from semalign.run import ranks
from semalign.run.files import Record, write_tensors
from semalign.run.folder import RunFolder, is_done, save_result
from semalign.run.meter import Tries, free_memory, measured
from semalign.signals.maps import Maps, fit_maps, head_maps, to_targets
from semalign.signals.passes import layer_states, student_signals, teacher_signals, told_heldout, told_signals
from semalign.signals.prepared import Prepared
from semalign.signals.request import PREFIX_ERROR, own_name, target_name
from semalign.signals.shards import ShardStore
from semalign.signals.stores import Source, Stores, fill
from semalign.signals.telling import teller_of

logger = logging.getLogger(__name__)
BESIDE = ("maps.safetensors", "teacher_head.safetensors", "cka.safetensors")
"""What lies beside the shards."""


def cache(prepared: Prepared) -> None:
    """Write targets/: stores, maps.safetensors, teacher_head.safetensors, cka.safetensors, manifest.json."""
    run, stores = prepared.run, prepared.stores
    if ranks.from_main(lambda: _is_cached(run, stores)):
        return
    with run.lock_cache():
        _fill(prepared)


def _fill(prepared: Prepared) -> None:
    run, inputs, stores = prepared.run, prepared.inputs, prepared.stores
    if (changed := stores.student.stale_fields()) and ranks.is_main():
        logger.warning("cached activations are stale (%s); they are computed again", "; ".join(changed[:3]))
    result: dict[str, Any] = {}
    own: dict[str, Any] = {}
    tries = Tries(run.targets / "seconds.part", stores.fingerprint) if ranks.is_main() else None
    with measured(result, tries):
        with measured(own):
            head, norm = _student_pass(prepared)
        free_memory()
        heldout_seconds = _teacher_pass(prepared, (head, norm))
        free_memory()
        if ranks.is_main():
            alignment = _alignment(stores, inputs)
            stores.forget_raw()
    if not ranks.is_main():
        return
    result |= {
        "processes": ranks.world(),
        "student_seconds": own["seconds"],
        "heldout_seconds": round(heldout_seconds, 3),
        "bytes": stores.bytes,
        "samples": len(inputs.train),
        "tokens": sum(len(s.input_ids) for s in inputs.train),
        "supervised_tokens": sum(s.supervised for s in inputs.train),
        "top_k": stores.request.top_k,
        "alignment": alignment,
        "prefix_error": _prefix_error(stores, inputs),
    }
    # Entries of shards are verified by the shards that they are of; here they tell what belongs to this very cache.
    entries = [] if stores.remote else [p for s in stores.all for p in s.folder.glob("[!.]*.json")]
    beside = [run.targets / name for name in BESIDE if (run.targets / name).exists()]
    save_result(run.manifest, stores.fingerprint, result, [*beside, *entries])
    stores.publish()


def _is_cached(run: RunFolder, stores: Stores) -> bool:
    is_whole = is_done(run.manifest, stores.fingerprint)
    return is_whole and not any(s.missing(verify=True) for s in stores.all)


def _limit(prepared: Prepared) -> Callable[[int], None]:
    """Refuses a shard of so many bytes that would make the cache larger than the config allows."""
    most, targets = prepared.config.cache.max_bytes, prepared.run.targets

    def check(more: int) -> None:
        if most is None:
            return
        # All that lies there now, raw activations that wait for their map included.
        size = more + sum(p.stat().st_size for p in targets.rglob("*.safetensors"))
        if size > most:
            raise CacheError(
                f"cache.max_bytes: the cache would grow to {size} bytes, and {most} are allowed; raise the limit, or lower "
                "data.max_rows, cache.top_k or the number of pairs."
            )

    return check


def _student_pass(prepared: Prepared) -> tuple[Head, Tensor]:
    config, inputs, stores = prepared.config, prepared.inputs, prepared.stores
    student = inputs.load_student()
    fill(
        stores.student,
        lambda batch: student_signals(student, [inputs.train[i] for i in batch], stores.request),
        label="cache student",
        batch_size=config.cache.batch_size,
        limit=_limit(prepared),
    )
    return student.head().detached(), student.norm_weight().clone()


def _teacher_pass(prepared: Prepared, student: tuple[Head, Tensor]) -> float:
    """The teacher over training and held-out rows, its activations mapped into the student's space.

    Returns:
        Seconds that the held-out rows took: they are for measuring, not for training.
    """
    config, run, inputs, stores = prepared.config, prepared.run, prepared.inputs, prepared.stores
    if config.teacher.only_tells:
        return _ask_teacher(prepared, student[0])
    teacher = inputs.load_teacher()
    quiet = replace(stores.request, top_k=0, teacher_output=True)

    def train_rows(batch: list[int]) -> list[Record]:
        own = [stores.student.read(i) for i in batch] if stores.request.top_k else []
        rows = [inputs.train[i] for i in batch]
        return teacher_signals(teacher, rows, stores.request, own, student[0], inputs.candidates)

    def heldout_rows(batch: list[int]) -> list[Record]:
        rows = [inputs.heldout[i] for i in batch]
        return teacher_signals(teacher, rows, quiet, [], student[0], inputs.candidates)

    options: dict[str, Any] = {"batch_size": config.cache.batch_size, "limit": _limit(prepared)}
    heldout = Timed(heldout_rows)
    sources: dict[str, Source] = {"teacher": train_rows, "heldout": heldout}
    # Else only damaged shards are rebuilt, with the maps that made the others.
    if not ranks.from_main(lambda: is_done(run.manifest, stores.fingerprint, BESIDE)):
        fitted: dict[str, Tensor] = {}
        if any(MAPS[name].is_fitted for name, _ in stores.wanted):
            sources = _raw(stores, sources, options)
            widths = inputs.teacher.width, inputs.student.width
            fitted = fit_maps(stores, sources["teacher"], config.cache.ridge_penalty, widths, teacher.device)
        if ranks.is_main():
            _once(prepared, teacher)
            made: dict[str, Tensor] = {}
            if stores.wanted:
                norms = teacher.norm_weight(), student[1]
                made = head_maps(teacher.head(), student[0], norms, stores.wanted)
            write_tensors(run.targets / "maps.safetensors", made | fitted)
            stores.publish()
        ranks.wait()
    maps = Maps.read(run.targets / "maps.safetensors")
    for name, final in (("teacher", stores.teacher), ("heldout", stores.heldout)):
        fill(final, _mapped(sources[name], maps, stores), label=f"cache {name}", **options)
    return heldout.seconds


def _ask_teacher(prepared: Prepared, student_head: Head) -> float:
    """A teacher that only tells in the place of one with layers: it has no activations to map, and no head to keep."""
    config, inputs, stores = prepared.config, prepared.inputs, prepared.stores
    teacher = teller_of(config, inputs)
    # As many rows as requests may be under way.
    size = config.teacher.server.requests if config.teacher.server.url else config.cache.batch_size
    options: dict[str, Any] = {"batch_size": size, "limit": _limit(prepared)}
    if any(store.missing(verify=True) for store in (stores.teacher, stores.heldout)):
        teacher.self_test(inputs.train[0])

    def train_rows(batch: list[int]) -> list[Record]:
        own, rows = [stores.student.read(i) for i in batch], [inputs.train[i] for i in batch]
        return told_signals(teacher.tell(rows), rows, stores.request, own, student_head, inputs.candidates)

    def heldout_rows(batch: list[int]) -> list[Record]:
        rows = [inputs.heldout[i] for i in batch]
        return told_heldout(teacher.tell(rows), rows)

    heldout = Timed(heldout_rows)
    fill(stores.teacher, train_rows, label="cache teacher", **options)
    fill(stores.heldout, heldout, label="cache heldout", **options)
    return heldout.seconds


class Timed:
    """A source of records, and the seconds that it took."""

    def __init__(self, source: Source) -> None:
        self.source, self.seconds = source, 0.0

    def __call__(self, batch: list[int]) -> list[Record]:
        """The records of a batch."""
        start = time.perf_counter()
        found = self.source(batch)
        self.seconds += time.perf_counter() - start
        return found


def _once(prepared: Prepared, teacher: Decoder) -> None:
    """What is read of the teacher beside the rows: its head, and its streams after every layer on a few of them."""
    head, run, heldout = teacher.head(), prepared.run, prepared.inputs.heldout
    write_tensors(run.targets / "teacher_head.safetensors", {"weight": head.weight_VD, **_bias(head)})
    if (rows := heldout[: prepared.config.evaluation.cka_rows]) and teacher.has_layers:
        states = layer_states(teacher, rows)
        write_tensors(run.targets / "cka.safetensors", states)


def _mapped(source: Source, maps: Maps, stores: Stores) -> Source:
    return lambda batch: [to_targets(record, maps, stores.wanted, stores.request) for record in source(batch)]


def _raw(stores: Stores, sources: dict[str, Source], options: dict[str, Any]) -> dict[str, Source]:
    """A fitted map needs all activations before it can map the first: keep them as they are until then."""
    read: dict[str, Source] = {}
    for name, final in (("teacher", stores.teacher), ("heldout", stores.heldout)):
        raw = stores.store(f"raw/{name}", final.plan)
        fill(raw, sources[name], label=f"{name} activations", **options)
        read[name] = _reader(raw)
    return read


def _reader(store: ShardStore) -> Source:
    return lambda batch: [store.read(n) for n in batch]


def _bias(head: Head) -> dict[str, Tensor]:
    return {} if head.options.bias_V is None else {"bias": head.options.bias_V}


def _prefix_error(stores: Stores, inputs: Inputs) -> dict[str, float] | None:
    """Relative error of the eight-bit streams against the computed ones, over all tokens of the training rows."""
    if stores.request.cut is None or stores.request.prefix_dtype is None:
        return None
    read = stores.student.read
    return error_figures([read(n, [PREFIX_ERROR])[PREFIX_ERROR] for n in range(len(inputs.train))])


def error_figures(errors: Sequence[Tensor]) -> dict[str, float]:
    """Mean and worst of errors a token."""
    error_T = torch.cat(list(errors)).float()
    return {"mean": float(error_T.mean()), "worst": float(error_T.max())}


def _alignment(stores: Stores, inputs: Inputs) -> list[dict[str, Any]]:
    """Mean cosine between targets and the untouched student's own activations, over the training rows."""
    lines = []
    for name, interface in stores.wanted:
        for pair in stores.request.at(interface) if MAPS[name].is_aligned else ():
            target, own = target_name(name, interface, pair.place), own_name(interface, pair.place)
            total, count = 0.0, 0
            for numbers in stores.teacher.plan:
                x = torch.cat([stores.teacher.read(n, [target])[target] for n in numbers]).float()
                y = torch.cat([stores.student.read(n, [own])[own] for n in numbers]).float()
                total, count = total + mean_cosine(x, y) * len(x), count + len(x)
            lines.append(pair.as_json() | {"interface": interface, "map": name, "cosine": total / count})
    return lines
