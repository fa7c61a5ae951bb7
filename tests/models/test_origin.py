"""Names and licences of models, from their own cards, licence files and GGUF heads, without a network."""

from __future__ import annotations

import struct
from pathlib import Path

import huggingface_hub
import pytest
from gguf import GGUFWriter
from huggingface_hub.errors import EntryNotFoundError
from tiny import save_model, tiny_model

from semalign import embedded
from semalign.config import ModelConfig
from semalign.errors import ConfigError, ModelError
from semalign.models.origin import check_hub_id, origin


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that is taken for a model's."""
    path = tmp_path / "secret place" / "small-model"
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


@pytest.mark.parametrize(
    ("card", "license", "named"),
    [
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0", None),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "other", "qwen-research"),
        ("no metadata", None, None),
        ("---\n[broken\n---\n", None, None),
        ("---\n- a list\n---\n", None, None),
    ],
)
def test_licences_are_read_from_a_model_s_own_card(
    tmp_path: Path, card: str, license: str | None, named: str | None
) -> None:
    folder = save_model(tiny_model("llama", layers=1, wide=False), tmp_path / "model")
    (folder / "README.md").write_text(card)
    found = origin(ModelConfig(str(folder)))
    assert found == {
        "name": "model",
        "hub_id": None,
        "license": license,
        "license_name": named,
        "license_text": None,
    }


@pytest.mark.parametrize("license", ["apache-2.0", None])
def test_licences_are_read_from_the_head_of_a_gguf_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, license: str | None
) -> None:
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_file_type(15)
    writer.add_tags(["tiny", "größe"])
    if license:
        writer.add_license(license)
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = origin(ModelConfig(str(tmp_path / "model.gguf")))
    assert found["name"] == "model.gguf" and found["license"] == license
    monkeypatch.setenv("HOME", str(tmp_path))
    assert origin(ModelConfig("~/model.gguf")) == found


def test_a_hub_model_without_network_has_no_licence_but_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = origin(ModelConfig("org/some-model-that-is-nowhere"))
    assert found["hub_id"] == found["name"] == "org/some-model-that-is-nowhere"
    assert found["license"] is None


def test_hub_names() -> None:
    assert check_hub_id("org/name") == "org/name"
    with pytest.raises(ConfigError, match="ORG/NAME"):
        check_hub_id("../name")


def test_a_folder_is_known_by_its_last_name_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for given in (str(folder), f"{folder}/", "./small-model", "small-model"):
        found = origin(ModelConfig(given))
        assert found["name"] == "small-model" and found["hub_id"] is None
        assert "secret" not in str(found)


@pytest.mark.parametrize("file", ["LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING"])
def test_a_licence_file_of_any_usual_name_is_read(folder: Path, file: str) -> None:
    assert origin(ModelConfig(str(folder)))["license_text"] is None
    (folder / file).write_bytes("Größe \xff".encode("latin-1"))
    assert origin(ModelConfig(str(folder)))["license_text"] == "Gr\ufffd\ufffde \ufffd", (
        "in whatever encoding"
    )
    (folder / file).write_text("As it stands.\n", encoding="utf-8")
    assert origin(ModelConfig(str(folder)))["license_text"] == "As it stands.\n"


def test_of_several_licence_files_the_first_that_says_something_counts(folder: Path) -> None:
    (folder / "COPYING").write_text("second")
    (folder / "LICENSE.md").write_text("first")
    (folder / "LICENSE").write_text("")
    assert origin(ModelConfig(str(folder)))["license_text"] == "first"


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("\n  ---\r\nlicense: mit\r\n---\r\ntext", "mit"),
        ("---\ntags: [x]\n---\nlicense: mit\n", None),
        ("---\nlicense:\n---\n", None),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "['mit', 'apache-2.0']"),
        ("---\nlicense: 1.0\n---\n", "1.0"),
        ("text\n---\nlicense: mit\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_only_the_metadata_at_the_top_of_a_card_counts(folder: Path, card: str, license: str | None) -> None:
    (folder / "README.md").write_bytes(card.encode())
    assert origin(ModelConfig(str(folder)))["license"] == license


def test_an_embedded_model_is_named_as_in_the_config() -> None:
    for model in embedded.MODELS:
        found = origin(ModelConfig(f"embedded:{model}"))
        assert (found["name"], found["hub_id"], found["license"]) == (f"embedded:{model}", None, "apache-2.0")
    with pytest.raises(ModelError, match="embedded:medium: expected one of"):
        origin(ModelConfig("embedded:medium"))


def test_card_and_licence_of_a_hub_model_are_asked_for_at_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(name: str, file: str, *, revision: str | None) -> str:
        asked.append((name, file, revision))
        if file == "LICENSE":
            raise EntryNotFoundError("no such file")
        (tmp_path / file).write_text("---\nlicense: other\nlicense_name: own\n---\n")
        return str(tmp_path / file)

    monkeypatch.setattr("semalign.models.origin.hf_hub_download", download)
    found = origin(ModelConfig("org/model", model_revision="v2"))
    assert asked == [("org/model", "README.md", "v2"), ("org/model", "LICENSE", "v2")]
    assert found == {
        "name": "org/model",
        "hub_id": "org/model",
        "license": "other",
        "license_name": "own",
        "license_text": None,
    }


def gguf(path: Path, *entries: bytes, magic: bytes = b"GGUF", count: int | None = None) -> ModelConfig:
    """A GGUF file of entries alone, written from the format's description."""
    head = struct.pack("<4sIQQ", magic, 3, 0, len(entries) if count is None else count)
    path.write_bytes(head + b"".join(entries))
    return ModelConfig(str(path))


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


LICENSE = text("general.license") + struct.pack("<I", 8) + text("mit")


@pytest.mark.parametrize(
    "entry",
    [
        struct.pack("<IB", 0, 1),
        struct.pack("<Ib", 1, -1),
        struct.pack("<IH", 2, 1),
        struct.pack("<Ih", 3, -1),
        struct.pack("<II", 4, 1),
        struct.pack("<Ii", 5, -1),
        struct.pack("<If", 6, 0.5),
        struct.pack("<I?", 7, True),
        struct.pack("<IQ", 10, 1),
        struct.pack("<Iq", 11, -1),
        struct.pack("<Id", 12, 0.5),
        struct.pack("<I", 8) + text("größer"),
        struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc"),
        struct.pack("<IIQ3H", 9, 2, 3, 1, 2, 3),
        struct.pack("<IIQIQ2B", 9, 9, 1, 0, 2, 1, 2),
    ],
)
def test_the_licence_of_a_gguf_file_is_found_behind_a_value_of_any_type(tmp_path: Path, entry: bytes) -> None:
    found = origin(gguf(tmp_path / "tiny.gguf", text("general.something") + entry, LICENSE))
    assert (found["name"], found["hub_id"], found["license"]) == ("tiny.gguf", None, "mit")


def test_of_a_gguf_file_only_the_general_entries_are_read(tmp_path: Path) -> None:
    later = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2**40)
    assert origin(gguf(tmp_path / "a.gguf", later, LICENSE))["license"] is None
    assert origin(gguf(tmp_path / "b.gguf", LICENSE, later))["license"] == "mit"
    assert origin(gguf(tmp_path / "c.gguf", LICENSE, magic=b"ABCD"))["license"] is None
    assert origin(gguf(tmp_path / "d.gguf"))["license"] is None


def test_a_card_beside_a_gguf_file_comes_before_its_head_if_it_names_a_licence(folder: Path) -> None:
    config = gguf(folder / "tiny.gguf", LICENSE)
    for card, license in (
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ("---\ntags: [x]\n---\n", "mit"),
    ):
        (folder / "README.md").write_text(card)
        assert origin(config)["license"] == license


@pytest.mark.parametrize("name", ["org/name", "name", "Org-1/Na.me_2"])
def test_a_name_that_the_hub_takes_comes_back(name: str) -> None:
    assert check_hub_id(name) == name


@pytest.mark.parametrize("name", ["", "a/b/c", "org/", "org/na me", "org/.name", "org/na--me", "x" * 97])
def test_a_name_that_the_hub_would_not_take_is_refused_with_its_field(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^--to: expected a name such as ORG/NAME, got '"):
        check_hub_id(name, "--to")
