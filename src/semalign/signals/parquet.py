"""What a teacher said about rows, in Parquet files: told from there instead of by the teacher, and written there from a cache.

A file has a row for each of the teacher's: `input_ids`, and for every token of it the likeliest tokens there with their
log-probabilities, in one of two forms.

- `target_token_ids` and `target_logprobs`: entry p tells of token p, as axolotl's prepared datasets and vLLM's prompt_logprobs have it.
- `bytepacked_indices` and `compressed_logprobs`, with compression_config.yaml beside the files: entry p tells of token p + 1, as DistillKit
  writes it; see `semalign.signals.distillkit`.

Legend: T tokens of a row, N supervised ones, K likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from semalign.data import Sample
from semalign.data.batches import labels_of
from semalign.data.rows import parquet_file
from semalign.errors import CacheError, DataError
from semalign.run.files import parquet_files, saving
from semalign.signals.distillkit import CONFIG, Packing, read_packing
from semalign.signals.passes import topk
from semalign.signals.prepared import Prepared
from semalign.signals.request import position_name
from semalign.signals.served import Told

PLAIN = ("target_token_ids", "target_logprobs")
PACKED = ("bytepacked_indices", "compressed_logprobs")
ROWS_AT_ONCE = 256
MISSING = -1
"""In the place of an id that is not there."""
Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


class StoredTeacher:
    """A teacher of which only its words are left."""

    def __init__(self, place: str, samples: Sequence[Sample], vocabulary: int, top_k: int) -> None:
        """Read what is told of some rows; it stays in memory, 12 K bytes a supervised token.

        Args:
            place: a Parquet file, or a folder of them.
            samples: the rows, as the teacher reads them.
            vocabulary: the leading ids that both models share; others are left to what is outside the likeliest.
            top_k: at most so many tokens a position are kept.

        Raises:
            DataError: the files cannot be read, tell nothing of a row, or tell what no distribution is.
        """
        self.place, self.vocabulary, self.top_k = place, vocabulary, top_k
        wanted = {_key(s.for_teacher.input_ids): s.for_teacher for s in samples}
        self._told: dict[bytes, Told] = {}
        for name, ids, told in _rows(place):
            # DistillKit puts a token after the last one, so that the last one is told of.
            for own in (ids, ids[:-1]):
                key = _key(own)
                if key in wanted and key not in self._told:
                    self._told[key] = self._of(name, wanted[key], told)
        missing = [s for s in samples if _key(s.for_teacher.input_ids) not in self._told]
        if missing:
            raise DataError(
                f"{place}: expected signals of {len(samples)} rows, found none of {len(missing)}, the first {missing[0].id}; they have to be of the "
                "very tokens: the same chat template, data.max_length and answers."
            )

    def tell(self, samples: Sequence[Sample]) -> list[Told]:
        """See `semalign.signals.telling.Telling`."""
        return [self._told[_key(sample.for_teacher.input_ids)] for sample in samples]

    def self_test(self, sample: Sample) -> float:
        """See `semalign.signals.telling.Telling`; every row was tested when it was read."""
        return 0.0

    def _of(self, name: str, sample: Sample, read: Callable[[], tuple[Ids, Floats, int]]) -> Told:
        """The entries of the supervised tokens of a row, the likeliest top_k of them; fewer are filled up with id 0 at -inf.

        The row's own token may be none of them: then it is as likely as it can be, no likelier than the least of them and no more than what
        they leave.
        """
        ids_TK, logp_TK, shift = read()
        places = [n for n, is_supervised in enumerate(sample.mask) if is_supervised]
        if places[-1] - shift >= len(ids_TK) or ids_TK.shape != logp_TK.shape:
            raise DataError(
                f"{name}: expected entries for {len(sample.input_ids)} tokens, as many ids as log-probabilities, got {ids_TK.shape} and "
                f"{logp_TK.shape}; write the file again."
            )
        at = np.array(places) - shift
        ids_NK, logp_NK = torch.from_numpy(ids_TK[at]), torch.from_numpy(logp_TK[at])
        _check(name, ids_NK, logp_NK, places)
        # Of all that is told: of a row's own token vLLM tells beside the K likeliest too.
        left_N = (1 - logp_NK.exp().sum(1)).clamp_min(torch.finfo(torch.float32).tiny).log()
        least_N = logp_NK.masked_fill(logp_NK == -torch.inf, 0.0).min(1).values
        is_own_NK = ids_NK == labels_of(sample)[:, None]
        own_N = logp_NK.masked_fill(~is_own_NK, -torch.inf).max(1).values
        label_N = torch.where(own_N > -torch.inf, own_N, torch.minimum(left_N, least_N))
        logp_NK = logp_NK.masked_fill(ids_NK >= self.vocabulary, -torch.inf)
        order = logp_NK.sort(dim=1, descending=True, stable=True)
        ids_NK, logp_NK = ids_NK.gather(1, order.indices)[:, : self.top_k], order.values[:, : self.top_k]
        # All rows get one width, and what is masked an id that every head has.
        lacking = (0, self.top_k - ids_NK.shape[1])
        ids_NK, logp_NK = pad(ids_NK, lacking), pad(logp_NK, lacking, value=-torch.inf)
        return Told(ids_NK.masked_fill(logp_NK == -torch.inf, 0), logp_NK, label_N)


def _key(ids: Sequence[int] | Ids) -> bytes:
    return np.asarray(ids, dtype=np.int64).tobytes()


def _check(name: str, ids_NK: torch.Tensor, logp_NK: torch.Tensor, places: Sequence[int]) -> None:
    """Refuse what is no distribution, or none at all, at the supervised tokens in these places of a row."""
    is_told = logp_NK > -torch.inf
    total = float(logp_NK.exp().sum(1).max())
    if logp_NK.isnan().any() or bool((logp_NK > 1e-4).any()) or total > 1.001:
        raise DataError(
            f"{name}: expected log-probabilities whose probabilities sum to at most 1, got a sum of {total:.4g}; write raw log-probabilities at "
            "temperature 1."
        )
    if not is_told.any(1).all():
        silent = places[int((~is_told.any(1)).nonzero()[0])]
        raise DataError(
            f"{name}: expected log-probabilities at every supervised token, got none at token {silent + 1} of the row; export with the same "
            "data.supervise, or drop the row."
        )
    if bool((is_told & (ids_NK < 0)).any()):
        raise DataError(
            f"{name}: expected a token's id beside each log-probability, got none; write the file again."
        )
    ordered = ids_NK.masked_fill(~is_told, -1).sort(1).values
    if bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()):
        raise DataError(f"{name}: expected every token once a position, got one twice; write the file again.")


def _rows(place: str) -> Iterator[tuple[str, Ids, Callable[[], tuple[Ids, Floats, int]]]]:
    """Of every row its name, its ids, and what reads its entries: ids (T, K), log-probabilities, and by how much they come before their token."""
    files = parquet_files(place)
    if not files:
        raise DataError(
            f"{place}: expected a Parquet file or a folder of them, found none; check teacher.signals."
        )
    packing: Packing | None = None
    for path in files:
        with parquet_file(path) as file:
            names = file.schema_arrow.names
            columns = next((c for c in (PLAIN, PACKED) if {"input_ids", *c} <= set(names)), None)
            if columns is None:
                raise DataError(
                    f"{path}: expected columns input_ids and {' and '.join(PLAIN)}, or {' and '.join(PACKED)}, got {', '.join(names)[:200]}; "
                    "write the file again."
                )
            if columns is PACKED and packing is None:
                packing = read_packing(path.with_name(CONFIG))
            number = 0
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=["input_ids", *columns]):
                for row in range(batch.num_rows):
                    number += 1
                    cells = [batch.column(c)[row] for c in ("input_ids", *columns)]
                    if not cells[0].is_valid:
                        continue
                    ids = np.asarray(cells[0].values.to_numpy(zero_copy_only=False), dtype=np.int64)
                    read = _reader(cells[1], cells[2], packing if columns is PACKED else None)
                    yield f"{path}: row {number}", ids, read


def _reader(ids: Any, logp: Any, packing: Packing | None) -> Callable[[], tuple[Ids, Floats, int]]:
    def read() -> tuple[Ids, Floats, int]:
        if packing is None:
            return _matrix(ids, MISSING, np.int64), _matrix(logp, -np.inf, np.float32), 0
        found = packing.unpack(_matrix(ids, 0, np.uint8), _matrix(logp, 0, np.uint8))
        # Of a position without bytes nothing is told.
        found[1][_lengths(logp) == 0] = -np.inf
        return found[0], found[1], 1

    return read


def _lengths(cell: Any) -> NDArray[Any]:
    """How long each of a list of lists is; one that is null counts as empty."""
    if not cell.is_valid:
        return np.zeros(0, dtype=np.int64)
    return np.asarray(cell.values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))


def _matrix(cell: Any, fill: float, dtype: Any) -> NDArray[Any]:
    """A list of lists as rows of one length; what is missing, or a whole list that is null, is filled."""
    lengths = _lengths(cell)
    found = np.full((len(lengths), max(1, lengths.max(initial=0))), fill, dtype=dtype)
    if cell.is_valid:
        # Cast first: unsigned ids have no place for MISSING.
        flat = cell.values.flatten().cast(np.dtype(dtype).name, safe=False).fill_null(fill)
        found[np.arange(found.shape[1]) < lengths[:, None]] = flat.to_numpy(zero_copy_only=False)
    return found


@dataclass(frozen=True)
class Written:
    """What was exported."""

    rows: int
    tokens: int
    """Supervised ones."""
    top_k: int


def export(prepared: Prepared, path: Path) -> Written:
    """Write the teacher's likeliest tokens at the supervised tokens of the rows, from a run's cache, to a Parquet file.

    Columns: split (train or heldout); id; input_ids (T); labels (T), -100 where a token is not supervised; target_token_ids and
    target_logprobs (T, K), at temperature 1 over the whole vocabulary, and -inf where a token is not supervised; target_mask (T, K), 1 where it is.

    Raises:
        CacheError: the cache holds no likeliest tokens, for no recipe of the run reads them.
    """
    import pyarrow
    from pyarrow import parquet

    inputs, k = prepared.inputs, prepared.stores.request.top_k
    if not k:
        raise CacheError(
            f"{prepared.run.root}: expected a cache with the teacher's likeliest tokens, but no recipe of the run reads them; take a run of "
            "recipe.name: aligned_output."
        )
    numbers, floats = pyarrow.list_(pyarrow.int32()), pyarrow.list_(pyarrow.float32())
    schema = pyarrow.schema(
        {
            "split": pyarrow.string(),
            "id": pyarrow.string(),
            "input_ids": numbers,
            "labels": numbers,
            "target_token_ids": pyarrow.list_(numbers),
            "target_logprobs": pyarrow.list_(floats),
            "target_mask": pyarrow.list_(pyarrow.list_(pyarrow.int8())),
        }
    )
    part = path.with_name(f".{path.name}.part")
    with saving(path, "free space or choose another path"):
        with parquet.ParquetWriter(part, schema) as writer:
            for split, samples in (("train", inputs.train), ("heldout", inputs.heldout)):
                for start in range(0, len(samples), ROWS_AT_ONCE):
                    numbered = range(start, min(start + ROWS_AT_ONCE, len(samples)))
                    rows = [
                        _exported(split, samples[n], *_likeliest(prepared, split, n, k)) for n in numbered
                    ]
                    writer.write_table(pyarrow.Table.from_pylist(rows, schema))
        part.replace(path)
    every = [*inputs.train, *inputs.heldout]
    return Written(len(every), sum(s.supervised for s in every), k)


@torch.no_grad()
def _likeliest(prepared: Prepared, split: str, number: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and log-probabilities (N, K) of the teacher's likeliest tokens, as the cache has them."""
    store = prepared.stores.teacher if split == "train" else prepared.stores.heldout
    if split == "heldout" and not prepared.config.teacher.only_tells:
        [states_ND] = store.read(number, [position_name("teacher_output")]).values()
        ids_NK, values_NK, lse_N1 = topk(prepared.teacher_head, states_ND, k)
        return ids_NK.int(), values_NK - lse_N1
    names = [position_name(n) for n in ("ids", "teacher_logp", "valid")]
    ids_NJ, logp_NJ, valid_NJ = store.read(number, names).values()
    best = logp_NJ.masked_fill(~valid_NJ, -torch.inf).topk(k)
    return ids_NJ.gather(1, best.indices).int(), best.values


def _exported(split: str, sample: Sample, ids_NK: torch.Tensor, logp_NK: torch.Tensor) -> dict[str, Any]:
    mask, k = torch.tensor(sample.mask), ids_NK.shape[1]
    ids_TK = torch.arange(k, dtype=torch.int32).repeat(len(mask), 1)
    logp_TK = torch.full((len(mask), k), -torch.inf)
    ids_TK[mask], logp_TK[mask] = ids_NK, logp_NK
    return {
        "split": split,
        "id": sample.id,
        "input_ids": sample.input_ids,
        "labels": [i if m else -100 for i, m in zip(sample.input_ids, sample.mask, strict=True)],
        "target_token_ids": ids_TK.tolist(),
        "target_logprobs": logp_TK.tolist(),
        "target_mask": mask.int()[:, None].expand(-1, k).tolist(),
    }
