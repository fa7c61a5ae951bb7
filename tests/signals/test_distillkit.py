"""DistillKit's packed signals, read from bytes that are put together here by the description of its format."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from semalign.errors import DataError
from semalign.signals.distillkit import Packing, read_packing, unpacked


def bits_of(numbers: list[int], bits: int) -> bytes:
    text = "".join(f"{n:0{bits}b}" for n in numbers)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


def array(*parts: bytes) -> Any:
    return np.frombuffer(b"".join(parts), dtype=np.uint8)[None]


def test_whole_numbers_of_a_few_bits_lie_one_after_the_other() -> None:
    for bits in (1, 3, 8, 17, 18):
        numbers = [0, 2**bits - 1, 1, 2 ** (bits - 1), 0][: 5 if bits > 1 else 2]
        assert unpacked(array(bits_of(numbers, bits)), bits, len(numbers)).tolist() == [numbers]
    with pytest.raises(DataError, match="expected 3 bytes a position, got 2"):
        unpacked(array(b"ab"), 8, 3)


def test_exact_values_are_kept_as_they_are() -> None:
    packing = Packing(d=1000, k=3, exact_k=3, delta_encoding=False)
    ids, logp = packing.unpack(array(bits_of([7, 999, 0], 10)), array(struct.pack("<3f", -0.5, -1.5, -3.0)))
    assert ids.tolist() == [[7, 999, 0]] and logp.tolist() == [[-0.5, -1.5, -3.0]]


def test_a_curve_its_residuals_and_differences_are_put_together() -> None:
    """k 5: one exact value, then 4 of a curve 1 - t / 2 with residuals in bins of 2 bits and of 1; all are differences."""
    packing = Packing(
        d=16,
        k=5,
        exact_k=1,
        exact_dtype="float16",
        polynomial_terms=(0, 1),
        residual_bins=(("float32", 2, 2), ("float16", 1, 1)),
    )
    told = array(
        struct.pack("<e", -0.25),
        struct.pack("<2f", -1.0, -0.5),
        struct.pack("<f", 0.125) + bits_of([0, 3], 2),
        struct.pack("<e", 0.5) + bits_of([1], 1),
    )
    ids, logp = packing.unpack(array(bits_of([1, 2, 3, 4, 5], 4)), told)
    steps = [-0.25, -1.0 - 2 * 0.125, -1.5 + 0.125, -2.0 + 0.5, -2.5]
    assert ids.tolist() == [[1, 2, 3, 4, 5]] and logp[0] == pytest.approx(np.cumsum(steps))
    with pytest.raises(DataError, match="expected 4 more bytes a position, got 0"):
        packing.unpack(array(bits_of([1, 2, 3, 4, 5], 4)), told[:, :10])


def test_terms_may_be_roots_and_exponentials_of_a_place_between_0_and_1() -> None:
    packing = Packing(
        d=2, k=3, exact_k=0, polynomial_terms=("sqrt", "exp"), delta_encoding=False, normalize_t=True
    )
    _, logp = packing.unpack(array(bits_of([0, 1, 0], 1)), array(struct.pack("<2f", -1.0, -2.0)))
    t = np.linspace(0, 1, 3)
    assert logp[0] == pytest.approx(-np.sqrt(t) - 2 * np.exp(t), rel=1e-6)


def test_the_description_beside_the_signals_is_read(tmp_path: Path) -> None:
    path = tmp_path / "compression_config.yaml"
    with pytest.raises(DataError, match="expected it beside the signals"):
        read_packing(path)
    bins = [{"scale_dtype": "float16", "element_bits": 4, "num_elements": 6}]
    path.write_text(
        yaml.safe_dump(
            {"d": 32, "k": 8, "exact_k": 2, "polynomial_terms": [0, "sqrt"], "residual_bins": bins}
        )
    )
    found = read_packing(path)
    assert (found.d, found.k, found.exact_k, found.exact_dtype) == (32, 8, 2, "float32")
    assert found.polynomial_terms == (0, "sqrt") and found.residual_bins == (("float16", 4, 6),)
    assert found.delta_encoding and not found.normalize_t
    path.write_text(yaml.safe_dump({"d": 32, "k": 8, "exact_k": 2, "exact_dtype": "load"}))
    with pytest.raises(DataError, match="KeyError: 'load'"):
        read_packing(path)
    path.write_text(yaml.safe_dump({"k": 8, "exact_k": 2, "polynomial_degree": 3}))
    with pytest.raises(DataError, match=r"compression config with d, k and exact_k \(KeyError: 'd'\)"):
        read_packing(path)
