"""The form in which DistillKit stores a teacher's likeliest tokens: ids in as few bits as the vocabulary needs, and a curve.

A position's log-probabilities, the highest first, are stored as their first value and the differences between neighbours (delta
encoding). Of these k numbers the first exact_k are kept as they are; the others as a least-squares curve over their place t, a sum of
powers, square root or exponential, plus residuals, which bins of few bits hold as whole multiples of a scale. Bytes follow one another as:
exact values, coefficients, then scale and packed residuals bin by bin. After the format of arcee-ai/DistillKit, compression/.

Legend: T positions of a row, K tokens, B bytes of a position.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from semalign.config.parsing import read_yaml
from semalign.errors import DataError

CONFIG = "compression_config.yaml"
FLOATS = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Packing:
    """compression_config.yaml; its names."""

    d: int
    """Tokens of the vocabulary."""
    k: int
    exact_k: int
    exact_dtype: str = "float32"
    polynomial_terms: tuple[int | str, ...] = ()
    term_dtype: str = "float32"
    residual_bins: tuple[tuple[str, int, int], ...] = ()
    """(scale_dtype, element_bits, num_elements)."""
    delta_encoding: bool = True
    normalize_t: bool = False

    def unpack(self, ids_TB: Bytes, logp_TB: Bytes) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids and log-probabilities (T, K)."""
        ids_TK = unpacked(ids_TB, max(1, (self.d - 1).bit_length()), self.k)
        exact, at = _numbers(logp_TB, 0, self.exact_dtype, self.exact_k)
        others = np.zeros((len(logp_TB), self.k - self.exact_k), dtype=np.float32)
        if self.polynomial_terms:
            coefficients, at = _numbers(logp_TB, at, self.term_dtype, len(self.polynomial_terms))
            others += coefficients @ self._curve(others.shape[1]).T
        place = 0
        for dtype, bits, count in self.residual_bins:
            scale, at = _numbers(logp_TB, at, dtype, 1)
            size = (bits * count + 7) // 8
            whole = unpacked(logp_TB[:, at : at + size], bits, count).astype(np.float32)
            # One bit is a sign; more are counted from the lowest.
            others[:, place : place + count] += scale * (
                2 * whole - 1 if bits == 1 else whole - 2 ** (bits - 1)
            )
            at, place = at + size, place + count
        values = np.concatenate([exact, others], axis=1)
        logp = np.cumsum(values, axis=1, dtype=np.float32) if self.delta_encoding else values
        # Rounding may lift the first ones above 0.
        return ids_TK, np.minimum(logp, 0.0).astype(np.float32)

    def _curve(self, count: int) -> NDArray[np.float32]:
        """Each term at each place (count, terms)."""
        t = np.linspace(0, 1, count) if self.normalize_t else np.arange(count, dtype=np.float64)
        named = {"sqrt": np.sqrt, "exp": np.exp}
        terms = [named[term](t) if isinstance(term, str) else t**term for term in self.polynomial_terms]
        return np.stack(terms, axis=1).astype(np.float32)


def read_packing(path: Path) -> Packing:
    """The packing that the file beside DistillKit's signals describes.

    Raises:
        DataError: there is none, or it is of another form (the legacy one has no `d`).
    """
    if not path.is_file():
        raise DataError(
            f"{path}: expected it beside the signals, as DistillKit writes it, found none; copy it there."
        )
    given: dict[str, Any] = dict(read_yaml(path))
    try:
        bins = [
            (b["scale_dtype"], b["element_bits"], b["num_elements"]) for b in given.get("residual_bins") or ()
        ]
        for name in (given.get("exact_dtype"), given.get("term_dtype"), *(dtype for dtype, _, _ in bins)):
            if name is not None:
                FLOATS[name]
        return Packing(
            d=int(given["d"]),
            k=int(given["k"]),
            exact_k=int(given["exact_k"]),
            exact_dtype=given.get("exact_dtype", "float32"),
            polynomial_terms=tuple(given.get("polynomial_terms") or ()),
            term_dtype=given.get("term_dtype", "float32"),
            residual_bins=tuple(bins),
            delta_encoding=given.get("delta_encoding", True),
            normalize_t=given.get("normalize_t", False),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: expected DistillKit's compression config with d, k and exact_k ({type(error).__name__}: {error}); write the signals "
            "again with a present version."
        ) from error


def unpacked(packed_TB: Bytes, bits: int, count: int) -> NDArray[np.int64]:
    """(T, count) whole numbers of so many bits, the highest bit first, one after the other."""
    if packed_TB.shape[1] * 8 < bits * count:
        raise DataError(
            f"DistillKit's signals: expected {(bits * count + 7) // 8} bytes a position, got {packed_TB.shape[1]}; "
            f"{CONFIG} is of other signals."
        )
    flat = np.unpackbits(packed_TB, axis=1)[:, : bits * count].reshape(len(packed_TB), count, bits)
    return flat.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))


def _numbers(packed_TB: Bytes, at: int, dtype: str, count: int) -> tuple[NDArray[np.float32], int]:
    """(T, count) floats from a place on, and the place after them; bfloat16 is torch's alone."""
    kind = FLOATS[dtype]
    size = count * kind.itemsize
    part = packed_TB[:, at : at + size].copy()
    if part.shape[1] != size:
        raise DataError(
            f"DistillKit's signals: expected {size} more bytes a position, got {part.shape[1]}; {CONFIG} is of other signals."
        )
    if not count:
        return np.zeros((len(packed_TB), 0), dtype=np.float32), at
    return torch.from_numpy(part).view(kind).float().numpy(), at + size
