"""Step 3: both models once over the rows. Leaves everything training needs in the student's space; frees both models.

Three passes: the student (prefix streams, its own activations and top-k), the teacher (activations, union of top-k), and,
once the maps are known, the teacher's activations are replaced shard by shard by targets in the student's space.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from semalign import ranks
from semalign.cache import Record, ShardStore, write_tensors
from semalign.config import Interface, MapName, TransferConfig, by_name
from semalign.data import Sample, length_batches
from semalign.errors import CacheError, ConfigError
from semalign.folder import RunFolder, fingerprint, free_memory, is_done, measured, save_result
from semalign.maths.bases import logit_map, semantic_map
from semalign.maths.regression import RidgeFit
from semalign.maths.similarity import mean_cosine
from semalign.methods import named, resolve
from semalign.models import Decoder, Head
from semalign.progress import bar
from semalign.recipe import Recipe
from semalign.remote import Remote, is_remote
from semalign.signals import Request, layer_states, student_signals, teacher_signals
from semalign.steps.inputs import Inputs
from semalign.steps.pair import Plan, read_plan
from semalign.supervision import Maps, to_targets

logger = logging.getLogger(__name__)
SCHEMA = 2  # of the cache's files; a change makes older caches stale
FITTED = ("ridge", "weighted_ridge", "procrustes")  # maps that are fitted on cached rows
Source = Callable[[list[int]], list[Record]]  # sample numbers -> records


def recipes_of(config: TransferConfig) -> dict[str | None, Recipe]:
    """The run's own recipe (None) and its baselines by name."""
    baselines = by_name(config.evaluation.baselines)
    return {None: resolve(config.recipe)} | {
        n: named(n, f, "evaluation.baselines") for n, f in baselines.items()
    }


def request_of(config: TransferConfig, plan: Plan) -> tuple[Request, list[tuple[MapName, Interface]]]:
    """The union of what all recipes of a run read, and the (map, interface) kinds of targets among it."""
    recipes = list(recipes_of(config).values())
    wanted = sorted({(r.map, r.interface) for r in recipes if r.needs_targets})
    if any(interface == "head" for _, interface in wanted) and not plan.heads:
        raise ConfigError(
            "recipe.interface: head supervises the plan's pairs of heads, and the plan has none; set pairing.heads."
        )
    request = Request(
        pairs=plan.pairs,
        heads=plan.heads,
        interfaces=tuple(sorted({interface for _, interface in wanted})),
        cut=plan.cut if config.train.cache_prefix and plan.cut else None,
        # A weighted fit weights positions by what the teacher's top-k says.
        top_k=config.cache.top_k if any(r.needs_topk or r.map == "weighted_ridge" for r in recipes) else 0,
        teacher_output=any(r.needs_teacher_output for r in recipes),
        dtype=getattr(torch, config.cache.dtype),
        prefix_dtype=config.cache.prefix_dtype,
    )
    return request, wanted


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
            if not (self.targets / name).exists():
                self.remote.get(self.targets / name)

    def publish(self) -> None:
        """Copy what lies beside the shards to the remote folder, the manifest last."""
        if self.remote is None:
            return
        for path in sorted(self.targets.glob("[!.]*.*"), key=lambda p: p.suffix == ".json"):
            self.remote.put(path)

    def forget_raw(self) -> None:
        """Drop the activations that waited for their map."""
        shutil.rmtree(self.targets / "raw", ignore_errors=True)
        if self.remote is not None:
            self.remote.child("raw").remove()

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return self.student.bytes + self.teacher.bytes + self.heldout.bytes


def fill(
    store: ShardStore,
    source: Source,
    *,
    label: str,
    batch_size: int,
    limit: Callable[[], None] = lambda: None,
) -> None:
    """Write the shards a store lacks: of several processes each those of its own turn (shard number mod processes)."""
    missing = [n for n in store.missing(verify=True) if n % ranks.world() == ranks.rank()]
    with bar(sum(len(store.plan[n]) for n in missing), label) as progress:
        for number in missing:
            records: list[Record] = []
            for batch in _chunks(store.plan[number], batch_size):
                records += source(batch)
                progress.update(len(batch))
            store.write(number, records)
            # Pages that many small activations left half empty would add up from shard to shard. Nothing here is a cycle, and
            # a collection takes as long as a small shard.
            del records
            free_memory(collect=False)
            limit()
    ranks.wait()
    store.refresh()


def _chunks(numbers: Sequence[int], size: int) -> list[list[int]]:
    return [list(numbers[i : i + size]) for i in range(0, len(numbers), size)]


def head_maps(
    teacher: Head, student: Head, norms: tuple[Tensor, Tensor], wanted: Sequence[tuple[str, str]]
) -> dict[str, Tensor]:
    """The maps that come from the heads alone; `logit` folds both final norms in, for streams before them."""
    maps: dict[str, Tensor] = {}
    names = {name for name, _ in wanted}
    if "semantic" in names:
        maps["semantic"] = semantic_map(teacher.weight_VD, student.weight_VD)
    if "logit" in names:
        maps["logit"] = logit_map(
            teacher.weight_VD, student.weight_VD, teacher_norm_D=norms[0], student_norm_E=norms[1]
        )
    return maps


def fit_maps(stores: Stores, raw: Source, penalty: float, widths: tuple[int, int]) -> dict[str, Tensor]:
    """Fitted maps teacher -> untouched student, one per kind, pair and interface, over all cached positions.

    `weighted_ridge` weights a position by 1 - sum_J p_T^2, the trace of its Fisher information in the logits: where the
    teacher is certain, the logits may move without changing what it says. Each process adds up the shards it wrote.
    """
    places = [(name, i, p.place) for name, i in stores.wanted if name in FITTED for p in stores.request.at(i)]
    fits = {f"{name}.{i}.{k}": RidgeFit(*widths) for name, i, k in places}
    for numbers in stores.teacher.plan[ranks.rank() :: ranks.world()]:
        own_keys = sorted({f"positions.own.{i}.{k}" for _, i, k in places})
        records = [(r, stores.student.read(n, own_keys)) for r, n in zip(raw(numbers), numbers, strict=True)]
        for name, i, k in places:
            x = torch.cat([theirs[f"positions.teacher.{i}.{k}"] for theirs, _ in records]).float()
            y = torch.cat([own[f"positions.own.{i}.{k}"] for _, own in records]).float()
            weights = _uncertainty([r for r, _ in records]) if name == "weighted_ridge" else None
            fits[f"{name}.{i}.{k}"].add(x, y, weights)
    maps = {}
    for key, fit in fits.items():
        fit.reduce(ranks.total)
        solved = fit.solve_procrustes() if key.startswith("procrustes") else fit.solve(penalty=penalty)
        maps[key], maps[f"{key}.bias"] = solved
    return maps


def _uncertainty(records: Sequence[Record]) -> Tensor:
    """1 - sum_J p_T^2 of every position, kept above 0 so that no position is lost."""
    logp, valid = (torch.cat([r[f"positions.{k}"] for r in records]) for k in ("teacher_logp", "valid"))
    return (1 - (logp.exp() * valid).square().sum(1)).clamp_min(1e-3)


def cache(config: TransferConfig, run: RunFolder, inputs: Inputs) -> None:
    """Write targets/: stores, maps.safetensors, teacher_head.safetensors, cka.safetensors, manifest.json."""
    plan = read_plan(run)
    stores = Stores(config, run, inputs, plan)
    if ranks.from_main(lambda: _is_cached(run, stores)):
        return
    if (changed := stores.student.stale_fields()) and ranks.is_main():
        logger.warning("cached activations are stale (%s); they are computed again", "; ".join(changed[:3]))
    result: dict[str, Any] = {}
    own: dict[str, Any] = {}
    with measured(result):
        with measured(own):
            head, norm = _student_pass(config, run, inputs, stores)
        free_memory()
        heldout_seconds = _teacher_pass(config, run, inputs, stores, (head, norm))
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
    save_result(run.manifest, stores.fingerprint, result)
    stores.publish()


def _is_cached(run: RunFolder, stores: Stores) -> bool:
    return is_done(run.manifest, stores.fingerprint) and not any(
        s.missing(verify=True) for s in (stores.student, stores.teacher, stores.heldout)
    )


def _limit(config: TransferConfig, run: RunFolder) -> Callable[[], None]:
    def check() -> None:
        if config.cache.max_bytes is None:
            return
        # All that lies there now, raw activations that wait for their map included.
        size = sum(p.stat().st_size for p in run.targets.rglob("*.safetensors"))
        if size > config.cache.max_bytes:
            raise CacheError(
                f"cache.max_bytes: the cache has grown to {size} bytes, allowed are {config.cache.max_bytes}; "
                "raise the limit, or lower data.max_rows, cache.top_k or the number of pairs."
            )

    return check


def _student_pass(
    config: TransferConfig, run: RunFolder, inputs: Inputs, stores: Stores
) -> tuple[Head, Tensor]:
    student = inputs.load_student()
    fill(
        stores.student,
        lambda batch: student_signals(student, [inputs.train[i] for i in batch], stores.request),
        label="cache student",
        batch_size=config.cache.batch_size,
        limit=_limit(config, run),
    )
    return student.head().detached(), student.norm_weight().clone()


def _teacher_pass(
    config: TransferConfig, run: RunFolder, inputs: Inputs, stores: Stores, student: tuple[Head, Tensor]
) -> float:
    """The teacher over training and held-out rows, its activations mapped into the student's space.

    Returns:
        Seconds that the held-out rows took: they are for measuring, not for training.
    """
    teacher = inputs.load_teacher()
    heldout_seconds = 0.0
    quiet = replace(stores.request, top_k=0, teacher_output=True)

    def train_rows(batch: list[int]) -> list[Record]:
        own = [stores.student.read(i) for i in batch] if stores.request.top_k else []
        rows = [inputs.train[i] for i in batch]
        return teacher_signals(teacher, rows, stores.request, own, student[0], inputs.candidates)

    def heldout_rows(batch: list[int]) -> list[Record]:
        nonlocal heldout_seconds
        start = time.perf_counter()
        rows = [inputs.heldout[i] for i in batch]
        found = teacher_signals(teacher, rows, quiet, [], student[0], inputs.candidates)
        heldout_seconds += time.perf_counter() - start
        return found

    options: dict[str, Any] = {"batch_size": config.cache.batch_size, "limit": _limit(config, run)}
    sources: dict[str, Source] = {"teacher": train_rows, "heldout": heldout_rows}
    # Else only damaged shards are rebuilt, with the maps that made the others.
    if not ranks.from_main(lambda: is_done(run.manifest, stores.fingerprint)):
        fitted: dict[str, Tensor] = {}
        if any(name in FITTED for name, _ in stores.wanted):
            sources = _raw(stores, sources, options)
            widths = inputs.teacher.hidden_size, inputs.student.hidden_size
            fitted = fit_maps(stores, sources["teacher"], config.cache.ridge_penalty, widths)
        if ranks.is_main():
            _once(config, run, inputs, teacher)
            norms = teacher.norm_weight(), student[1]
            made = head_maps(teacher.head(), student[0], norms, stores.wanted)
            write_tensors(run.targets / "maps.safetensors", made | fitted)
            stores.publish()
        ranks.wait()
    maps = Maps.read(run.targets / "maps.safetensors")
    for name, final in (("teacher", stores.teacher), ("heldout", stores.heldout)):
        fill(final, _mapped(sources[name], maps, stores), label=f"cache {name}", **options)
    return heldout_seconds


def _once(config: TransferConfig, run: RunFolder, inputs: Inputs, teacher: Decoder) -> None:
    """What is read of the teacher beside the rows: its head, and its streams after every layer on a few of them."""
    head = teacher.head()
    write_tensors(run.targets / "teacher_head.safetensors", {"weight": head.weight_VD, **_bias(head)})
    if inputs.heldout and config.evaluation.cka_rows:
        states = layer_states(teacher, inputs.heldout[: config.evaluation.cka_rows])
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
    key = "tokens.prefix_error"
    return error_figures([stores.student.read(n, [key])[key] for n in range(len(inputs.train))])


def error_figures(errors: Sequence[Tensor]) -> dict[str, float]:
    """Mean and worst of errors a token."""
    error_T = torch.cat(list(errors)).float()
    return {"mean": float(error_T.mean()), "worst": float(error_T.max())}


def _alignment(stores: Stores, inputs: Inputs) -> list[dict[str, Any]]:
    """Mean cosine between targets and the untouched student's own activations, over the training rows."""
    lines = []
    for name, interface in stores.wanted:
        for pair in stores.request.at(interface) if name != "none" else ():
            target, own = (
                f"positions.target.{name}.{interface}.{pair.place}",
                f"positions.own.{interface}.{pair.place}",
            )
            total, count = 0.0, 0
            for numbers in stores.teacher.plan:
                x = torch.cat([stores.teacher.read(n, [target])[target] for n in numbers]).float()
                y = torch.cat([stores.student.read(n, [own])[own] for n in numbers]).float()
                total, count = total + mean_cosine(x, y) * len(x), count + len(x)
            lines.append(
                {
                    "teacher": pair.teacher,
                    "student": pair.student,
                    **pair.heads,
                    "interface": interface,
                    "map": name,
                    "cosine": total / count,
                }
            )
    return lines
