"""A teacher whose layers lie in several places: which layer lies where, that it says the same, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import config_of, save_model, tiny_model

from semalign.config import ModelConfig
from semalign.errors import ModelError
from semalign.evaluation.server import served_answers
from semalign.models.loading import load
from semalign.models.placing import Place, spread_over
from semalign.steps.attribute import attribute_layers
from semalign.steps.pipeline import transfer

from .test_loading import SAMPLES, assert_equal, signals

SIZES = st.lists(st.integers(1, 50), min_size=1, max_size=20)
ROOMS = st.lists(st.integers(0, 300), min_size=1, max_size=6)


def loads(sizes: list[int], places: list[Place | None]) -> dict[Place | None, int]:
    found: dict[Place | None, int] = {}
    for size, place in zip(sizes, places, strict=True):
        found[place] = found.get(place, 0) + size
    return found


def mapped(model: torch.nn.Module, file: Path) -> set[str]:
    """Names of the parameters whose memory is a part of a file."""
    spans = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(file))
    ]
    return {n for n, p in model.named_parameters() if any(a <= p.data_ptr() < b for a, b in spans)}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what is mapped is read from /proc")
@pytest.mark.parametrize("has_room", [True, False])
def test_weights_are_copied_out_of_their_file_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_room: bool
) -> None:
    saved = save_model(
        tiny_model("llama", layers=2, wide=False, tie_word_embeddings=True), tmp_path / "model"
    )
    if not has_room:
        monkeypatch.setattr("semalign.models.placing.ROOM_FOR_COPY", float("inf"))
    model = load(str(saved)).model
    assert bool(mapped(model, tmp_path / "model" / "model.safetensors")) is not has_room
    # What was one tensor still is: training the one trains the other.
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


@given(SIZES, ROOMS, st.integers(0, 60))
def test_layers_lie_in_order_and_no_device_holds_more_than_it_has_room_for(
    sizes: list[int], rooms: list[int], rest: int
) -> None:
    room: dict[Place, int] = dict(enumerate(rooms))
    places = spread_over(sizes, rest, room)
    order = [place for place, _ in groupby(places)]
    devices = [place for place in order if place is not None]
    assert devices == sorted(devices, key=int), (
        "neighbours lie together, the first layers on the first device"
    )
    assert None not in order[:-1], "what fits nowhere comes last"
    room[0] -= rest
    held = loads(sizes, places)
    assert all(size <= room[place] for place, size in held.items() if place is not None)
    if order[-1] is None:
        last = places.index(None)
        assert all(room[p] - held.get(p, 0) < sizes[last] for p in room if p >= max([0, *map(int, devices)]))


@pytest.mark.parametrize(
    ("sizes", "rest", "room", "expected"),
    [
        # Two equal devices: the first has the head too, and so fewer layers.
        ([10] * 8, 20, {0: 100, 1: 100}, [0] * 4 + [1] * 4),
        ([10] * 10, 50, {0: 100, 1: 100}, [0] * 3 + [1] * 7),
        # By room.
        ([10] * 9, 0, {0: 100, 1: 200}, [0] * 3 + [1] * 6),
        # One is enough, and all take part.
        ([10] * 4, 0, {0: 1000, 1: 1000}, [0, 0, 1, 1]),
        # Only without balance does everything fit.
        ([6, 6, 6], 0, {0: 12, 1: 8}, [0, 0, 1]),
        ([10] * 4, 0, {0: 25}, [0, 0, None, None]),
        ([10] * 2, 30, {0: 25, 1: 25}, [1, 1]),
    ],
)
def test_every_device_gets_its_share(
    sizes: list[int], rest: int, room: dict[Place, int], expected: list[Place | None]
) -> None:
    assert spread_over(sizes, rest, room) == expected


@pytest.fixture
def teacher_folder(tmp_path: Path) -> Path:
    return save_model(tiny_model("llama", layers=5, wide=True, seed=1), tmp_path / "teacher")


def room_for(folder: Path, layers: int) -> str:
    """What holds so many of its layers beside the rest, in KB."""
    model = load(ModelConfig(str(folder)))
    sizes = [sum(p.nbytes for p in layer.parameters()) for layer in model.layers]
    total = sum(p.nbytes for p in model.model.parameters())
    return f"{(total - sum(sizes[layers:]) + sizes[0] // 2) // 1000 + 1}KB"


def test_layers_in_memory_and_on_disk_give_the_same_signals_and_scores(
    teacher_folder: Path, tmp_path: Path
) -> None:
    student = load(
        ModelConfig(str(save_model(tiny_model("llama", layers=3, wide=False), tmp_path / "student")))
    )
    whole = load(ModelConfig(str(teacher_folder)))
    room = room_for(teacher_folder, 2)
    placed = load(ModelConfig(str(teacher_folder), device_map="auto", max_memory=room, offload="disk"))
    on_disk = [all(p.is_meta for p in layer.parameters()) for layer in placed.layers]
    assert on_disk == [False, False, True, True, True]
    assert_equal(signals(placed, student), signals(whole, student))
    expected = attribute_layers(whole, SAMPLES)
    assert attribute_layers(placed, SAMPLES, activation_checkpointing=True) == pytest.approx(
        expected, rel=1e-4
    )
    ids = torch.arange(6)[None] + 3
    answers = [decoder.model.generate(ids, max_new_tokens=8, do_sample=False) for decoder in (placed, whole)]
    assert answers[0].tolist() == answers[1].tolist()


def test_it_is_not_saved_for_a_server(teacher_folder: Path) -> None:
    room = room_for(teacher_folder, 2)
    placed = load(ModelConfig(str(teacher_folder), device_map="auto", max_memory=room, offload="disk"))
    assert placed.model.generation_config is not None
    with pytest.raises(
        ModelError, match=r"evaluation\.engine: expected padded for a model whose layers lie on"
    ):
        served_answers(placed.model, placed.tokenizer, [[3]], placed.model.generation_config, "none", 1)


def test_a_teacher_that_fits_stays_in_memory(teacher_folder: Path) -> None:
    placed = load(ModelConfig(str(teacher_folder), device_map="auto"))
    assert not any(p.is_meta for p in placed.model.parameters())


def test_layers_that_fit_nowhere_are_refused_unless_they_may_be_offloaded(teacher_folder: Path) -> None:
    with pytest.raises(
        ModelError,
        match=r"expected devices that hold .* GiB of weights, got room for .* on cpu; set teacher\.offload",
    ):
        load(ModelConfig(str(teacher_folder), device_map="auto", max_memory="1KB"))


def test_processes_of_one_launch_do_not_share_devices(
    teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ModelError, match=r"teacher\.device_map: expected null in a launch of 2 processes"):
        load(ModelConfig(str(teacher_folder), device_map="auto"))


@pytest.mark.parametrize("method", ["seeking", "laten"])
def test_methods_that_read_weights_refuse_layers_that_lie_elsewhere(
    method: str, tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_pair, rows_file, tmp_path / "run")
    config = replace(
        config,
        teacher=replace(config.teacher, offload="disk"),
        recipe=replace(config.recipe, name=method),
    )
    with pytest.raises(ModelError, match=rf"{method} reads weights and needs all of them on one device"):
        transfer(config, ("attribute", "pair", "cache", "train"))
