"""What is known of a checkpoint before its weights are read, and what is refused by then."""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_model, tiny_model

from semalign.config import ModelConfig
from semalign.errors import ConfigError, ModelError
from semalign.models.finding import identity, load_shape, load_tokenizer
from semalign.models.loading import load, named
from semalign.models.variables import variables_of

from .test_decoder import write_gguf


@pytest.mark.parametrize("is_enabled", [True, False])
def test_garbage_is_collected_again_after_a_tokenizer(tmp_path: Path, is_enabled: bool) -> None:
    was_enabled = gc.isenabled()
    try:
        (gc.enable if is_enabled else gc.disable)()
        load_tokenizer(ModelConfig("embedded:student"))
        assert gc.isenabled() is is_enabled
        with pytest.raises(ModelError):
            load_tokenizer(ModelConfig(str(tmp_path / "nothing")))
        assert gc.isenabled() is is_enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()


def test_a_missing_folder_and_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a model folder"):
        load_shape(ModelConfig(str(tmp_path / "nothing")))
    with pytest.raises(ModelError, match=r"expected config\.json"):
        load_shape(ModelConfig(str(tmp_path)))
    with pytest.raises(ModelError, match="expected a GGUF file"):
        load_shape(ModelConfig(str(tmp_path / "x.gguf")))


def test_an_embedded_model_of_another_name_is_refused_with_the_names() -> None:
    with pytest.raises(ModelError, match="embedded:teacher, embedded:student, embedded:small; choose one"):
        load("embedded:medium")


def test_a_hub_id_without_network_names_the_prefetch_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="hf download somebody/some-model"):
        load_shape(ModelConfig("somebody/some-model"))


def test_a_hub_id_without_network_gets_its_sentence_from_every_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for read in (identity, named):
        with pytest.raises(
            ModelError, match=r"somebody/some-model: cannot be loaded .*hf download somebody/some-model"
        ):
            read(ModelConfig("somebody/some-model"))


def test_a_gguf_file_lies_among_files_that_are_no_weights_of_its_own(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    write_gguf(tmp_path / "student.gguf", tiny_pair[1])
    (tmp_path / "imatrix.bin").write_bytes(b"0")
    found = load_shape(ModelConfig(str(tmp_path / "student.gguf"), keep_dequantised=False))
    assert found.width == load_shape(ModelConfig(str(tiny_pair[1]))).width


def test_identity_follows_content_not_place(tmp_path: Path) -> None:
    first = save_model(tiny_model("llama", layers=2, wide=False), tmp_path / "a")
    second = save_model(tiny_model("llama", layers=2, wide=False), tmp_path / "b c")
    other = save_model(tiny_model("llama", layers=2, wide=False, seed=9), tmp_path / "d")
    ids = [identity(ModelConfig(str(p))) for p in (first, second, other)]
    assert ids[0] == ids[1] != ids[2]


def test_an_adapter_beside_a_model_is_refused_before_anything_is_read(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_pair[1], folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"also holds an adapter .* merge it with peft's merge_and_unload"):
        load_shape(ModelConfig(str(folder)))


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "compressed-tensors", "somebodys"])
def test_a_checkpoint_that_was_saved_quantised_is_refused_from_its_config_alone(
    tiny_pair: tuple[Path, Path], tmp_path: Path, method: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_pair[1], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": method}})
    )
    with pytest.raises(ModelError, match=f"a checkpoint that {method} has quantised"):
        load_shape(ModelConfig(str(folder)))


def test_a_checkpoint_is_known_by_every_byte_of_what_is_read_from_it(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_pair[1], folder)
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "additional_chat_templates").mkdir()
    others = ("merges.txt", "spiece.model", "modeling_own.py", "additional_chat_templates/tool.jinja")
    for name in others:
        (folder / name).write_text("of the tokenizer or the code")
    config = ModelConfig(str(folder))
    first = identity(config)
    for name in ("pytorch_model.bin", "model.safetensors", "config.json", "tokenizer.json", *others):
        content = (folder / name).read_bytes()
        for place in (len(content) // 3, len(content) - 1):
            changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
            (folder / name).write_bytes(changed)
            assert identity(config) != first, (name, place)
        (folder / name).write_bytes(content)
    for name in ("README.md", "training_args.bin", ".gitattributes", "SHA256SUMS"):
        (folder / name).write_text("nothing that a model is read from")
    moved = folder.rename(tmp_path / "elsewhere")
    assert identity(ModelConfig(str(moved))) == first


def test_a_template_s_variables_come_with_the_tokenizer_and_make_another_model(
    tiny_pair: tuple[Path, Path],
) -> None:
    plain = ModelConfig(str(tiny_pair[1]))
    given = replace(plain, chat_template_kwargs={"enable_thinking": False})
    assert variables_of(load_tokenizer(given)) == {"enable_thinking": False}
    assert variables_of(load(given).tokenizer) == {"enable_thinking": False}  # type: ignore[arg-type]
    assert variables_of(load_tokenizer(plain)) == {} and identity(given) != identity(plain)
    with pytest.raises(
        ConfigError, match=r"chat_template_kwargs: expected names of the template's own .*got 'tools'"
    ):
        replace(plain, chat_template_kwargs={"tools": []})
