import itertools
import json

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from semalign.errors import ConfigError
from semalign.maths.pairing import (
    LayerPair,
    best_path,
    blend,
    depth_pairs,
    interpolated,
    nearest,
    pair_critical,
    teacher_layer,
)

from . import reference

depths = st.integers(1, 60)


def critical(layer: int, teacher_layers: int, student_layers: int) -> LayerPair:
    """The pair where this teacher layer alone has a score."""
    scores = [float(n == layer) for n in range(1, teacher_layers + 1)]
    (pair,) = pair_critical(scores, student_layers, count=1)
    return pair


def test_the_example_of_twenty_and_ten_layers() -> None:
    assert [teacher_layer(k, 20, 10) for k in range(1, 11)] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert critical(7, 20, 10) == critical(8, 20, 10) == LayerPair(8, 4)
    assert interpolated(4, 20, 10) == LayerPair(teacher=8, student=4)


def test_forty_and_thirty_two_layers() -> None:
    assert teacher_layer(1, 40, 32) == 1
    assert teacher_layer(4, 40, 32) == 5
    assert teacher_layer(32, 40, 32) == 40
    # l(3) = 3 and l(4) = 5, so critical layer 4 goes to the deeper student layer 4.
    assert critical(4, 40, 32) == LayerPair(5, 4)
    assert interpolated(3, 40, 32) == LayerPair(teacher=3, student=3, fraction=0.75)


@given(depths, depths, st.data())
def test_layers_follow_the_text(teacher_layers: int, student_layers: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, student_layers))
    layer = data.draw(st.integers(1, teacher_layers))
    assert teacher_layer(k, teacher_layers, student_layers) == reference.teacher_layer(
        k, teacher_layers, student_layers
    )
    assert critical(layer, teacher_layers, student_layers).student == reference.student_layer_for(
        layer, teacher_layers, student_layers
    )
    pair = interpolated(k, teacher_layers, student_layers)
    weights = reference.interpolated_layers(k, teacher_layers, student_layers)
    assert pair.student == k
    assert list(pair.blend) == sorted(weights)
    assert 1 - pair.fraction == pytest.approx(float(weights[pair.teacher]), abs=1e-12)
    assert max(pair.blend) <= teacher_layers


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), depths, st.booleans(), st.data())
def test_critical_pairs_follow_the_text(
    scores: list[float], student_layers: int, interpolate: bool, data: st.DataObject
) -> None:
    depth = len(scores)
    count = data.draw(st.integers(1, min(depth, student_layers)))
    pairs = pair_critical(scores, student_layers, count=count, interpolate=interpolate)
    wanted: list[int] = []
    for index in torch.tensor(scores, dtype=torch.float64).argsort(descending=True, stable=True).tolist():
        student = reference.student_layer_for(index + 1, depth, student_layers)
        if student not in wanted and len(wanted) < count:
            wanted.append(student)
    assert [pair.student for pair in pairs] == sorted(wanted)
    for pair in pairs:
        expected = reference.teacher_layer(pair.student, depth, student_layers)
        assert pair == (
            interpolated(pair.student, depth, student_layers)
            if interpolate
            else LayerPair(teacher=expected, student=pair.student)
        )


def test_two_critical_layers_of_one_student_layer_count_once() -> None:
    scores = [0.0] * 20
    scores[6], scores[7], scores[18] = 3.0, 2.0, 1.0  # layers 7 and 8 both belong to student layer 4
    assert pair_critical(scores, 10, count=2) == [LayerPair(8, 4), LayerPair(20, 10)]


def test_every_student_layer_can_be_paired() -> None:
    pairs = pair_critical(list(range(28)), 24, count=24)
    assert [pair.student for pair in pairs] == list(range(1, 25))


def test_depth_pairs_are_sorted_and_single() -> None:
    assert depth_pairs([5, 1, 5], 20, 10) == [LayerPair(2, 1), LayerPair(10, 5)]
    assert depth_pairs([3], 40, 32, interpolate=True) == [LayerPair(3, 3, 0.75)]


def test_blend_is_the_interpolation() -> None:
    lower, upper = torch.randn(3, 4).bfloat16(), torch.randn(3, 4).bfloat16()
    expected = 0.25 * lower.float() + 0.75 * upper.float()
    torch.testing.assert_close(blend(lower, upper, 0.75), expected)
    assert torch.equal(blend(lower, upper, 0.0), lower.float())
    assert torch.equal(blend(lower, upper, 1.0), upper.float())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: teacher_layer(0, 20, 10), r"1\.\.10, got 0"),
        (lambda: teacher_layer(11, 20, 10), r"1\.\.10, got 11"),
        (lambda: interpolated(11, 20, 10), r"1\.\.10, got 11"),
        (lambda: teacher_layer(1, 0, 10), "at least one layer"),
        (lambda: depth_pairs([1, 11], 20, 10), r"1\.\.10, got 11"),
        (lambda: pair_critical([1.0] * 20, 10, count=0), r"1\.\.10, got 0"),
        (lambda: pair_critical([1.0] * 4, 10, count=5), r"1\.\.4, got 5"),
        (lambda: pair_critical([1.0, float("nan")], 2, count=1), "layer 2"),
        (lambda: LayerPair(0, 1), "counted from 1"),
        (lambda: LayerPair(1, 1, 1.5), "fraction"),
        (lambda: blend(torch.ones(1, 1), torch.ones(1, 1), -0.1), "fraction"),
    ],
)
def test_out_of_range_is_refused(call: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()  # type: ignore[operator]


@settings(max_examples=80)
@given(st.integers(1, 5), st.integers(1, 4), st.data())
def test_the_best_path_is_the_first_of_all_monotone_paths(
    rows: int, columns: int, data: st.DataObject
) -> None:
    values = data.draw(st.lists(st.integers(-3, 3), min_size=rows * columns, max_size=rows * columns))
    figures = torch.tensor(values, dtype=torch.float64).view(rows, columns)

    def total(path: tuple[int, ...]) -> float:
        return sum(float(figures[t, k]) for k, t in enumerate(path))

    paths = [p for p in itertools.product(range(rows), repeat=columns) if list(p) == sorted(p)]
    found = best_path(figures)
    assert found == sorted(found)
    assert total(tuple(t - 1 for t in found)) == max(total(p) for p in paths)
    assert nearest(figures) == [max(range(rows), key=lambda t: figures[t, k]) + 1 for k in range(columns)]


def test_ties_go_to_the_shallower_layers() -> None:
    assert best_path(torch.ones(3, 4)) == [1, 1, 1, 1]
    assert nearest(torch.ones(3, 2)) == [1, 1]


def test_layers_in_another_order_are_found_by_nearest_and_not_crossed_by_a_path() -> None:
    order = [3, 1, 2]
    figures = torch.full((3, 3), 0.1)
    for student, teacher in enumerate(order):
        figures[teacher - 1, student] = 1.0
    assert nearest(figures) == order
    # 1, 2 of the three can be kept in order.
    assert best_path(figures) == [1, 1, 2]


def test_critical_layers_follow_the_match() -> None:
    scores = [1.0, 5.0, 2.0, 9.0, 3.0]
    # l(1) = 2, l(2) = 2, l(3) = 4: layer 4 goes to student layer 3, then layer 2 to student layer 1.
    assert pair_critical(scores, 3, count=2, teachers=[2, 2, 4]) == [LayerPair(2, 1), LayerPair(4, 3)]


def test_a_critical_layer_finds_its_student_layer_out_of_order() -> None:
    # `pairing.match: nearest` may fall: here student layer 1 looks at teacher layer 5, and layer 3 at 2 itself.
    assert pair_critical([0, 9, 0, 0, 1], 3, count=1, teachers=[5, 1, 2]) == [LayerPair(2, 3)]
    # Nobody looks at layer 5 or deeper: the last student layer of the deepest match takes it.
    assert pair_critical([0, 0, 0, 1, 9], 3, count=1, teachers=[4, 4, 2]) == [LayerPair(4, 2)]


def test_student_layers_of_one_teacher_layer_fill_up_what_was_asked_for() -> None:
    # The walk reaches student layers 3 and 1 alone. Of the free ones 4 looks at teacher layer 4 and 2 at layer 2.
    teachers = [2, 2, 4, 4]
    three = [LayerPair(2, 1), LayerPair(4, 3), LayerPair(4, 4)]
    assert pair_critical([1, 2, 3, 4], 4, count=3, teachers=teachers) == three
    assert pair_critical([1, 4, 3, 2], 4, count=3, teachers=teachers) == [
        LayerPair(2, 1),
        LayerPair(2, 2),
        LayerPair(4, 3),
    ]
    assert pair_critical([1, 2, 3, 4], 4, count=2, teachers=teachers) == [three[0], three[1]]
    # Of equals the shallower one.
    assert [p.student for p in pair_critical([0, 5, 0], 4, count=3, teachers=[2, 2, 2, 3])] == [1, 2, 4]


@given(st.data())
def test_as_many_layers_are_paired_as_were_asked_for(data: st.DataObject) -> None:
    depth, student_layers = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    scores = data.draw(st.lists(st.floats(-1, 1), min_size=depth, max_size=depth))
    teachers = data.draw(st.lists(st.integers(1, depth), min_size=student_layers, max_size=student_layers))
    found: list[set[int]] = []
    for count in range(1, min(depth, student_layers) + 1):
        pairs = pair_critical(scores, student_layers, count=count, teachers=teachers)
        assert len(pairs) == count and all(p.teacher == teachers[p.student - 1] for p in pairs)
        found.append({p.student for p in pairs})
    assert all(fewer < more for fewer, more in itertools.pairwise(found)), "more layers keep those of fewer"


def test_figures_must_be_finite() -> None:
    with pytest.raises(ConfigError, match="finite matrix"):
        best_path(torch.tensor([[1.0, float("nan")]]))


@pytest.mark.parametrize(
    ("pair", "label", "place"),
    [
        (LayerPair(4, 3), "T4 → S3", "3"),
        (LayerPair(4, 3, 0.5), "T4.5 → S3", "3"),
        (LayerPair(4, 3, 0.3), "T4.3 → S3", "3"),
        (LayerPair(4, 3, teacher_head=2, student_head=1), "T4h2 → S3h1", "3h1"),
        (LayerPair(4, 3, teacher_head=1, student_head=2), "T4h1 → S3h2", "3h2"),
        (LayerPair(40, 12, 1.0), "T41 → S12", "12"),
    ],
)
def test_a_pair_is_named_by_its_layers_and_heads(pair: LayerPair, label: str, place: str) -> None:
    assert (pair.label, pair.place) == (label, place)


heads = st.one_of(st.none(), st.integers(1, 40))


@given(depths, depths, st.floats(0, 1), heads, heads)
@example(4, 3, 0.1, None, None)
def test_a_pair_survives_its_file(
    teacher: int, student: int, fraction: float, theirs: int | None, ours: int | None
) -> None:
    pair = LayerPair(teacher, student, fraction, theirs, ours)
    row = json.loads(json.dumps(pair.as_json()))
    assert ("teacher_head" in row, "student_head" in row) == (theirs is not None, ours is not None)
    assert LayerPair(**row) == pair
    assert LayerPair.from_json(row) == pair


def test_files_of_earlier_versions_have_layer_and_fraction_in_one_number() -> None:
    assert LayerPair.from_json({"teacher": 4.5, "student": 3}) == LayerPair(4, 3, 0.5)
    assert LayerPair.from_json({"teacher": 4, "student": 3, "fraction": None}) == LayerPair(4, 3)
