"""A checkpoint that does not fill its model is refused, and a teacher that is smaller than its student."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from semalign.config import ModelConfig
from semalign.errors import ModelError
from semalign.models.finding import load_shape
from semalign.models.loading import load
from semalign.models.soundness import check_pair


def changed(
    folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> Path:
    """A copy of a model whose checkpoint was changed."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    save_file(change(tensors), target / "model.safetensors", {"format": "pt"})
    return target


def without(tensors: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: without(t, "layers.1.mlp.up_proj"),
            r"1 are missing from the checkpoint: model\.layers\.1\.mlp\.up_proj\.weight",
        ),
        (
            lambda t: without(t, "layers.2."),
            r"9 are missing from the checkpoint: model\.layers\.2\.input_layernorm\.weight.* and 6 more",
        ),
        (
            lambda t: {f"_orig_mod.{name}": tensor for name, tensor in t.items()},
            "are missing from the checkpoint",
        ),
        (
            lambda t: t | {"model.layers.3.mlp.up_proj.weight": torch.ones(2, 2)},
            "1 have no place in the model",
        ),
        (
            lambda t: t | {"model.norm.weight": torch.ones(7)},
            r"got \(7,\) instead of \(32,\) for model\.norm\.weight",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fill_its_model_is_refused(
    tiny_pair: tuple[Path, Path], tmp_path: Path, change: Any, said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        load(ModelConfig(str(changed(tiny_pair[1], tmp_path / "model", change))))


def test_tied_weights_that_a_checkpoint_leaves_out_are_not_missing(tiny_pair: tuple[Path, Path]) -> None:
    assert "lm_head.weight" not in load_file(tiny_pair[1] / "model.safetensors")
    assert load(ModelConfig(str(tiny_pair[1]))).num_layers == 3


def test_a_teacher_that_only_tells_may_have_fewer_layers_than_its_student(
    tiny_pair: tuple[Path, Path],
) -> None:
    teacher, student = (load_shape(ModelConfig(str(folder))) for folder in tiny_pair)
    shallow = replace(teacher, layers=student.layers - 1, width=student.width * 2)
    with pytest.raises(ModelError, match="2 teacher layers and 3 student layers"):
        check_pair(shallow, student, allow_smaller_teacher=False)
    check_pair(replace(shallow, has_layers=False), student, allow_smaller_teacher=False)
    with pytest.raises(
        ModelError, match=r"got 2048 teacher layers x channels\^2 and 3072 student layers x channels\^2"
    ):
        check_pair(
            replace(shallow, has_layers=False, width=student.width), student, allow_smaller_teacher=False
        )


def test_a_smaller_teacher_is_refused_unless_allowed(tiny_pair: tuple[Path, Path]) -> None:
    teacher, student = (load_shape(ModelConfig(str(p))) for p in tiny_pair)
    with pytest.raises(ModelError, match="3 teacher layers and 5 student layers"):
        check_pair(student, teacher, allow_smaller_teacher=False)
    check_pair(student, teacher, allow_smaller_teacher=True)
