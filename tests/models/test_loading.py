"""A teacher that is offloaded or in fewer bits leaves the same signals as one in memory; a checkpoint that is not whole is refused."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import load_file
from tiny import ARCHITECTURES, COMMON, config_of, save_model, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from semalign.config import ModelConfig
from semalign.data import Sample
from semalign.data.batches import candidates_of
from semalign.errors import ModelError, SemAlignError
from semalign.maths.pairing import LayerPair
from semalign.models.decoder import Decoder
from semalign.models.loading import in_memory, load
from semalign.signals.passes import student_signals, teacher_signals
from semalign.signals.request import Request
from semalign.steps.attribute import attribute_layers
from semalign.steps.pipeline import transfer

REQUEST = Request(
    pairs=(LayerPair(3, 2, 0.5), LayerPair(4, 3)),
    interfaces=("block", "delta", "attn", "mlp", "output"),
    top_k=4,
    teacher_output=True,
    dtype=torch.float32,
)
JOINED = {kind for kind in ARCHITECTURES if "moe" in kind} | {
    "mixtral",
    "qwen3_next",
    "deepseek_v3",
    "minimax_m2",
}
"""Their files hold one expert at a time, and the model all of a layer in one tensor."""
SAMPLES = [Sample(list(range(7 + n, 17 + 2 * n)), [i > 4 for i in range(10 + n)], str(n)) for n in range(3)]


def signals(teacher: Decoder, student: Decoder) -> list[dict[str, torch.Tensor]]:
    parts = ("attn", "mlp") if student.layout.attn else ()
    request = replace(REQUEST, interfaces=("block", "delta", *parts, "output"))
    own = student_signals(student, SAMPLES, request)
    return teacher_signals(teacher, SAMPLES, request, own, student.head(), candidates_of(SAMPLES))


def assert_equal(ours: list[dict[str, torch.Tensor]], expected: list[dict[str, torch.Tensor]]) -> None:
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(mine[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_layers_on_disk_give_the_same_signals_and_scores(kind: str, tmp_path: Path) -> None:
    folder = save_model(tiny_model(kind, layers=5, wide=True, seed=1), tmp_path / "teacher")
    if kind in JOINED:
        with pytest.raises(
            ModelError, match=r"teacher\.offload: expected null or cpu for a model whose experts"
        ):
            load(ModelConfig(str(folder), offload="disk"))
        return
    student = load(ModelConfig(str(save_model(tiny_model(kind, layers=3, wide=False), tmp_path / "student"))))
    whole, offloaded = (load(ModelConfig(str(folder), offload=place)) for place in (None, "disk"))
    weights = [p for layer in offloaded.layers for p in layer.parameters()]
    assert all(p.is_meta for p in weights), "no layer stays in memory"
    assert_equal(signals(offloaded, student), signals(whole, student))
    assert all(p.is_meta for p in weights)
    scores = attribute_layers(whole, SAMPLES)
    assert attribute_layers(offloaded, SAMPLES, activation_checkpointing=True) == pytest.approx(
        scores, rel=1e-4
    )


def test_layers_moved_in_for_each_pass_give_the_same_signals(tiny_pair: tuple[Path, Path]) -> None:
    """What accelerate does on a machine with an accelerator: weights wait in memory, a hook brings them in and out."""
    whole, hooked = (load(ModelConfig(str(tiny_pair[0]))) for _ in range(2))
    student = load(ModelConfig(str(tiny_pair[1])))
    for layer in hooked.layers:
        cpu_offload(layer, execution_device=torch.device("cpu"))
    assert all(p.is_meta for layer in hooked.layers for p in layer.parameters())
    assert_equal(signals(hooked, student), signals(whole, student))
    scores = attribute_layers(whole, SAMPLES)
    assert attribute_layers(hooked, SAMPLES, activation_checkpointing=True) == pytest.approx(scores, rel=1e-4)


def test_a_run_with_a_teacher_on_disk_ends_with_the_same_student(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_pair, rows_file, tmp_path / "whole")
    other = replace(
        config, output_dir=str(tmp_path / "disk"), teacher=replace(config.teacher, offload="disk")
    )
    expected, ours = (
        load_file(transfer(c, ("attribute", "pair", "cache", "train")).root / "student" / "model.safetensors")
        for c in (config, other)
    )
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)


has_bitsandbytes = importlib.util.find_spec("bitsandbytes") is not None


@pytest.mark.skipif(has_bitsandbytes, reason="bitsandbytes is installed")
def test_a_missing_package_is_named(tiny_pair: tuple[Path, Path]) -> None:
    with pytest.raises(SemAlignError, match=r"pip install .semalign\[bitsandbytes\]"):
        load(ModelConfig(str(tiny_pair[0]), load_in_8bit=True))


@pytest.mark.skipif(not has_bitsandbytes, reason="needs bitsandbytes: pip install bitsandbytes")
@pytest.mark.parametrize(("bits", "least"), [(8, 0.995), (4, 0.95)])
def test_a_quantised_teacher_leaves_nearly_the_same_signals_and_scores(
    tiny_pair: tuple[Path, Path], tmp_path: Path, bits: int, least: float
) -> None:
    # Its kernels for the CPU want widths that are multiples of 32.
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape = AutoConfig.for_model("llama", num_hidden_layers=5, **COMMON, **sizes)
    torch.manual_seed(0)
    folder = save_model(AutoModelForCausalLM.from_config(shape, dtype=torch.float32).eval(), tmp_path)
    student = load(ModelConfig(str(tiny_pair[1])))
    whole, quantised = (
        load(ModelConfig(str(folder), **options)) for options in ({}, {f"load_in_{bits}bit": True})
    )
    assert_near(signals(quantised, student), signals(whole, student), least)
    scores, ours = (torch.tensor(attribute_layers(model, SAMPLES)) for model in (whole, quantised))
    assert torch.cosine_similarity(ours, scores, dim=0) > least


def assert_near(
    ours: list[dict[str, torch.Tensor]], expected: list[dict[str, torch.Tensor]], least: float
) -> None:
    for mine, theirs in zip(ours, expected, strict=True):
        for key in (k for k in theirs if k.startswith("positions.teacher")):
            if key == "positions.teacher_logp":
                continue
            cosine = torch.cosine_similarity(mine[key].float(), theirs[key].float(), dim=1)
            assert least < cosine.mean() < 1 + 1e-6, key
            assert not torch.equal(mine[key], theirs[key]), "the weights are not quantised"


@pytest.mark.parametrize("damage", ["cut", "pointer", "text"])
def test_a_damaged_file_is_one_sentence_that_names_the_model(
    tiny_pair: tuple[Path, Path], tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_pair[1], folder)
    weights = folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:2000])
    elif damage == "pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    else:
        (folder / "config.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(
        ModelError, match=rf"{folder}: cannot be loaded .*copy or download the model again"
    ) as caught:
        load(ModelConfig(str(folder)))
    assert "hf download" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_tilde_in_a_folder_s_name_is_the_home_folder(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_pair[1], tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(ModelConfig("~/model")).num_layers == 3


def test_a_model_in_memory_is_known_by_every_element(tiny_pair: tuple[Path, Path]) -> None:
    decoder = load(ModelConfig(str(tiny_pair[1])))
    first = in_memory(decoder).identity
    assert in_memory(decoder).identity == first
    for tensor in (decoder.model.get_input_embeddings().weight, decoder.layers[1].mlp.up_proj.weight):
        for place in (1, tensor.numel() // 2 + 1, tensor.numel() - 2):
            flat = tensor.data.view(-1)
            kept = flat[place].clone()
            flat[place] = torch.nextafter(kept, torch.tensor(9.0))
            assert in_memory(decoder).identity != first
            flat[place] = kept
    assert in_memory(decoder).identity == first
    decoder.model.to(torch.bfloat16)
    assert in_memory(decoder).identity != first


def test_a_package_that_a_kernel_needs_is_no_damage(tiny_pair: tuple[Path, Path]) -> None:
    if find_spec("flash_attn") is not None:
        pytest.skip("the package is installed here")
    config = ModelConfig(str(tiny_pair[1]), attn_implementation="flash_attention_2")
    with pytest.raises(
        ModelError, match="install what is missing, or choose another attn_implementation"
    ) as said:
        load(config)
    assert "damaged" not in str(said.value)
