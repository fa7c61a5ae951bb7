import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from semalign.errors import ModelError
from semalign.maths import bases

from . import reference

shapes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 20), st.integers(0, 10_000))


def head(vocabulary: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A head with a common direction, as real ones have."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    return (weight + 2 * torch.randn(width, generator=generator, dtype=torch.float64)).to(dtype)


def orthonormal(vocabulary: int, width: int) -> torch.Tensor:
    return torch.linalg.qr(head(vocabulary, width, 0))[0]


@pytest.mark.parametrize("block", [1, 7, 8192])
@pytest.mark.parametrize("width", [3, 600])  # 600 columns make more than one panel
def test_gram_is_weight_transposed_times_weight(width: int, block: int) -> None:
    weight = head(20, width, 1)
    result = bases.gram(weight, block=block)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, weight.T @ weight, rtol=1e-12, atol=1e-12)
    assert torch.equal(result, result.T)


def test_gram_of_bfloat16_keeps_float64_accuracy() -> None:
    weight = head(500, 8, 2, torch.bfloat16)
    exact = weight.double().T @ weight.double()
    torch.testing.assert_close(bases.gram(weight), exact, rtol=1e-13, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gram_names_the_first_bad_row(bad: float) -> None:
    weight = head(30, 4, 3)
    weight[17, 2] = bad
    weight[23, 0] = bad
    with pytest.raises(ModelError, match="row 17 "):
        bases.gram(weight, block=5)


def test_two_infinities_of_opposite_sign_do_not_cancel() -> None:
    weight = head(5, 4, 3)
    weight[2, 0], weight[2, 1] = float("inf"), float("-inf")
    with pytest.raises(ModelError, match="row 2 "):
        bases.gram(weight)


def test_spectrum_equals_the_singular_values_of_the_head() -> None:
    weight = head(40, 6, 4)
    singular = torch.linalg.svdvals(weight)
    spectrum = bases.spectrum(bases.gram(weight))
    assert spectrum.rank == 6
    assert spectrum.condition == pytest.approx(float(singular[0] / singular[-1]), rel=1e-8)
    torch.testing.assert_close(spectrum.eigenvalues_D, singular.flip(0) ** 2)


def test_spectrum_counts_the_rank_and_honours_rcond() -> None:
    left, right = orthonormal(40, 4), orthonormal(6, 4)
    weight = left * torch.tensor([1.0, 0.5, 1e-2, 1e-4]) @ right.T
    spectrum = bases.spectrum(bases.gram(weight))
    assert (spectrum.rank, spectrum.condition) == (4, pytest.approx(1e4, rel=1e-4))
    spectrum = bases.spectrum(bases.gram(weight), rcond=1e-3)
    assert (spectrum.rank, spectrum.condition) == (3, pytest.approx(1e2, rel=1e-6))
    assert bases.spectrum(torch.zeros(3, 3)).rank == 0


@pytest.mark.parametrize("rcond", [-0.1, 1.0])
def test_rcond_out_of_range_is_refused(rcond: float) -> None:
    with pytest.raises(ModelError, match="rcond"):
        bases.spectrum(torch.eye(2), rcond=rcond)


def pseudo_inverse(weight: torch.Tensor, rcond: float | None = None) -> torch.Tensor:
    """Every token's basis: the state whose logits are as near as can be to 1 at the token and 0 elsewhere."""
    return bases.logit_map(torch.eye(len(weight)).to(weight), weight, rcond=rcond)


def own_unit_bases(weight: torch.Tensor) -> torch.Tensor:
    """The same at length 1: where the teacher's bases are the tokens themselves, the folded map is the student's."""
    return bases.semantic_map(torch.eye(len(weight)).to(weight), weight)


@settings(max_examples=30)
@given(shapes)
def test_bases_are_the_pseudo_inverse(shape: tuple[int, int, int, int]) -> None:
    width, _, extra, seed = shape
    weight = head(width + extra, width, seed)
    assume(torch.linalg.cond(weight) < 1e4)
    torch.testing.assert_close(
        pseudo_inverse(weight), torch.linalg.pinv(weight).float(), rtol=1e-5, atol=1e-7
    )
    torch.testing.assert_close(
        own_unit_bases(weight), reference.unit_bases(weight).float(), rtol=1e-5, atol=1e-7
    )


def rank_deficient(vocabulary: int = 30, width: int = 6, rank: int = 3) -> torch.Tensor:
    return head(vocabulary, rank, 5) @ head(rank, width, 6)


@pytest.mark.parametrize(
    "weight", [rank_deficient(), head(3, 6, 7)], ids=["low rank", "fewer rows than columns"]
)
def test_rank_deficient_heads_still_give_the_pseudo_inverse(weight: torch.Tensor) -> None:
    expected = torch.linalg.pinv(weight, rtol=1e-9)
    torch.testing.assert_close(pseudo_inverse(weight), expected.float(), rtol=1e-6, atol=1e-8)


def test_rcond_cuts_like_pinv() -> None:
    left, right = orthonormal(40, 4), orthonormal(4, 4)
    weight = left * torch.tensor([1.0, 0.5, 1e-2, 1e-4]) @ right.T
    torch.testing.assert_close(
        pseudo_inverse(weight, rcond=1e-3),
        torch.linalg.pinv(weight, rtol=1e-3).float(),
        rtol=1e-6,
        atol=1e-8,
    )


def test_bases_are_float32_for_half_precision_heads() -> None:
    weight = head(40, 5, 8, torch.bfloat16)
    result = own_unit_bases(weight)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), reference.unit_bases(weight), rtol=1e-5, atol=1e-6)


@settings(max_examples=30)
@given(shapes, st.integers(1, 9))
def test_the_folded_map_is_decompose_then_recompose(shape: tuple[int, int, int, int], block: int) -> None:
    teacher_width, student_width, extra, seed = shape
    vocabulary = max(teacher_width, student_width) + extra
    teacher, student = head(vocabulary, teacher_width, seed), head(vocabulary, student_width, seed + 1)
    assume(max(torch.linalg.cond(teacher), torch.linalg.cond(student)) < 1e3)
    hidden = head(3, teacher_width, seed + 2)
    map_ED = bases.semantic_map(teacher, student, block=block)
    assert map_ED.dtype == torch.float32
    torch.testing.assert_close(
        bases.apply_map(hidden, map_ED.double(), normalize=True),
        reference.aligned_target(hidden, teacher, student),
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_folded_map_in_float32_is_accurate_at_the_condition_of_real_heads() -> None:
    rotation = orthonormal(32, 32)
    spread = torch.logspace(0, -1.8, 32, dtype=torch.float64)
    teacher = torch.randn(400, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * spread
    teacher = (teacher @ rotation).float()
    assert 50 < bases.spectrum(bases.gram(teacher)).condition < 120
    student = head(400, 24, 13, torch.float32)
    exact = reference.unit_bases(student) @ reference.unit_bases(teacher).T
    error = (bases.semantic_map(teacher, student).double() - exact).norm() / exact.norm()
    assert error < 2e-5


def test_map_of_a_model_with_itself_is_bases_times_bases_transposed() -> None:
    weight = head(30, 5, 14)
    own = reference.unit_bases(weight)
    torch.testing.assert_close(
        bases.semantic_map(weight, weight), (own @ own.T).float(), rtol=1e-5, atol=1e-6
    )


def mean_cosine(hidden: torch.Tensor, recomposed: torch.Tensor) -> float:
    return sum(float(reference.cosine(h, r)) for h, r in zip(hidden, recomposed, strict=True)) / len(hidden)


def folded_cosine(hidden: torch.Tensor, weight: torch.Tensor) -> float:
    """How well a head's own map keeps directions."""
    return mean_cosine(
        hidden, bases.apply_map(hidden, bases.semantic_map(weight, weight).double(), normalize=True)
    )


def test_an_orthonormal_head_recomposes_exactly() -> None:
    weight = orthonormal(30, 5)
    raw = pseudo_inverse(weight)
    torch.testing.assert_close(raw @ raw.T, torch.eye(5))
    square = orthonormal(5, 5)
    torch.testing.assert_close(bases.semantic_map(square, square), torch.eye(5))
    assert folded_cosine(head(8, 5, 15), square) == pytest.approx(1.0, abs=1e-6)


def test_a_zero_row_of_the_head_adds_nothing_to_the_map() -> None:
    teacher, student = head(20, 4, 16), head(20, 3, 17)
    padded = [torch.cat([weight, torch.zeros(2, weight.shape[1]).double()]) for weight in (teacher, student)]
    torch.testing.assert_close(bases.semantic_map(*padded), bases.semantic_map(teacher, student))


def test_relabelling_the_vocabulary_changes_nothing() -> None:
    teacher, student = head(20, 4, 18), head(20, 3, 19)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        bases.semantic_map(teacher[order], student[order]), bases.semantic_map(teacher, student)
    )


def test_logit_map_is_the_least_squares_state_with_the_teachers_logits() -> None:
    teacher, student = head(25, 5, 20), head(25, 4, 21)
    teacher_norm, student_norm = head(1, 5, 22)[0], head(1, 4, 23)[0]
    expected = torch.linalg.pinv(student @ torch.diag(student_norm)) @ teacher @ torch.diag(teacher_norm)
    result = bases.logit_map(
        teacher, student, teacher_norm_D=teacher_norm, student_norm_E=student_norm, block=7
    )
    torch.testing.assert_close(result, expected.float(), rtol=1e-5, atol=1e-6)


def test_logit_map_between_equal_heads_is_the_identity() -> None:
    weight, norm = head(25, 5, 24, torch.bfloat16), head(1, 5, 25)[0].abs() + 0.1
    result = bases.logit_map(weight, weight, teacher_norm_D=norm, student_norm_E=norm)
    torch.testing.assert_close(result, torch.eye(5), rtol=1e-5, atol=1e-5)


def test_logit_map_with_a_dead_norm_channel_is_still_the_pseudo_inverse() -> None:
    teacher, student = head(25, 5, 26), head(25, 4, 27)
    norm = torch.tensor([1.0, 0.0, 2.0, 1.0]).double()
    expected = torch.linalg.pinv(student * norm) @ teacher
    result = bases.logit_map(teacher, student, student_norm_E=norm)
    torch.testing.assert_close(result, expected.float(), rtol=1e-5, atol=1e-6)


def test_apply_map_with_and_without_normalising() -> None:
    hidden, map_ED, bias = head(3, 4, 28), head(2, 4, 29), head(1, 2, 30)[0]
    for n, state in enumerate(hidden):
        torch.testing.assert_close(
            bases.apply_map(hidden, map_ED, bias, normalize=False)[n], map_ED @ state + bias
        )
        torch.testing.assert_close(
            bases.apply_map(hidden, map_ED, bias, normalize=True)[n], map_ED @ state / state.norm() + bias
        )
    assert bases.apply_map(hidden.bfloat16(), map_ED.float(), normalize=True).dtype == torch.float32


def test_decomposing_keeps_directions_as_well_as_the_folded_map() -> None:
    hidden, weight = head(6, 5, 31), head(40, 5, 32)
    own = reference.unit_bases(weight)
    expected = sum(float(reference.cosine(h, own @ own.T @ h)) for h in hidden) / 6
    recomposed = reference.recompose(reference.decompose(hidden, own), own)
    assert mean_cosine(hidden, recomposed) == pytest.approx(expected, abs=1e-10)
    assert folded_cosine(hidden, weight) == pytest.approx(expected, abs=1e-5)


def test_a_trainable_head_leaves_no_graph_behind() -> None:
    weight = torch.nn.Parameter(head(9, 4, 37))
    for result in (
        bases.gram(weight),
        bases.semantic_map(weight, weight),
        bases.logit_map(weight, weight),
    ):
        assert not result.requires_grad


def test_heads_with_different_vocabularies_are_refused() -> None:
    for function in (bases.semantic_map, bases.logit_map):
        with pytest.raises(ModelError, match="20 and 21"):
            function(head(20, 4, 33), head(21, 4, 34))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ModelError, match="float matrix"):
        bases.gram(torch.ones(2, 3, 4))
    with pytest.raises(ModelError, match="4 columns"):
        bases.apply_map(torch.ones(2, 3), torch.ones(5, 4), normalize=True)
    with pytest.raises(ModelError, match="teacher_norm_D"):
        bases.logit_map(head(9, 4, 35), head(9, 3, 36), teacher_norm_D=torch.ones(3))
    with pytest.raises(ModelError, match="at least 1"):
        bases.gram(torch.ones(2, 3), block=0)
