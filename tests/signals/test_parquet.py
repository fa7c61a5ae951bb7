"""What a teacher said, in Parquet files: written from a cache, and told from there to another student."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
import yaml
from pyarrow import parquet
from safetensors.torch import load_file
from tiny import config_of

from semalign.cli import main
from semalign.config import CacheConfig, EvaluationConfig, RecipeConfig, TransferConfig, plain
from semalign.config.parsing import load_config
from semalign.data.batches import labels_of
from semalign.data.inputs import Inputs, load_inputs
from semalign.errors import ConfigError, DataError
from semalign.run.files import read_json, write_yaml
from semalign.signals.parquet import StoredTeacher
from semalign.steps.pipeline import transfer


@pytest.fixture(scope="module")
def exported(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TransferConfig, Path]:
    """A run whose cache holds the whole vocabulary, and the file that it was exported to."""
    folder = tmp_path_factory.mktemp("exported")
    config = config_of(
        tiny_pair, rows_file, folder / "run", recipe=RecipeConfig(), cache=CacheConfig(top_k=320)
    )
    transfer(config)
    path = folder / "told.parquet"
    assert main(["export", str(folder / "run"), str(path), "--json"]) == 0
    return config, path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return list(parquet.read_table(path).to_pylist())


def test_a_cache_is_exported_with_tokens_labels_and_their_likeliest(
    exported: tuple[TransferConfig, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, path = exported
    inputs = load_inputs(config)
    rows = rows_of(path)
    assert [row["split"] for row in rows] == ["train"] * len(inputs.train) + ["heldout"] * len(inputs.heldout)
    for row, sample in zip(rows, [*inputs.train, *inputs.heldout], strict=True):
        assert row["input_ids"] == sample.input_ids and row["id"] == sample.id
        assert [n for n in row["labels"] if n != -100] == labels_of(sample).tolist()
        logp = torch.tensor(row["target_logprobs"])
        assert logp.exp().sum(1).tolist() == pytest.approx([float(m) for m in sample.mask], abs=1e-3)
        assert [m[0] for m in row["target_mask"]] == [int(m) for m in sample.mask]
    assert main(["export", config.output_dir, str(path)]) == 0
    assert f"{len(rows)} rows" in capsys.readouterr().out.replace("\n", " ")


def test_another_student_learns_from_the_file_what_it_learns_from_the_teacher(
    exported: tuple[TransferConfig, Path], tmp_path: Path
) -> None:
    config, path = exported
    told = replace(
        config, output_dir=str(tmp_path / "told"), teacher=replace(config.teacher, signals=str(path))
    )
    run = transfer(told)
    metrics, before = (
        read_json(run.metrics, "evaluate"),
        read_json(Path(config.output_dir) / "metrics.json", ""),
    )
    assert metrics["kl_over"] == "told_tokens"
    assert metrics["closeness"]["after"]["kl"] == pytest.approx(before["closeness"]["after"]["kl"], abs=1e-3)
    first, second = (
        load_file(f / "student" / "model.safetensors") for f in (Path(config.output_dir), run.root)
    )
    assert all(torch.allclose(second[name], weight, atol=2e-3) for name, weight in first.items())
    # The file is part of what the run was made from.
    assert read_json(run.manifest, "cache")["fingerprint"]["teacher"]["signals"]


def test_a_path_beside_the_config_is_found(
    exported: tuple[TransferConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, path = exported
    (tmp_path / "told.parquet").write_bytes(path.read_bytes())
    write_yaml(
        tmp_path / "run.yaml", plain(replace(config, teacher=replace(config.teacher, signals="told.parquet")))
    )
    assert load_config(tmp_path / "run.yaml").teacher.signals == str(tmp_path / "told.parquet")


def stored(path: Path, inputs: Inputs, top_k: int = 4) -> StoredTeacher:
    return StoredTeacher(str(path), inputs.train[:2], inputs.vocabulary, top_k)


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "some.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def entries_of(inputs: Inputs, token: dict[int, float]) -> list[dict[str, Any]]:
    """Two rows of which every position tells the same tokens; nothing comes before the first."""
    return [
        {
            "input_ids": sample.input_ids,
            "target_token_ids": [None, *([list(token)] * (len(sample.input_ids) - 1))],
            "target_logprobs": [None, *([list(token.values())] * (len(sample.input_ids) - 1))],
        }
        for sample in inputs.train[:2]
    ]


def test_the_likeliest_are_kept_and_a_row_s_own_token_is_as_likely_as_it_can_be(
    exported: tuple[TransferConfig, Path], tmp_path: Path
) -> None:
    inputs = load_inputs(exported[0])
    # 9,999 is beyond what both models share.
    said = {5: -2.0, 6: -1.0, 7: -3.0, 9999: -1.5}
    told = stored(written(tmp_path, entries_of(inputs, said)), inputs, 2).tell(inputs.train[:2])
    for sample, one in zip(inputs.train, told, strict=False):
        assert one.ids_NK.tolist() == [[6, 5]] * sample.supervised
        assert one.logp_NK.tolist() == [pytest.approx([-1.0, -2.0])] * sample.supervised
        # No likelier than the least of all that is told, kept or not; the rest of 0.22 would allow more.
        for label, logp in zip(labels_of(sample).tolist(), one.label_logp_N.tolist(), strict=True):
            assert logp == pytest.approx(said.get(label, -3.0))
    sure = stored(written(tmp_path, entries_of(inputs, {319: -0.01})), inputs).tell(inputs.train[:1])
    assert sure[0].label_logp_N.exp().tolist() == pytest.approx(
        [1 - torch.tensor(-0.01).exp().item()] * len(sure[0].ids_NK), abs=1e-4
    )


def test_what_vllm_tells_of_a_prompt_has_one_width(
    exported: tuple[TransferConfig, Path], tmp_path: Path
) -> None:
    inputs = load_inputs(exported[0])
    first, second = inputs.train[:2]
    # The first row's own tokens are among its two likeliest everywhere; the second's come as a third, as vLLM adds them.
    told: list[list[tuple[list[int], list[float]] | None]] = [
        [None, *(([n, (n + 1) % 320], [-0.5, -2.0]) for n in first.input_ids[1:])],
        [None, *(([(n + 1) % 320, n, (n + 2) % 320], [-0.5, -7.0, -2.0]) for n in second.input_ids[1:])],
    ]
    rows = [
        {
            "input_ids": sample.input_ids,
            "target_token_ids": [e and e[0] for e in entries],
            "target_logprobs": [e and e[1] for e in entries],
        }
        for sample, entries in zip((first, second), told, strict=True)
    ]
    path = written(tmp_path, rows)
    for k in (2, 3, 6):
        both = stored(path, inputs, k).tell([first, second])
        assert torch.cat([one.ids_NK for one in both]).shape == (first.supervised + second.supervised, k)
        padding = [0] * max(0, k - 3), [-torch.inf] * max(0, k - 3)
        for n, label in enumerate(labels_of(second).tolist()):
            ids = [(label + 1) % 320, (label + 2) % 320, label, *padding[0]][:k]
            assert both[1].ids_NK[n].tolist() == ids, "the likeliest first, and no more than top_k"
            assert both[1].logp_NK[n].tolist() == pytest.approx([-0.5, -2.0, -7.0, *padding[1]][:k])
        assert both[0].logp_NK.exp().sum(1).tolist() == pytest.approx(
            [math.exp(-0.5) + math.exp(-2.0)] * first.supervised
        )
        assert [one.label_logp_N.unique().tolist() for one in both] == [[-0.5], [-7.0]], (
            "what is told of the row's own token is known, whether top_k has room for it or not"
        )


def test_ids_that_no_head_has_are_masked_with_one_that_every_head_has(
    exported: tuple[TransferConfig, Path], tmp_path: Path
) -> None:
    inputs = load_inputs(exported[0])
    for said, kept in (({5: -2.0, 9999: -1.5}, [5, 0, 0, 0]), ({9999: -0.5}, [0, 0, 0, 0])):
        for sample, one in zip(
            inputs.train,
            stored(written(tmp_path, entries_of(inputs, said)), inputs).tell(inputs.train[:2]),
            strict=False,
        ):
            assert one.ids_NK.tolist() == [kept] * sample.supervised
            assert (one.logp_NK > -torch.inf).sum(1).tolist() == [kept.count(5)] * sample.supervised
            assert float(one.label_logp_N.max()) < -0.49, "something else was told to be likely"


@pytest.mark.parametrize("kind", ["uint16", "uint32", "uint64", "int16", "int64"])
def test_ids_are_read_from_whole_numbers_of_any_type(
    kind: str, exported: tuple[TransferConfig, Path], tmp_path: Path
) -> None:
    inputs = load_inputs(exported[0])
    rows = entries_of(inputs, {5: -1.0, 6: -2.0})
    rows[0]["target_token_ids"][1] = [5, None]
    rows[0]["target_logprobs"][1] = [-1.0, None]
    table = parquet.read_table(written(tmp_path, rows))
    ids = table["target_token_ids"].cast(pyarrow.list_(pyarrow.list_(pyarrow.type_for_alias(kind))))
    place = table.schema.get_field_index("target_token_ids")
    path = tmp_path / "some.parquet"
    parquet.write_table(table.set_column(place, "target_token_ids", ids), path)
    for one in stored(path, inputs, 2).tell(inputs.train[:2]):
        assert one.ids_NK.unique(dim=0).tolist() == [[5, 6]]


def silent(inputs: Inputs, entry: Any) -> list[dict[str, Any]]:
    """Two rows, of the second of which one supervised token, the last, has this for its log-probabilities."""
    rows = entries_of(inputs, {5: -1.0, 6: -2.0})
    rows[1]["target_logprobs"][-1] = entry
    return rows


@pytest.mark.parametrize("entry", [None, [], [None, None], [-float("inf")] * 2], ids=str)
def test_a_supervised_token_of_which_nothing_is_told_is_refused(
    entry: Any, exported: tuple[TransferConfig, Path], tmp_path: Path
) -> None:
    inputs = load_inputs(exported[0])
    last = len(inputs.train[1].input_ids)
    assert inputs.train[1].mask[-1]
    with pytest.raises(
        DataError,
        match=rf"some\.parquet: row 2: expected log-probabilities at every supervised token, got none at token {last} of the row; export with "
        r"the same data\.supervise, or drop the row",
    ):
        stored(written(tmp_path, silent(inputs, entry)), inputs)


def test_tokens_that_are_not_supervised_need_no_entry(
    exported: tuple[TransferConfig, Path], tmp_path: Path
) -> None:
    inputs = load_inputs(exported[0])
    rows = entries_of(inputs, {5: -1.0})
    for row, sample in zip(rows, inputs.train, strict=False):
        for n, is_supervised in enumerate(sample.mask):
            if not is_supervised:
                row["target_token_ids"][n] = row["target_logprobs"][n] = None
    assert not all(inputs.train[0].mask[1:])
    assert stored(written(tmp_path, rows), inputs).tell(inputs.train[:1])[0].ids_NK[
        :, 0
    ].unique().tolist() == [5]


def test_distillkit_s_files_tell_of_the_next_token(
    exported: tuple[TransferConfig, Path], tmp_path: Path
) -> None:
    inputs = load_inputs(exported[0])
    rows = []
    for sample in inputs.train[:2]:
        # The entry before each token names that token, and 9 where it is not; 512 tokens need 9 bits.
        nexts = [*sample.input_ids[1:], 0]
        packed = [
            list(int(f"{i:09b}{(i + 1) % 320:09b}".ljust(24, "0"), 2).to_bytes(3, "big")) for i in nexts
        ]
        values = [list(struct.pack("<2f", -0.5, -1.5))] * len(nexts)
        # A last token beyond the row, so that the row's own last one is told of.
        rows.append(
            {"input_ids": [*sample.input_ids, 0], "bytepacked_indices": packed, "compressed_logprobs": values}
        )
    path = written(tmp_path, rows)
    config = {"d": 512, "k": 2, "exact_k": 2, "delta_encoding": False, "residual_bins": []}
    (tmp_path / "compression_config.yaml").write_text(yaml.safe_dump(config))
    told = stored(path.parent, inputs).tell(inputs.train[:2])
    for sample, one in zip(inputs.train, told, strict=False):
        assert one.ids_NK[:, 0].tolist() == labels_of(sample).tolist()
        assert one.label_logp_N.tolist() == pytest.approx([-0.5] * sample.supervised)


def test_a_position_of_distillkit_s_without_bytes_is_refused(
    exported: tuple[TransferConfig, Path], tmp_path: Path
) -> None:
    inputs = load_inputs(exported[0])
    rows = [
        {
            "input_ids": [*sample.input_ids, 0],
            "bytepacked_indices": [[0, 128]] * (len(sample.input_ids) - 2) + [None],
            "compressed_logprobs": [list(struct.pack("<f", -0.5))] * (len(sample.input_ids) - 2) + [None],
        }
        for sample in inputs.train[:2]
    ]
    config = {"d": 512, "k": 1, "exact_k": 1, "delta_encoding": False, "residual_bins": []}
    (tmp_path / "compression_config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(DataError, match="got none at token"):
        stored(written(tmp_path, rows), inputs)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (lambda inputs: entries_of(inputs, {5: -0.1, 6: -0.1}), "expected log-probabilities whose probabilities sum to at most 1"),
        (lambda inputs: entries_of(inputs, {5: 0.5}), "expected log-probabilities"),
        (lambda inputs: entries_of(inputs, {5: float("nan")}), "expected log-probabilities"),
        (lambda inputs: entries_of(inputs, {5: -1.0})[:1], "found none of 1, the first"),
        (lambda inputs: [{"text": "a"}], "expected columns input_ids and target_token_ids and target_logprobs"),
        (
            lambda inputs: [row | {"target_token_ids": [[5]] * 2, "target_logprobs": [[-1.0]] * 2} for row in entries_of(inputs, {5: -1.0})],
            "entries for",
        ),
        (
            lambda inputs: [
                row | {"target_token_ids": [[5, 5]] * len(row["input_ids"]), "target_logprobs": [[-2.0, -2.0]] * len(row["input_ids"])}
                for row in entries_of(inputs, {5: -1.0})
            ],
            "every token once a position",
        ),
        (
            lambda inputs: [row | {"target_token_ids": [[5]] * len(row["input_ids"])} for row in entries_of(inputs, {5: -1.0, 6: -1.0})],
            "as many ids as log-probabilities",
        ),
        (
            lambda inputs: [
                row | {"target_token_ids": [[5, 6], *row["target_token_ids"][1:-1], [5]]} for row in entries_of(inputs, {5: -1.0, 6: -1.0})
            ],
            "a token's id beside each log-probability",
        ),
        (lambda inputs: [*entries_of(inputs, {5: -1.0})[:1], entries_of(inputs, {5: -1.0})[1] | {"target_logprobs": None}], "entries for"),
        (lambda inputs: [*entries_of(inputs, {5: -1.0})[:1], entries_of(inputs, {5: -1.0})[1] | {"input_ids": None}], "found none of 1"),
    ],
)  # fmt: skip
def test_files_that_tell_no_distribution_are_refused(
    rows: Any, sentence: str, exported: tuple[TransferConfig, Path], tmp_path: Path
) -> None:
    inputs = load_inputs(exported[0])
    with pytest.raises(DataError, match=sentence):
        stored(written(tmp_path, rows(inputs)), inputs)


def test_files_that_cannot_be_read_are_named(exported: tuple[TransferConfig, Path], tmp_path: Path) -> None:
    inputs = load_inputs(exported[0])
    with pytest.raises(DataError, match="expected a Parquet file or a folder of them, found none"):
        stored(tmp_path, inputs)
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"a\.parquet: expected a readable Parquet file"):
        stored(tmp_path, inputs)


def test_what_was_not_told_is_refused(exported: tuple[TransferConfig, Path], tmp_path: Path) -> None:
    config, path = exported
    told = replace(
        config, output_dir=str(tmp_path / "run"), teacher=replace(config.teacher, signals=str(path))
    )
    with pytest.raises(ConfigError, match=r"what was told of its likeliest tokens at temperature 1"):
        transfer(replace(told, evaluation=EvaluationConfig(baselines={"kl": {}})))
    with pytest.raises(ConfigError, match=r"student\.signals: expected null"):
        replace(config, student=replace(config.student, signals="x"))
    bare = replace(config, output_dir=str(tmp_path / "bare"), recipe=RecipeConfig("cross_entropy"))
    transfer(bare, ("attribute", "pair", "cache"))
    assert main(["export", bare.output_dir, str(tmp_path / "x.parquet"), "--json"]) == 6
