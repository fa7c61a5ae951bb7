"""What cells share is made once and read once."""

from __future__ import annotations

from pathlib import Path

import torch

from semalign.comparison.plan import CompareConfig, random_teacher, read_comparison
from semalign.comparison.sources import inputs_of, make_random_teacher
from semalign.config import ModelConfig
from semalign.models.loading import load


def test_rows_of_a_source_are_read_once_and_held_out_ones_only_where_they_measure(straight: Path) -> None:
    sources = read_comparison(straight).sources
    measuring, other = sources["knowledge", "aligned", 0], sources["knowledge", "cross_entropy", 0]
    assert inputs_of(measuring) is inputs_of(measuring)
    assert len(inputs_of(measuring).heldout) == 4 and inputs_of(other).heldout == []
    assert inputs_of(other).fingerprint["heldout"] is None
    assert inputs_of(measuring).fingerprint["heldout"] is not None


def test_a_random_teacher_has_the_sizes_and_fresh_weights_that_are_always_the_same(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    original = ModelConfig(str(tiny_pair[0]))
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "model.safetensors").write_text("half")  # nothing vouches for it: it is made again
    for target in (first, second):
        make_random_teacher(original, target)
    real, one, two = (load(ModelConfig(str(p))) for p in (tiny_pair[0], first, second))
    weights = [dict(m.model.named_parameters()) for m in (real, one, two)]
    for name, weight in weights[0].items():
        assert weights[1][name].shape == weight.shape and torch.equal(weights[1][name], weights[2][name])
    assert not any(torch.allclose(weights[1][name], w) for name, w in weights[0].items() if w.dim() > 1)
    assert one.tokenizer is not None and real.tokenizer is not None
    assert one.tokenizer.get_vocab() == real.tokenizer.get_vocab()
    assert one.tokenizer.chat_template == real.tokenizer.chat_template
    written = (first / "model.safetensors").stat().st_mtime_ns
    make_random_teacher(original, first)
    assert (first / "model.safetensors").stat().st_mtime_ns == written


def test_a_random_teacher_takes_over_the_code_that_its_original_comes_with(
    own_code: Path, tmp_path: Path
) -> None:
    original = ModelConfig(str(own_code), trust_remote_code=True)
    given = {
        "base": {"seed": 0},
        "methods": {"aligned": {}},
        "tasks": {"knowledge": {}},
        "default": "aligned",
    }
    options = CompareConfig(str(tmp_path / "compared"), **given)
    made = random_teacher(options, original)
    make_random_teacher(original, Path(made.model_name_or_path))
    assert type(load(made).model).__name__ == "OwnForCausalLM"
