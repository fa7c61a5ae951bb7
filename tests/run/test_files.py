"""Files are written whole or not at all, and what cannot be read is named with the step that writes it."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model, tiny_tokenizer

from semalign.errors import CacheError
from semalign.run.files import (
    append,
    find_json,
    hash_of,
    json_line,
    keep_once,
    read_json,
    read_lines,
    read_sealed,
    read_tensors,
    replacing,
    replacing_folder,
    saving,
    sweep,
    write_atomic,
    write_json,
    write_tensors,
    write_yaml,
)
from semalign.run.folder import is_done

values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})

    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(CacheError, match="No space left on device"):
        write_atomic(path, "new")
    assert read_json(path, "pair") == {"old": 1} and list(tmp_path.iterdir()) == [path]


def test_a_file_is_made_with_its_folders_and_can_be_read_by_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deeper" / "x.txt"
    for data in ("Größe 模型", "Größe 模型".encode()):
        write_atomic(path, data)
        assert path.read_text(encoding="utf-8") == "Größe 模型"
    assert path.stat().st_mode & 0o777 == 0o644 and list(path.parent.iterdir()) == [path]


def test_a_reader_who_holds_the_old_file_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_atomic(path, "old")
    with path.open() as reader:
        write_atomic(path, "new and longer")
        assert reader.read() == "old" and path.read_text() == "new and longer"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_a_stop_while_writing_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "x.txt"
    write_atomic(path, "old")

    def stopped(handle: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", stopped)
    with pytest.raises(type(error)):
        write_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", [write_json, write_yaml, lambda path, value: write_tensors(path, {})])
def test_a_place_that_cannot_be_written_is_named_with_what_to_do(tmp_path: Path, write: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CacheError, match=r"file/x: cannot be written \(.+\); free space or choose another output_dir\."
    ):
        write(tmp_path / "file" / "x", {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(CacheError, match=r"folder: cannot be written"):
        write(tmp_path / "folder", {})
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


@settings(max_examples=30)
@given(values)
def test_json_comes_back_as_it_was_in_a_file_and_in_a_line(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, {"it": value})
    assert read_json(path, "pair")["it"] == json.loads(json_line(value)) == value
    assert path.read_bytes().endswith(b"\n")
    assert json_line(value).endswith("\n") and json_line(value).count("\n") == 1


def test_a_result_that_is_not_there_or_not_json_is_named_with_its_step(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    with pytest.raises(CacheError, match=r"scores\.json: not there yet; run `semalign attribute` first\."):
        read_json(path, "attribute")
    for content in ("", "{", "{'a': 1}"):
        path.write_text(content)
        said = r"scores\.json: not valid JSON of its kind \(.+\); run `semalign attribute` again\."
        with pytest.raises(CacheError, match=said):
            read_json(path, "attribute")
        said = r"not valid JSON of its kind \(.+\); mend it, or delete it and run `semalign pair` again\."
        with pytest.raises(CacheError, match=said):
            read_json(path, "pair", may_be_edited=True)


def test_a_change_of_a_file_is_refused_or_said_where_it_may_be_edited(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "pairs.json"
    write_json(path, {"teacher": 3})
    path.write_text(path.read_text().replace("3", "4"))
    with pytest.raises(CacheError, match=r"pairs\.json: damaged, edited, or .* run `semalign pair` again\."):
        read_json(path, "pair")
    for _ in range(2):
        assert read_json(path, "pair", may_be_edited=True) == {"teacher": 4}
    assert [r.message for r in caplog.records] == [
        f"{path}: was edited since it was written; what it says now is followed"
    ]
    path.write_text('{"of": "another library"}')
    assert find_json(path, is_sealed=False) == {"of": "another library"}


def test_what_is_kept_once_is_written_again_only_where_it_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    for number, content in enumerate((None, b"", b"{", b'{"n": 0}\n')):
        if content is not None:
            path.write_bytes(content)
        for made in (number, "later"):
            keep_once(path, lambda made=made: {"n": made})  # type: ignore[misc]
            assert read_json(path, "transfer") == {"n": number}


def test_a_sealed_text_is_read_without_its_seal_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_yaml(path, {"seed": 1})
    assert read_sealed(path, "transfer") == "seed: 1\n"
    path.write_text(path.read_text().replace("1", "2", 1))
    with pytest.raises(CacheError, match=r"config\.yaml: damaged, edited.* run `semalign transfer` again"):
        read_sealed(path, "transfer")


def test_an_object_that_may_be_missing_is_found_or_empty(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert find_json(path) == find_json(tmp_path) == {}
    write_json(path, {"a": 1})
    assert find_json(path) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not valid JSON of its kind (Expecting value, line 1, column"),
        (b'{"a": ', "not valid JSON of its kind (Expecting value, line 1, column"),
        (b'{"a": "\xff"}', "not valid JSON of its kind (not UTF-8 (byte 0xff in line 1)"),
        (b"[1]", "not valid JSON of its kind (expected names with values, got [1]);"),
        (b"null", "not valid JSON of its kind (expected names with values, got None);"),
    ],
)
def test_a_file_that_holds_no_object_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(CacheError) as caught:
        find_json(path, step="cache")
    assert f"x.json: {said}" in str(caught.value)
    assert str(caught.value).endswith("run `semalign cache` again.")


@settings(max_examples=30)
@given(st.lists(values, max_size=5))
def test_lines_come_back_one_value_each(tmp_path_factory: pytest.TempPathFactory, lines: list[Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    path.write_text("".join(map(json_line, lines)), encoding="utf-8")
    assert read_lines(path, "train") == lines


def test_blank_lines_and_a_last_line_that_was_cut_off_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    assert read_lines(path, "train") == []
    path.write_bytes('{"loss": 1}\n\n{"text": "a\u2028b\x85"}\n{"loss": "gr\xf6'.encode()[:-1])
    assert read_lines(path, "train") == [{"loss": 1}, {"text": "a\u2028b\x85"}]


def test_a_bad_line_among_others_is_named_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"loss": 1}\n{"loss": \n{"loss": 3}\n')
    said = r"train\.jsonl:2: expected one JSON value of its kind, but Expecting value.*; run `semalign train` again\."
    with pytest.raises(CacheError, match=said):
        read_lines(path, "train")


def test_yaml_keeps_the_order_and_the_letters(tmp_path: Path) -> None:
    path, given = tmp_path / "x.yaml", {"z": [1, None], "a": {"ü": "模"}, "m": 0.5}
    write_yaml(path, given)
    content = path.read_text(encoding="utf-8")
    assert list(yaml.safe_load(content).items()) == list(given.items()) and "ü: 模" in content


def test_tensors_come_back_with_type_shape_and_every_bit(tmp_path: Path) -> None:
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    given = {
        "plain": base,
        "turned": base.T,
        "every other": base[:, ::2],
        "half": base.bfloat16(),
        "whole": torch.arange(5, dtype=torch.int32),
        "flags": base > 0,
        "none": torch.zeros(0, 3),
        "trained": base.clone().requires_grad_(),
        "odd": torch.tensor([math.inf, -0.0]),
    }
    write_tensors(tmp_path / "x.safetensors", given)
    found = read_tensors(tmp_path / "x.safetensors")
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
        assert not found[name].requires_grad


def test_tensors_that_are_missing_or_damaged_are_named_with_the_step(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    said = r"x\.safetensors: cannot be read \(.+\); run `semalign cache` again\."
    with pytest.raises(CacheError, match=said):
        read_tensors(path)
    write_tensors(path, {"a": torch.ones(9)})
    whole = path.read_bytes()
    for damaged in (b"", whole[:5], whole[:-1], b"\xff" * 40):
        path.write_bytes(damaged)
        with pytest.raises(CacheError, match=said):
            read_tensors(path)


def test_a_hash_follows_the_value_and_not_the_order_of_its_keys() -> None:
    assert hash_of({"a": 1, "b": {"c": 2, "d": 3}}) == hash_of({"b": {"d": 3, "c": 2}, "a": 1})
    different = [1, "1", [1], [2, 1], [1, 2], {"a": 1}, {"a": None}, None, {}, []]
    assert len({hash_of(value) for value in different}) == len(different)
    assert all(len(hash_of(value)) == 16 for value in different)


def test_a_file_that_is_no_utf_8_is_named_and_counts_as_not_done(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(CacheError, match=r"scores\.json: not valid JSON .* run `semalign attribute` again"):
        read_json(path, "attribute")
    assert not is_done(path, {"a": 1})


def test_a_folder_takes_the_place_of_another_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "new" / "student"
    for content in ("first", "second"):
        with replacing_folder(place) as folder:
            assert folder.parent == place.parent
            (folder / content).write_text(content)
    with pytest.raises(KeyError), replacing_folder(place) as folder:
        (folder / "third").write_text("")
        raise KeyError
    assert [p.name for p in place.parent.iterdir()] == ["student"]
    assert [p.name for p in place.iterdir()] == ["second"] and place.stat().st_mode & 0o777 == 0o755
    (tmp_path / "file").write_text("")
    said = r"student: cannot be written \(.+\); free space or choose another output_dir\."
    with pytest.raises(CacheError, match=said), replacing_folder(tmp_path / "file" / "student"):
        pytest.fail("there is no such folder")


def test_what_was_left_half_written_is_swept_and_nothing_else(tmp_path: Path) -> None:
    root, outside = tmp_path / "run", tmp_path / "outside"
    left = []
    for folder in (root, root / "targets" / "student", root / "checkpoint-4"):
        with replacing(folder / "x") as file, replacing_folder(folder / "y") as whole:
            (whole / "model.safetensors").write_text("x")
            left += [shutil.copy(file, folder / f"{file.name[:-4]}0000")]
            left += [shutil.copytree(whole, folder / f"{whole.name[:-4]}0000")]
        left.append(folder / ".tmpAb3dEf")  # as safetensors names what it writes
        left[-1].write_text("")
    (root / ".semalign-dangling").symlink_to(outside / "nothing")
    left.append(root / ".semalign-dangling")
    kept = [
        root / name for name in (".lock", ".semalign", ".semalign-notes.txt", ".tmp", "my.semalign-12345678")
    ]
    kept += [outside / ".semalign-12345678", outside / ".tmpAb3dEf"]
    kept += [root / "inner" / ".lock", root / "inner" / "deep" / ".semalign-12345678"]  # another one's
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (root / "link").symlink_to(outside, target_is_directory=True)
    (root / ".semalign-87654321").symlink_to(outside, target_is_directory=True)
    left.append(root / ".semalign-87654321")
    assert all(os.path.lexists(path) for path in left)
    sweep(root)
    assert not [path for path in left if os.path.lexists(path)]
    assert all(path.exists() for path in kept)


def pretrained(folder: Path) -> None:
    tiny_model("llama", layers=1, wide=False).save_pretrained(folder)


def tokenizer_file(folder: Path) -> None:
    tiny_tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))


WRITERS: dict[str, Any] = {
    "transformers": pretrained,
    "tokenizers": tokenizer_file,
    "torch": lambda folder: torch.save({"a": torch.zeros(10**5)}, folder / "optimizer.pt"),
    "safetensors": lambda folder: write_tensors(folder / "x", {"a": torch.zeros(10**5)}),
    "own": lambda folder: write_atomic(folder / "x", bytes(10**5)),
}


@contextmanager
def limited(folder: Path, kind: str) -> Iterator[Path]:
    """A folder on a disk that is full or read-only; or no file of it may be longer than a few bytes."""
    if kind == "too large":
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        kept = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, before[1]))
        try:
            yield folder
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, kept)
        return
    option = "size=4k" if kind == "full" else "ro"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("library", WRITERS)
@pytest.mark.parametrize("kind", ["full", "read-only", "too large"])
def test_a_disk_that_takes_nothing_is_one_sentence_whichever_library_writes(
    tmp_path: Path, library: str, kind: str
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    with limited(folder, kind), pytest.raises(CacheError) as caught, saving(folder / "student"):
        WRITERS[library](folder)
    reasons = {
        "full": "No space left on device",
        "read-only": "Read-only file system",
        "too large": "File too large",
    }
    said = str(caught.value)
    assert reasons[kind] in said or (library == "torch" and "torch could not write all of it" in said), said
    assert said.endswith("free space or choose another output_dir.") and len(said) < 400


def test_lines_that_the_disk_does_not_take_are_one_sentence() -> None:
    with open("/dev/full", "a") as file:
        with pytest.raises(
            CacheError, match=r"/dev/full: cannot be written \(No space left on device\); free space"
        ):
            append(file, "a line\n")
        with pytest.raises(OSError):
            file.close()


def test_errors_that_are_not_the_disks_stay_what_they_are() -> None:
    for error in (KeyError("x"), RuntimeError("CUDA out of memory"), ValueError("no number")):
        with pytest.raises(type(error)), saving(Path("x")):
            raise error
