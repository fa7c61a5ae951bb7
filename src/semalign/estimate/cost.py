"""What a run will cost: bytes by arithmetic, memory and seconds from the probe, scaled to all rows."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from semalign.config import TransferConfig
from semalign.data.inputs import Inputs
from semalign.estimate.probe import Costs
from semalign.methods.maps import MAPS
from semalign.signals.plan import Plan
from semalign.signals.remote import is_remote
from semalign.signals.request import Request, request_of


@dataclass(frozen=True)
class Sizes:
    """Bytes of the cache's records, headers and offsets apart. D teacher width, E student width, k = top_k."""

    token: int
    """A training token: the prefix stream, E numbers, or E + 6 bytes in eight bits."""
    position: int
    """A supervised position: own state and target, E a pair; outputs, E and D; 2 k + 1 entries of 13 bytes, k of 8,
    and what is left of both models at each temperature, 16 bytes."""
    heldout: int
    """A supervised position of a held-out row."""
    raw: int
    """A supervised position while a fitted map waits for all rows: the teacher's states, D a pair, and its top-k set."""
    raw_heldout: int
    """The same for a held-out row."""


def record_sizes(request: Request, wanted: Sequence[tuple[str, str]], wide: int, narrow: int) -> Sizes:
    """Bytes by arithmetic from what a run stores (see `steps.stores.request_of`) and both models' widths."""
    size = torch.finfo(request.dtype).bits // 8
    own = sum(len(request.at(i)) for i in request.interfaces) * narrow * size
    sums = 4 * len({1.0, *request.temperatures})
    own += narrow * size + 8 * request.top_k + sums if request.top_k else 0
    top = (2 * request.top_k + 1) * 13 + 12 * len(request.temperatures) if request.top_k else 0
    # Without a map a target stays in the teacher's width.
    made = [(name, i) for name, i in wanted if not MAPS[name].is_own]
    target = sum(len(request.at(i)) * (wide if MAPS[name].is_raw else narrow) for name, i in made) * size
    output = wide * size
    prefix = narrow + 6 if request.prefix_dtype else narrow * size
    raw = sum(len(request.at(i)) for i in request.interfaces) * wide * size
    is_fitted = any(MAPS[name].is_fitted for name, _ in wanted)
    return Sizes(
        token=prefix * (request.cut is not None),
        position=own + top + target + output * request.teacher_output,
        heldout=target + output,
        raw=is_fitted * (raw + top + output * request.teacher_output),
        raw_heldout=is_fitted * (raw + output),
    )


def estimate(config: TransferConfig, inputs: Inputs, plan: Plan, costs: Costs) -> dict[str, Any]:
    """Bytes of the cache from arithmetic (`record_sizes`); memory and seconds from the probe, scaled to all rows.

    While a fitted map waits for all rows, the teacher's own states lie beside the cache (disk_bytes).
    """
    sizes = record_sizes(*request_of(config, plan), inputs.teacher.width, inputs.student.width)
    tokens, held_tokens = (sum(len(s.input_ids) for s in rows) for rows in (inputs.train, inputs.heldout))
    read = sum(len(s.for_teacher.input_ids) for s in inputs.train)
    positions, held = (sum(s.supervised for s in rows) for rows in (inputs.train, inputs.heldout))
    cache = tokens * sizes.token + positions * sizes.position + held * sizes.heldout
    raw = positions * sizes.raw + held * sizes.raw_heldout
    rate = costs.seconds
    attributed = sum(len(s.input_ids) for s in inputs.train[: config.attribution.rows])
    rounds = config.train.rounds
    trained = rounds * config.train.num_train_epochs * tokens
    if config.train.max_steps > 0:
        rows = config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps
        trained = config.train.max_steps * rows * tokens / len(inputs.train)
    trainings = 1 + len(config.evaluation.baselines)
    return {
        "cache_bytes": cache,
        # The first round's cache stays, beside that of the round that trains.
        "disk_bytes": cache * min(2, rounds) + raw,
        "free_bytes": shutil.disk_usage(_existing(_cache_place(config))).free,
        "peak_bytes": costs.peak_bytes,
        **({} if costs.peak_gpu_bytes is None else {"peak_gpu_bytes": costs.peak_gpu_bytes}),
        "seconds": {
            "attribute": round(rate["load_teacher"] + attributed * rate["attribute"], 2)
            if rate["attribute"]
            else 0.0,
            "cache": round(
                rounds
                * (
                    rate["load_teacher"]
                    + rate["load_student"]
                    + tokens * rate["cache_student"]
                    + read * rate["cache_teacher"]
                    + 3 * rate["collect"]
                )
                + held_tokens * rate["cache_teacher"],
                2,
            ),
            "train": round(
                trained * rate["train"] + (trainings + rounds - 1) * (rate["load_student"] + rate["collect"]),
                2,
            ),
        },
    }


def _cache_place(config: TransferConfig) -> Path:
    """Where shards are written, first of all where the cache is remote."""
    folder = config.cache.folder
    return Path(config.output_dir if folder is None or is_remote(folder) else folder)


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
